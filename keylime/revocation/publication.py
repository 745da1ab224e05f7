"""What publishers and subscribers of revocation messages have agreed on (docs/reference/rest-api.md, 7.2)."""

REPLAY_S = 600.0  # how long a message is kept by the publisher for those who subscribe later


def endpoint(address: str, port: int) -> str:
    """The ZeroMQ name of a TCP address, IPv4, IPv6 or host name."""
    return f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"
