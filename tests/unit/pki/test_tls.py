from pathlib import Path

import pytest

from keylime.config.loader import load_settings
from keylime.config.settings import Settings
from keylime.errors import ConfigError
from keylime.pki.tls import resolve_tls_files

WORK = Path("/srv/keylime")


def settings(component: str, **options: str) -> Settings:
    environ = {f"KEYLIME_{component.upper()}_{name.upper()}": value for name, value in options.items()}
    nowhere = Path("/nonexistent")
    return load_settings(component, environ=environ, etc=nowhere, usr_etc=nowhere)


def test_a_verifier_generates_in_its_own_directory_by_default() -> None:
    files = resolve_tls_files(settings("verifier"), "verifier", WORK)
    assert files.generate
    assert files.directory == WORK / "cv_ca"
    assert files.server is not None
    assert files.client is not None
    assert files.server.certificate == WORK / "cv_ca" / "server-cert.crt"
    assert files.server.key == WORK / "cv_ca" / "server-private.pem"
    assert files.client.certificate == WORK / "cv_ca" / "client-cert.crt"
    assert files.client.key == WORK / "cv_ca" / "client-private.pem"
    assert files.server.trusted == files.client.trusted == (WORK / "cv_ca" / "cacert.crt",)
    assert files.warnings == ()


def test_a_registrar_of_its_own_ca_still_trusts_the_verifiers_clients() -> None:
    files = resolve_tls_files(settings("registrar", tls_dir="generate"), "registrar", WORK)
    assert files.directory == WORK / "reg_ca"
    assert files.client is None
    assert files.server is not None
    assert files.server.certificate == WORK / "reg_ca" / "server-cert.crt"
    assert files.server.trusted == (WORK / "cv_ca" / "cacert.crt",)


@pytest.mark.parametrize("component", ["registrar", "tenant"])
def test_registrar_and_tenant_share_the_verifiers_directory_by_default(component: str) -> None:
    files = resolve_tls_files(settings(component), component, WORK)
    assert not files.generate
    assert files.directory == WORK / "cv_ca"


def test_an_agent_keeps_its_certificate_in_the_working_directory() -> None:
    files = resolve_tls_files(settings("agent"), "agent", WORK)
    assert files.server is not None
    assert files.server.certificate == WORK / "server-cert.crt"
    assert files.server.trusted == (WORK / "cv_ca" / "cacert.crt",)
    assert files.client is None


def test_relative_names_are_relative_to_their_directory() -> None:
    chosen = settings(
        "tenant",
        tls_dir="tls",
        client_cert="me.crt",
        client_key="/keys/me.pem",
        client_key_password="blue",  # noqa: S106 - a test password
        trusted_server_ca="['a.pem', '/ca/b.pem']",
    )
    files = resolve_tls_files(chosen, "tenant", WORK)
    assert files.client is not None
    assert files.client.certificate == WORK / "tls" / "me.crt"
    assert files.client.key == Path("/keys/me.pem")
    assert files.client.trusted == (WORK / "tls" / "a.pem", Path("/ca/b.pem"))
    assert files.client.key_password == "blue"  # noqa: S105 - a test password
    assert "blue" not in repr(files)


def test_generate_does_not_go_with_configured_files() -> None:
    chosen = settings("verifier", tls_dir="generate", server_key="my.pem", trusted_server_ca="['x']")
    with pytest.raises(ConfigError, match="needs server_key, trusted_server_ca to be `default`"):
        resolve_tls_files(chosen, "verifier", WORK)


@pytest.mark.parametrize("component", ["agent", "tenant"])
def test_only_servers_generate(component: str) -> None:
    with pytest.raises(ConfigError, match="verifier and registrar only"):
        resolve_tls_files(settings(component, tls_dir="generate"), component, WORK)


def test_all_switches_verification_off_with_a_warning() -> None:
    files = resolve_tls_files(settings("tenant", trusted_server_ca="all"), "tenant", WORK)
    assert files.client is not None
    assert not files.client.verify_peer
    assert "trusted_server_ca = all" in files.warnings[0]


def test_all_is_no_choice_for_an_agent() -> None:
    with pytest.raises(ConfigError, match="trusted_client_ca = all"):
        resolve_tls_files(settings("agent", trusted_client_ca="all"), "agent", WORK)


def test_a_keyword_among_files_is_refused() -> None:
    with pytest.raises(ConfigError, match="stand alone"):
        resolve_tls_files(settings("tenant", trusted_server_ca="['all', 'x.pem']"), "tenant", WORK)


def test_an_empty_list_trusts_nobody_and_says_so() -> None:
    files = resolve_tls_files(settings("tenant", trusted_server_ca="[]"), "tenant", WORK)
    assert files.client is not None
    assert files.client.trusted == ()
    assert files.client.verify_peer
    assert "no certificate authority is trusted" in files.warnings[0]
