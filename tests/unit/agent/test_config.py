from pathlib import Path

import pytest

from keylime.config.loader import load_settings
from keylime.errors import ConfigError
from keylime.hashes import HashAlgorithm
from keylime.tpm.device_key_templates import DEVICE_KEY_KINDS
from keylime_agent.config import AgentConfig, agent_config, contact_remark
from keylime_agent.device_identity import DeviceKeyOptions
from keylime_agent.privileges import find_account


def config(tmp_path: Path, snippet: str = "", **environ: str) -> AgentConfig:
    (tmp_path / "agent.conf.d").mkdir(mode=0o700)
    file = tmp_path / "agent.conf.d" / "agent.conf"
    file.write_text(snippet)
    file.chmod(0o600)
    environ = {"KEYLIME_DIR": "/var/lib/agent"} | environ
    settings = load_settings("agent", environ=environ, etc=tmp_path, usr_etc=tmp_path / "none")
    return agent_config(settings, environ)


def test_the_defaults_are_those_of_the_table(tmp_path: Path) -> None:
    agent = config(tmp_path)
    assert agent.tls is not None
    assert agent.tls.trusted_clients == (Path("/var/lib/agent/cv_ca/cacert.crt"),)
    assert agent.tls.certificate == Path("/var/lib/agent/server-cert.crt")
    assert agent.tls.key == Path("/var/lib/agent/server-private.pem")
    assert agent.data_path == Path("/var/lib/agent/agent_data.json")
    assert agent.ima_path == Path("/sys/kernel/security/ima/ascii_runtime_measurements")
    assert agent.boot_log_path == Path("/sys/kernel/security/tpm0/binary_bios_measurements")
    assert agent.algorithms.hash_alg is HashAlgorithm.SHA256
    assert agent.publishers == (("127.0.0.1", 8992),)
    assert agent.payload.script_limit_s == 600
    assert agent.actions.directory == Path("/usr/libexec/keylime")
    assert agent.revocation_certificate is None
    assert agent.payload.measure_pcr is None
    assert agent.run_as == "keylime:tss"


@pytest.mark.parametrize(
    "snippet",
    [
        '[agent]\nuuid = "d111ec46-34d8-41af-ad56-d560bc97b2e8"\nregistrar_ip = "10.0.0.1"\n',
        "[agent]\nuuid = d111ec46-34d8-41af-ad56-d560bc97b2e8\nregistrar_ip = 10.0.0.1\n",
        'uuid = d111ec46-34d8-41af-ad56-d560bc97b2e8\nregistrar_ip = "10.0.0.1"\n',
    ],
)
def test_snippets_of_all_agent_lines_are_read(tmp_path: Path, snippet: str) -> None:
    agent = config(tmp_path, snippet)
    assert (agent.uuid, agent.registrar_ip) == ("d111ec46-34d8-41af-ad56-d560bc97b2e8", "10.0.0.1")


def test_relative_paths_have_their_own_roots(tmp_path: Path) -> None:
    agent = config(
        tmp_path,
        "[agent]\ntrusted_client_ca = a.crt, /b.crt\nima_ml_path = tmp/ima\nrevocation_cert = r.crt\n"
        "tls_dir = tls\nagent_data_path = \nrevocation_actions = [a, 'b.sh']\n",
    )
    assert agent.tls is not None
    assert agent.tls.trusted_clients == (Path("/var/lib/agent/a.crt"), Path("/b.crt"))
    assert agent.tls.key == Path("/var/lib/agent/tls/server-private.pem")
    assert agent.ima_path == Path("/tmp/ima")  # noqa: S108
    assert agent.revocation_certificate == Path("/var/lib/agent/r.crt")
    assert agent.data_path is None
    assert agent.actions.configured == ("a", "b.sh")


@pytest.mark.parametrize(
    ("value", "addresses"),
    [
        ("10.0.0.1", ["10.0.0.1"]),
        ('"10.0.0.1, fd00::1"', ["10.0.0.1", "fd00::1"]),
        ("['verifier-1.example', 'verifier-2.example']", ["verifier-1.example", "verifier-2.example"]),
        ("10.0.0.1 ,10.0.0.1", ["10.0.0.1"]),
    ],
)
def test_revocations_come_from_one_verifier_or_several(
    tmp_path: Path, value: str, addresses: list[str]
) -> None:
    snippet = f"[agent]\nrevocation_notification_ip = {value}\nrevocation_notification_port = 9000\n"
    agent = config(tmp_path, snippet)
    assert agent.publishers == tuple((address, 9000) for address in addresses)


@pytest.mark.parametrize(("value", "limit_s"), [("0", None), ("2.5", 2.5)])
def test_payload_scripts_may_run_as_long_as_the_operator_says(
    tmp_path: Path, value: str, limit_s: float | None
) -> None:
    assert config(tmp_path, f"payload_script_timeout = {value}\n").payload.script_limit_s == limit_s


def test_the_owner_password_may_be_bytes_in_hex_and_is_not_shown(tmp_path: Path) -> None:
    agent = config(tmp_path, KEYLIME_AGENT_TPM_OWNERPASSWORD="hex:00ff")
    assert agent.endorsement_auth == b"\x00\xff"
    assert "\\xff" not in repr(agent)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("registrar_ip", "<REMOTE_IP>"),
        ("trusted_client_ca", "all"),
        ("trusted_client_ca", "[]"),
        ("tpm_encryption_alg", "dsa"),
        ("tpm_signing_alg", "ecschnorr"),
        ("tpm_ownerpassword", "hex:xy"),
        ("payload_script", "a/b"),
        ("enc_keyname", ".."),
        ("dec_payload_file", ""),
        ("enable_agent_mtls", "false"),
        ("revocation_notification_ip", ""),
        ("revocation_notification_ip", "10.0.0.1, 10.0.0.999"),
        ("payload_script_timeout", "-1"),
        ("iak_idevid_template", "H-6"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(tmp_path: Path, option: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, f"[agent]\n{option} = {value}\n")
    assert option in str(caught.value)


def test_device_identity_is_off_unless_wanted(tmp_path: Path) -> None:
    assert config(tmp_path, "iak_idevid_template = H-5\niak_handle = x\n").device_identity is None


def test_device_identity_has_the_options_of_other_agents(tmp_path: Path) -> None:
    wanted = config(
        tmp_path,
        'enable_iak_idevid = true\niak_idevid_template = "H-3"\niak_cert = ""\n'
        'idevid_cert = "maker/one.pem"\n'
        'iak_handle = "0x81020001"\niak_password = "hex:00ff"\nidevid_handle = "8102000A"\n'
        'idevid_password = "word"\n',
    )
    identity = wanted.device_identity
    assert identity is not None
    assert identity.kind == DEVICE_KEY_KINDS["H-3"]
    assert identity.iak == DeviceKeyOptions(None, False, 0x81020001, b"\x00\xff")
    assert identity.idevid == DeviceKeyOptions(
        Path("/var/lib/agent/maker/one.pem"), True, 0x8102000A, b"word"
    )
    assert "word" not in repr(wanted)
    assert "\\xff" not in repr(wanted)


@pytest.mark.parametrize("template", ["", "default", "detect"])
def test_templates_are_detected_unless_named(tmp_path: Path, template: str) -> None:
    identity = config(tmp_path, f"enable_iak_idevid = on\niak_idevid_template = {template}\n").device_identity
    assert identity is not None
    assert identity.kind is None
    assert identity.iak == DeviceKeyOptions(Path("/var/lib/agent/iak-cert.crt"), False)


@pytest.mark.parametrize(
    ("family", "name_alg", "label"),
    [("rsa", "sha256", "rsa2048"), ("rsa", "sha384", "rsa3072"), ("ecc", "sha512", "ecc521")],
)
def test_a_manual_template_has_the_size_of_its_hash(
    tmp_path: Path, family: str, name_alg: str, label: str
) -> None:
    identity = config(
        tmp_path,
        f"enable_iak_idevid = 1\niak_idevid_template = manual\niak_idevid_asymmetric_alg = {family}\n"
        f"iak_idevid_name_alg = {name_alg}\n",
    ).device_identity
    assert identity is not None
    assert identity.kind is not None
    assert (identity.kind.label, identity.kind.name_alg.label) == (label, name_alg)


@pytest.mark.parametrize(
    ("option", "value", "also"),
    [
        ("iak_idevid_template", "H-5", ""),
        ("iak_idevid_asymmetric_alg", "dsa", "iak_idevid_template = manual"),
        ("iak_idevid_name_alg", "sha1", "iak_idevid_template = manual"),
        ("iak_idevid_name_alg", "md5", "iak_idevid_template = manual"),
        ("iak_handle", "0x40000001", ""),
        ("idevid_handle", "81010001x", ""),
        ("iak_password", "hex:0", ""),
    ],
)
def test_a_device_identity_that_cannot_be_is_named(
    tmp_path: Path, option: str, value: str, also: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        config(tmp_path, f"enable_iak_idevid = true\n{option} = {value}\n{also}\n")
    assert option in str(caught.value)


def test_plain_http_is_possible_where_no_payload_is_wanted(tmp_path: Path) -> None:
    agent = config(tmp_path, "[agent]\nenable_agent_mtls = false\npayload_script = \n")
    assert agent.tls is None
    assert not agent.payload.is_allowed


def test_accounts_are_found_by_name() -> None:
    assert find_account("") is None
    root = find_account("root")
    assert root is not None
    assert (root.uid, root.gid) == (0, 0)
    for text in ("no-such-user", "root:no-such-group"):
        with pytest.raises(ConfigError, match="run_as"):
            find_account(text)


@pytest.mark.parametrize("contact", ["", "contact_ip = 0.0.0.0\n", "contact_ip = ::1\n"])
def test_a_contact_that_others_cannot_use_is_remarked_on(tmp_path: Path, contact: str) -> None:
    remark = contact_remark(config(tmp_path, f"[agent]\nregistrar_ip = 192.0.2.1\n{contact}"))
    assert remark is not None
    assert "set contact_ip to an address of this machine" in remark
    assert "192.0.2.1" in remark


@pytest.mark.parametrize(
    "snippet",
    ["", "registrar_ip = ::1\n", "registrar_ip = 192.0.2.1\ncontact_ip = 192.0.2.2\n"],
)
def test_a_contact_for_whoever_asks_is_not_remarked_on(tmp_path: Path, snippet: str) -> None:
    assert contact_remark(config(tmp_path, f"[agent]\n{snippet}")) is None
