"""Where a daemon's measurements are served, by its configuration. Pure but for the name of the directory."""

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from keylime.config.settings import Settings
from keylime.errors import ConfigError


@dataclass(frozen=True, slots=True)
class MetricsPlace:
    """An address, and the directory in which several processes of a daemon count together."""

    ip: str
    port: int
    directory: Path

    @property
    def warnings(self) -> tuple[str, ...]:
        """What an operator should know."""
        if _is_loopback(self.ip):
            return ()
        return (
            f"metrics are served on {self.ip}:{self.port} without TLS and to anybody who reaches it; they "
            "tell how many machines there are and what fails: let only the monitoring reach it",
        )


def metrics_place(settings: Settings, work_dir: Path) -> MetricsPlace | None:
    """None where nothing is to be served. Raises ConfigError for an address of the public network."""
    ip, port = settings.text("metrics_ip"), settings.integer("metrics_port")
    if not port:
        return None
    with settings.placed("metrics_ip"):
        if _is_public(ip):
            raise ConfigError(
                f"[{settings.component}] metrics_ip = {ip} is an address of the public network, where "
                "anybody could read the metrics: name one of a network of your own, or 127.0.0.1"
            )
    return MetricsPlace(ip, port, work_dir / f"metrics-{settings.component}")


def _is_public(ip: str) -> bool:
    try:
        return ipaddress.ip_address(ip).is_global
    except ValueError:  # a name
        return False


def _is_loopback(ip: str) -> bool:
    try:
        return ipaddress.ip_address(ip).is_loopback
    except ValueError:
        return ip == "localhost"
