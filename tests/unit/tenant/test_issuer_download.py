"""Downloads from addresses that strangers wrote: what is not asked, and how much is taken."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from keylime.errors import ConfigError, PeerUnreachable
from keylime_tenant.issuer_download import MAX_BYTES, IssuerDownload, is_elsewhere
from tests.fakes.loopback import LoopbackSite


async def _answer(request: web.Request) -> web.StreamResponse:
    path = request.path
    if path == "/certificate":
        return web.Response(body=b"a certificate")
    if path == "/large":
        return web.Response(body=bytes(MAX_BYTES + 1))
    if path == "/bomb":
        return web.Response(body=zlib.compress(bytes(1 << 24)), headers={"Content-Encoding": "deflate"})
    if path.startswith("/to/"):
        raise web.HTTPFound(request.query["where"])
    if path == "/round":
        raise web.HTTPFound("/round")
    if path == "/nowhere":
        return web.Response(status=302)
    return web.Response(status=404)


@asynccontextmanager
async def site() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_get("/{path:.*}", _answer)
    opened = await LoopbackSite.open(app)
    try:
        yield f"http://127.0.0.1:{opened.port}"
    finally:
        await opened.close()


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def run(scenario: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 60))


def anywhere(_: str) -> bool:
    return True


def test_what_is_published_is_fetched_also_where_it_has_moved() -> None:
    async def scenario() -> None:
        download = IssuerDownload(anywhere)
        async with site() as base:
            assert await download(f"{base}/certificate") == b"a certificate"
            assert await download(f"{base}/to/x?where=/certificate") == b"a certificate"
            assert len(await download(f"{base}/bomb")) < MAX_BYTES

    run(scenario())


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/large", "larger than"),
        ("/gone", "answered 404"),
        ("/round", "leads on more than 3 times"),
        ("/nowhere", "leads on more than 3 times"),
    ],
)
def test_what_is_not_published_is_told(path: str, words: str) -> None:
    async def scenario() -> None:
        async with site() as base:
            with pytest.raises(PeerUnreachable, match=words):
                await IssuerDownload(anywhere)(base + path)

    run(scenario())


@pytest.mark.parametrize(
    "where", ["file:///etc/passwd", "ftp://maker.example/", "gopher://x/", "http://u:p@x/"]
)
def test_odd_addresses_are_not_asked_and_not_followed(where: str) -> None:
    async def scenario() -> None:
        async with site() as base:
            for address in (where, f"{base}/to/x?where={where}"):
                with pytest.raises(ConfigError):
                    await IssuerDownload(anywhere)(address)

    run(scenario())


def test_this_machine_and_its_link_are_not_asked() -> None:
    async def scenario() -> None:
        download = IssuerDownload()
        async with site() as base:
            with pytest.raises(ConfigError, match="this machine"):
                await download(base)
            with pytest.raises(PeerUnreachable, match="this machine"):
                await download(base.replace("127.0.0.1", "localhost"))

    run(scenario())


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1", True),
        ("10.1.2.3", True),
        ("2001:db8::1", True),
        ("127.0.0.2", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("169.254.169.254", False),
        ("fe80::1%eth0", False),
        ("0.0.0.0", False),  # noqa: S104
        ("224.0.0.1", False),
    ],
)
def test_which_addresses_are_elsewhere(address: str, expected: bool) -> None:
    assert is_elsewhere(address) is expected
