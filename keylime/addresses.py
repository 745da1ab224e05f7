"""What a host name or address of the configuration means to others. Pure."""

import ipaddress


def means_own_host(host: str) -> bool:
    """Whether `host` is the machine that says it, whichever that is: loopback, and no address at all."""
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return host.lower().rstrip(".") in ("localhost", "localhost.localdomain", "ip6-localhost")
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(mapped.is_loopback or mapped.is_unspecified)
