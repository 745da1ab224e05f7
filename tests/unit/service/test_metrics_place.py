"""Where metrics are served: nowhere unless it is said, and on no address of the public network."""

from pathlib import Path

import pytest

from keylime.config.loader import load_settings
from keylime.errors import ConfigError
from keylime.service.metrics_place import MetricsPlace, metrics_place


def place(component: str = "verifier", **options: str) -> MetricsPlace | None:
    prefix = f"KEYLIME_{component.upper()}_METRICS_"
    environ = {prefix + name.upper(): value for name, value in options.items()}
    return metrics_place(load_settings(component, environ=environ), Path("/w"))


@pytest.mark.parametrize("component", ["verifier", "registrar"])
def test_there_are_none_without_a_port_and_then_on_loopback(component: str) -> None:
    assert place(component) is None
    found = place(component, port="9464")
    assert found == MetricsPlace("127.0.0.1", 9464, Path(f"/w/metrics-{component}"))
    assert found.warnings == ()


@pytest.mark.parametrize("ip", ["192.168.1.7", "10.0.0.1", "0.0.0.0", "::", "fd00::1", "monitoring"])  # noqa: S104
def test_whoever_lets_others_read_them_is_warned(ip: str) -> None:
    found = place(ip=ip, port="9464")
    assert found is not None
    (warning,) = found.warnings
    assert ip in warning
    assert "without TLS" in warning


@pytest.mark.parametrize("ip", ["8.8.8.8", "2001:4860:4860::8888"])
def test_an_address_of_the_public_network_is_refused(ip: str) -> None:
    with pytest.raises(ConfigError, match=r"\[registrar\] metrics_ip = .*127\.0\.0\.1"):
        place("registrar", ip=ip, port="9464")
