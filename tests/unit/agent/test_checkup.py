from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from keylime.checkup import Grade, Result
from keylime.config.loader import load_settings
from keylime.hashes import HashAlgorithm
from keylime_agent.checkup import (
    addresses,
    authority,
    boot_log,
    examine,
    ima,
    ima_policy,
    kernel,
    resource_manager,
)
from keylime_agent.config import AgentConfig, agent_config
from tests.fakes.tls_material import Authority


def config(tmp_path: Path, **options: str) -> AgentConfig:
    environ = {"KEYLIME_DIR": str(tmp_path), "KEYLIME_AGENT_CONFIG": str(tmp_path / "agent.conf")}
    environ |= {f"KEYLIME_AGENT_{name.upper()}": value for name, value in options.items()}
    (tmp_path / "agent.conf").write_text("[agent]\n")
    return agent_config(load_settings("agent", environ=environ), environ)


def grades(results: Sequence[Result]) -> dict[str, Grade]:
    return {one.subject: one.grade for one in results}


@pytest.mark.parametrize(
    ("contact", "registrar", "grade"),
    [
        ("127.0.0.1", "192.0.2.1", Grade.BAD),
        ("localhost", "192.0.2.1", Grade.BAD),
        ("0.0.0.0", "192.0.2.1", Grade.BAD),  # noqa: S104
        ("127.0.0.1", "127.0.0.1", Grade.WARNING),
        ("192.0.2.7", "192.0.2.1", Grade.OK),
        ("node1.example", "192.0.2.1", Grade.OK),
    ],
)
def test_an_agent_must_be_reached_where_it_says(
    tmp_path: Path, contact: str, registrar: str, grade: Grade
) -> None:
    found = list(addresses(config(tmp_path, contact_ip=contact, registrar_ip=registrar)))
    assert grades(found)["[agent] contact_ip"] is grade
    if grade is Grade.BAD:
        assert found[0].remedy.startswith("set it to the address")


@pytest.mark.parametrize(
    ("content", "grade", "told"),
    [
        (b"", Grade.BAD, "is empty"),
        (b"10 aa ima-ng sha256:bb boot_aggregate\n", Grade.WARNING, "no policy is in force"),
        (b"10 aa ima-ng sha256:bb boot_aggregate\n" * 3, Grade.OK, "has 3 entries"),
        (None, Grade.BAD, "No such file"),
    ],
)
def test_a_list_of_measurements_shows_whether_anything_is_measured(
    tmp_path: Path, content: bytes | None, grade: Grade, told: str
) -> None:
    path = tmp_path / "list"
    if content is not None:
        path.write_bytes(content)
    first = next(iter(ima(path, tmp_path / "policy", tmp_path / "cmdline")))
    assert (first.subject, first.grade) == ("IMA", grade)
    assert told in first.text
    assert grade is Grade.OK or first.remedy


@pytest.mark.parametrize(
    ("rules", "cmdline", "grade", "told"),
    [
        (
            "measure func=BPRM_CHECK\ndont_measure fsmagic=0x9fa0\n\n",
            "",
            Grade.OK,
            "2 rules, of which 1 measure",
        ),
        ("dont_measure fsmagic=0x9fa0\n", "", Grade.BAD, "1 rules, of which 0 measure"),
        ("measure func=BPRM_CHECK\n", "quiet ima_policy=tcb", Grade.OK, "(ima_policy=tcb)"),
        (None, "quiet ima_policy=tcb", Grade.UNKNOWN, "ima_policy=tcb; this kernel or user may not read"),
        (None, "quiet", Grade.UNKNOWN, "no ima_policy="),
    ],
)
def test_the_policy_of_the_kernel(
    tmp_path: Path, rules: str | None, cmdline: str, grade: Grade, told: str
) -> None:
    (tmp_path / "cmdline").write_text(cmdline)
    if rules is not None:
        (tmp_path / "policy").write_text(rules)
    found = ima_policy(tmp_path / "policy", tmp_path / "cmdline")
    assert found.grade is grade
    assert told in found.text


def test_a_boot_log_that_is_missing_or_empty_is_told_with_what_it_means(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert boot_log(path).grade is Grade.WARNING
    path.write_bytes(b"")
    assert "is empty" in boot_log(path).text
    path.write_bytes(bytes(100))
    assert boot_log(path).grade is Grade.OK


def test_the_ca_must_be_there_and_valid(tmp_path: Path) -> None:
    (missing,) = authority(config(tmp_path))
    assert missing.grade is Grade.BAD
    assert missing.text.count("cacert.crt") == 0
    assert "copy cv_ca/cacert.crt" in missing.remedy
    (tmp_path / "cv_ca").mkdir()
    path = tmp_path / "cv_ca" / "cacert.crt"
    path.write_bytes(Authority("CA").certificate.public_bytes(Encoding.PEM))
    (found,) = authority(config(tmp_path))
    assert found.grade is Grade.OK
    (insecure,) = authority(config(tmp_path, enable_agent_mtls="False", payload_script=""))
    assert insecure.grade is Grade.WARNING


def test_the_raw_device_is_warned_of() -> None:
    assert resource_manager("device:/dev/tpm0").grade is Grade.WARNING
    assert resource_manager("device:/dev/tpmrm0").grade is Grade.OK
    assert resource_manager("swtpm:path=/x").text == "left to swtpm"


def test_options_that_cannot_be_used_end_the_examination(tmp_path: Path) -> None:
    environ = {"KEYLIME_DIR": str(tmp_path), "KEYLIME_AGENT_PORT": "many"}
    (found,) = examine(environ)
    assert (found.subject, found.grade) == ("configuration", Grade.BAD)
    assert "port" in found.text


@pytest.mark.parametrize(
    ("release", "bank", "grade"),
    [
        ("4.18.0-553.el8_10.x86_64", HashAlgorithm.SHA256, Grade.WARNING),
        ("5.4.0-42-generic", HashAlgorithm.SHA384, Grade.WARNING),
        ("5.4.0-42-generic", HashAlgorithm.SHA1, Grade.OK),
        ("5.8.0", HashAlgorithm.SHA256, Grade.OK),
        ("6.1.0-37-amd64", HashAlgorithm.SHA256, Grade.OK),
        ("10.0", HashAlgorithm.SHA256, Grade.OK),
        ("of our own", HashAlgorithm.SHA256, Grade.OK),
    ],
)
def test_kernels_that_extend_a_padded_sha1_are_told(release: str, bank: HashAlgorithm, grade: Grade) -> None:
    found = kernel(release, bank)
    assert found.grade is grade
    assert release in found.text
    assert grade is Grade.OK or (bank.label in found.text and found.remedy == "use a later kernel")
