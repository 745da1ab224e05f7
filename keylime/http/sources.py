"""Where a stranger comes from: the prefixes of an address, by which strangers share what is there. Pure.

An address alone is no source: who rents one IPv4 address often has its neighbours too, and who has one IPv6
address has the 2^64 beside it.
"""

import functools
import ipaddress
import re

_NARROW_IPV4, _WIDE_IPV4, _IPV6 = 32, 24, 64
_ZONE = re.compile(r"%.*", re.DOTALL)
# All that is no address is one source: whoever could vary it would otherwise have as many as he likes.
_NO_ADDRESS = ("unknown",)


@functools.lru_cache(maxsize=1024)  # a request asks several times, and so do those that follow
def source_prefixes(address: str) -> tuple[str, ...]:
    """The prefixes that `address` is counted under, narrowest first: /32 and /24 of IPv4, /64 of IPv6.

    An IPv4 address written as an IPv6 one (::ffff:192.0.2.1) is the IPv4 address; a zone (%eth0) is left out.
    What is no address at all counts as one and the same source.
    """
    try:
        parsed = ipaddress.ip_address(_ZONE.sub("", address.strip()))
    except ValueError:
        return _NO_ADDRESS
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is None:
            return (_prefix(parsed, _IPV6),)
        parsed = parsed.ipv4_mapped
    return _prefix(parsed, _NARROW_IPV4), _prefix(parsed, _WIDE_IPV4)


def _prefix(address: ipaddress.IPv4Address | ipaddress.IPv6Address, bits: int) -> str:
    # As a network of the library says of itself; making one takes several times as long, for each request.
    rest = address.max_prefixlen - bits
    return f"{type(address)(int(address) >> rest << rest)}/{bits}"
