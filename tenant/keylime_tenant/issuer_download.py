"""Downloads from addresses that a stranger wrote into a certificate: little, soon, and from the network only.

An EK certificate is whatever an agent registered, so its addresses must not make this machine talk to itself
or to what only machines of its own link can reach.
"""

import asyncio
import errno
import ipaddress
import socket
from collections.abc import Callable
from typing import Any
from urllib.request import getproxies

import aiohttp
import yarl
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from keylime.errors import ConfigError, PeerUnreachable

MAX_BYTES = 256 * 1024  # a bundle of a maker's has some KiB
_TIME_S = 20.0
_MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


def is_elsewhere(text: str) -> bool:
    """Whether the IP address `text` belongs to another machine, beyond this one's own link."""
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        address = mapped
    return not (
        address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified
    )


class IssuerDownload:
    """One GET after another, each within 20 s and 256 KiB, by http or https, over three redirects at most."""

    def __init__(self, allowed: Callable[[str], bool] = is_elsewhere) -> None:
        """`allowed` says which IP addresses may be asked."""
        self._allowed = allowed

    async def __call__(self, address: str) -> bytes:
        """The content at `address`. Raises ConfigError for an address that is not asked, PeerUnreachable."""
        timeout = aiohttp.ClientTimeout(total=_TIME_S)
        proxies = frozenset(yarl.URL(proxy).host or "" for proxy in getproxies().values())
        connector = aiohttp.TCPConnector(resolver=_Resolver(self._allowed, proxies))
        try:
            async with (
                asyncio.timeout(_TIME_S),
                # What is compressed would be unpacked without a bound. Proxies are those of the environment.
                aiohttp.ClientSession(
                    connector=connector,
                    timeout=timeout,
                    auto_decompress=False,
                    trust_env=True,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    headers={"Accept-Encoding": "identity", "User-Agent": "keylime_tenant"},
                ) as session,
            ):
                return await self._get(session, address)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            reason = str(error) or f"no answer within {_TIME_S:g} s"
            raise PeerUnreachable(f"it cannot be downloaded: {reason}") from error

    async def _get(self, session: aiohttp.ClientSession, address: str) -> bytes:
        url = self._checked(address)
        for _ in range(_MAX_REDIRECTS + 1):
            async with session.get(url, allow_redirects=False) as response:
                if response.status in _REDIRECTS:
                    url = self._checked(str(url.join(yarl.URL(response.headers.get("Location", "")))))
                    continue
                if response.status != 200:
                    raise PeerUnreachable(f"it answered {response.status}")
                return await _bounded(response)
        raise PeerUnreachable(f"it leads on more than {_MAX_REDIRECTS} times")

    def _checked(self, address: str) -> yarl.URL:
        url = yarl.URL(address)
        if url.scheme not in ("http", "https") or not url.host:
            raise ConfigError(f"expected http or https, not {address!a}")
        if url.user is not None or url.password is not None:
            raise ConfigError(f"{url.host!a} is not asked with a password of somebody else")
        if _is_ip_address(url.host) and not self._allowed(url.host):
            raise ConfigError(f"{url.host} is this machine or on its own link, which is not asked")
        return url


class _Resolver(AbstractResolver):
    """Names as the system resolves them, without the addresses that must not be asked.

    A proxy that the environment names may be on this machine; what it may ask is for it to know.
    """

    def __init__(self, allowed: Callable[[str], bool], proxies: frozenset[str]) -> None:
        self._resolver = ThreadedResolver()
        self._allowed = allowed
        self._proxies = proxies

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if host in self._proxies:
            return found
        allowed = [one for one in found if self._allowed(one["host"])]
        if not allowed:
            raise OSError(errno.EACCES, f"{host} is this machine or on its own link, which is not asked")
        return allowed

    async def close(self) -> None:
        await self._resolver.close()


async def _bounded(response: Any) -> bytes:
    data = bytearray()
    async for chunk in response.content.iter_chunked(16 * 1024):
        data += chunk
        if len(data) > MAX_BYTES:
            raise PeerUnreachable(f"it is larger than {MAX_BYTES} bytes")
    return bytes(data)


def _is_ip_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True
