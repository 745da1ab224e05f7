"""The defaults that users know, and the shape of the tables."""

import pytest

from keylime.config.loader import load_settings
from keylime.config.model import ComponentTable, DefaultValue, Kind, Option
from keylime.config.options import TABLES

_ALL = [(table, option) for table in TABLES.values() for option in table.options]
_LISTS = dict.fromkeys((Kind.LIST, Kind.ADDRESSES, Kind.MAPPINGS), tuple)
_TYPES = {Kind.INTEGER: int, Kind.NUMBER: float, Kind.FLAG: bool, **_LISTS}


@pytest.mark.parametrize(("table", "option"), _ALL)
def test_a_default_has_the_type_of_its_kind_and_keeps_its_limits(
    table: ComponentTable, option: Option
) -> None:
    assert type(option.default) is _TYPES.get(option.kind, str)
    if option.choices:
        texts = option.default if isinstance(option.default, tuple) else (option.default,)
        assert set(map(str, texts)) <= set(option.choices)
    if isinstance(option.default, int | float):
        assert option.minimum is None or option.default >= option.minimum
        assert option.maximum is None or option.default <= option.maximum


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.component)
def test_no_option_stands_twice_in_a_table(table: ComponentTable) -> None:
    assert len(table.by_key()) == len(table.options)
    assert not table.by_key().keys() & table.by_former_key().keys()


@pytest.mark.parametrize(
    ("component", "section", "name", "default"),
    [
        ("agent", "agent", "uuid", "generate"),
        ("agent", "agent", "port", 9002),
        ("agent", "agent", "registrar_port", 8890),
        ("agent", "agent", "run_as", "keylime:tss"),
        ("agent", "agent", "tpm_hash_alg", "sha256"),
        ("agent", "agent", "tpm_ownerpassword", ""),
        ("verifier", "verifier", "port", 8881),
        ("verifier", "verifier", "tls_dir", "generate"),
        ("verifier", "verifier", "ignore_tomtou_errors", False),
        ("verifier", "verifier", "quote_interval", 2.0),
        ("verifier", "revocations", "enabled_revocation_notifications", ("agent",)),
        ("verifier", "revocations", "zmq_port", 8992),
        ("registrar", "registrar", "tls_port", 8891),
        ("registrar", "registrar", "tls_dir", "default"),
        ("tenant", "tenant", "accept_tpm_signing_algs", ("ecdsa", "ecschnorr", "rsassa", "rsapss")),
        ("tenant", "tenant", "accept_tpm_hash_algs", ("sha512", "sha384", "sha256")),
        ("tenant", "tenant", "require_ek_cert", True),
        ("ca", "ca", "password", "default"),
    ],
)
def test_defaults_that_users_know(component: str, section: str, name: str, default: DefaultValue) -> None:
    assert TABLES[component].by_key()[section, name].default == default


def test_nothing_is_needed_to_have_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty")
    for component in TABLES:
        settings = load_settings(component, environ={}, etc=empty, usr_etc=empty / "none")
        assert settings.warnings == ()
        assert settings.files == ()
