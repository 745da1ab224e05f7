"""Flags of push agents of other releases."""

import argparse

import pytest

from keylime.config.loader import load_settings
from keylime.errors import ConfigError
from keylime_agent.pushing.config import push_config
from keylime_agent.pushing.flags import add_flags, environment_of, remarks_on


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    add_flags(parser)
    return parser.parse_args(words)


def test_flags_stand_before_options() -> None:
    arguments = parsed(
        *("--agent-identifier", "d432fbb3-d2f1-4a97-9ef7-75bd81c00001"),
        *("--ca-certificate", "/etc/keylime/ca.crt"),
        *("-v", "https://verifier:8881"),
        *("--registrar-url", "https://registrar:9999"),
        *("--attestation-interval-seconds", "7"),
    )
    given = {"KEYLIME_AGENT_VERIFIER_URL": "https://other:8881", "KEYLIME_DIR": "/tmp"}  # noqa: S108
    environ = {**given, **environment_of(arguments)}
    config = push_config(load_settings("agent", environ=environ), environ)
    assert config.verifiers == ("https://verifier:8881",)
    assert str(config.authority) == "/etc/keylime/ca.crt"
    assert config.pacing.interval_s == 7
    assert environ["KEYLIME_AGENT_UUID"] == "d432fbb3-d2f1-4a97-9ef7-75bd81c00001"
    assert list(remarks_on(arguments)) == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://registrar:8888", {"IP": "registrar", "PORT": "8888", "TLS_ENABLED": "False"}),
        ("http://10.0.0.1", {"IP": "10.0.0.1", "PORT": "8890", "TLS_ENABLED": "False"}),
        ("https://[::1]/", {"IP": "::1", "TLS_PORT": "8891", "TLS_ENABLED": "True"}),
    ],
)
def test_the_registrars_url_is_address_port_and_whether_it_speaks_tls(url: str, said: dict[str, str]) -> None:
    expected = {f"KEYLIME_AGENT_REGISTRAR_{name}": value for name, value in said.items()}
    assert environment_of(parsed("--registrar-url", url)) == expected


@pytest.mark.parametrize(
    "url", ["registrar", "ftp://registrar", "http://registrar:x", "http://", "http://r/x"]
)
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="expected http://HOST:PORT"):
        environment_of(parsed("--registrar-url", url))


def test_what_has_no_effect_is_said_in_a_line() -> None:
    arguments = parsed(
        *("--insecure", "--timeout", "5000", "-j", "file", "--api-version", "v3.0", "--method", "POST"),
        *("--message-type", "Attestation", "--attestation-index", "1", "--session-index", "1"),
        "--avoid-tpm",
    )
    (line,) = remarks_on(arguments)
    for flag in ("--insecure", "--timeout", "--json-file", "--avoid-tpm", "--session-index"):
        assert flag in line
    assert environment_of(arguments) == {}
