"""Scripts that import policies from where they were go on working."""

import importlib

import pytest


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("keylime.policy.runtime", ["EMPTY_POLICY", "RuntimePolicy", "parse_runtime_policy"]),
        ("keylime.policy.tpm_policy", ["TpmPolicy"]),
        ("keylime.policy.measured_boot", ["built_in_policies", "compile_measured_boot_policy"]),
        ("keylime.policy.allowlist", ["convert_allowlist"]),
        ("keylime.policy.dsse", ["open_envelope"]),
    ],
)
def test_older_names_are_there(module: str, names: list[str]) -> None:
    found = importlib.import_module(module)
    assert set(names) <= set(found.__all__)
    assert all(getattr(found, name) is not None for name in found.__all__)


def test_the_tpm_certificate_store_is_read_from_where_it_was() -> None:
    ek = importlib.import_module("keylime.pki.ek")
    store = importlib.import_module("keylime.pki.tpm_cert_store")
    assert ek.load_trust_store is store.load_trust_store
    assert ek._load_certificates is store._load_certificates
    with pytest.raises(AttributeError, match="no attribute 'gone'"):
        _ = ek.gone
