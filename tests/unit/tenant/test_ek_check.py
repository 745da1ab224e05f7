import asyncio
import base64
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from keylime.identifiers import AgentId
from keylime.messages.registrar import RegisteredAgent
from keylime.tpm.default_ek import default_ek
from keylime_tenant.arguments import Arguments
from keylime_tenant.config import EkRules
from keylime_tenant.ek_check import EkCheck
from keylime_tenant.enrolment import Candidate, make_candidate
from keylime_tenant.errors import AgentRejected, CommandFailed
from tests.captures import CA_DIRECTORY, capture
from tests.fakes.hostile_der import encoded
from tests.fakes.vendor_certificates import EK_KEY, Parts, ek_certificate, extension

CAPTURE = capture("direct-critical-data-4banks")
RULES = EkRules(require_certificate=True, certificate_store=CA_DIRECTORY, script="")


@pytest.fixture
def candidate() -> Candidate:
    record = {
        "agent_id": "node1",
        "ek_tpm": base64.b64encode(CAPTURE.ek_public("rsa")).decode(),
        "ekcert": base64.b64encode(CAPTURE.ek_certificate).decode(),
        "aik_tpm": base64.b64encode(CAPTURE.ak_public("ecdsa")).decode(),
        "ip": "192.0.2.7",
        "port": 9002,
        "mtls_cert": "-----BEGIN CERTIFICATE-----\n...",
        "regcount": 1,
    }
    return make_candidate(AgentId("node1"), msgspec.convert(record, RegisteredAgent), Arguments())


def check(rules: EkRules, candidate: Candidate, work_dir: Path = Path("/")) -> tuple[str, ...]:
    return asyncio.run(EkCheck(rules, work_dir, {"PATH": "/usr/bin:/bin"})(candidate))


def script_in(directory: Path, text: str) -> EkRules:
    path = directory / "check.sh"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return EkRules(require_certificate=False, certificate_store=Path("/store"), script="check.sh")


def test_a_certificate_of_a_trusted_maker_for_this_very_key_is_accepted(candidate: Candidate) -> None:
    check(RULES, candidate)


def test_a_certificate_of_an_unknown_maker_is_refused(candidate: Candidate, tmp_path: Path) -> None:
    with pytest.raises(AgentRejected, match="Invalid EK certificate of agent node1") as refused:
        check(replace(RULES, certificate_store=tmp_path), candidate)
    for words in (
        "tpm_cert_store",
        "'CN=swtpm-localca'",
        f"keylime_ca import-vendor FILE --store {tmp_path}",
    ):
        assert words in str(refused.value)


def test_a_broken_file_in_the_store_is_warned_of_and_stops_no_enrolment(
    candidate: Candidate, tmp_path: Path
) -> None:
    for path in RULES.certificate_store.glob("*.pem"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.pem").write_text("hello")
    (warning,) = check(replace(RULES, certificate_store=tmp_path), candidate)
    assert "broken.pem" in warning


def test_the_address_of_the_issuers_certificate_is_told(candidate: Candidate, tmp_path: Path) -> None:
    access = encoded(0x30, encoded(0x06, bytes.fromhex("2b06010505073002")) + encoded(0x86, b"http://ca/1"))
    issued = ek_certificate(Parts(extensions=(extension("2b06010505070101", encoded(0x30, access)),)))
    other = replace(
        candidate,
        ek_tpm=base64.b64encode(default_ek(EK_KEY.public_key())).decode(),
        ek_certificate=base64.b64encode(issued).decode(),
    )
    with pytest.raises(AgentRejected, match=r"'http://ca/1': `keylime_tenant -c trust-issuer -u node1`"):
        check(replace(RULES, certificate_store=tmp_path), other)


def test_the_certificate_of_another_key_is_refused(candidate: Candidate) -> None:
    other = base64.b64encode(CAPTURE.ek_public("ecc")).decode()
    with pytest.raises(AgentRejected, match="another key"):
        check(RULES, replace(candidate, ek_tpm=other))


@pytest.mark.parametrize("certificate", [None, "", "!!", "AAAA"])
def test_a_missing_or_broken_certificate_is_refused(candidate: Candidate, certificate: str | None) -> None:
    with pytest.raises(AgentRejected, match="EK certificate"):
        check(RULES, replace(candidate, ek_certificate=certificate))


def test_a_registered_key_that_is_no_ek_is_refused_even_when_no_certificate_is_asked(
    candidate: Candidate,
) -> None:
    rules = replace(RULES, require_certificate=False)
    with pytest.raises(AgentRejected, match="registered EK"):
        check(rules, replace(candidate, ek_tpm=candidate.ak_tpm))


def test_no_check_at_all_is_told(candidate: Candidate) -> None:
    (warning,) = check(replace(RULES, require_certificate=False), candidate)
    assert "require_ek_cert" in warning


def test_the_program_sees_the_key_and_decides(candidate: Candidate, tmp_path: Path) -> None:
    rules = script_in(
        tmp_path,
        'test "$AGENT_UUID" = node1 && test -n "$EK_CERT" && test -n "$EK_TPM" && test "$PROVKEYS" = "{}" &&'
        ' test "$TPM_CERT_STORE" = /store && echo "$EK" | grep -q "BEGIN PUBLIC KEY" && test "$PWD" = '
        f'"{tmp_path}"',
    )
    assert check(rules, candidate, tmp_path) == ()


def test_a_program_that_fails_refuses_the_agent(candidate: Candidate, tmp_path: Path) -> None:
    # The beginning is what monitors of existing installations match, after " - ERROR - ".
    with pytest.raises(
        AgentRejected, match=r"^External check script failed to validate EK of agent node1: .* ended with 3$"
    ):
        check(script_in(tmp_path, "exit 3"), candidate, tmp_path)


def test_a_program_that_cannot_be_started_never_accepts(candidate: Candidate, tmp_path: Path) -> None:
    rules = EkRules(require_certificate=False, certificate_store=tmp_path, script="gone.sh")
    with pytest.raises(CommandFailed, match=r"ek_check_script: No such file or directory: .*gone\.sh"):
        check(rules, candidate, tmp_path)


def test_the_program_does_not_replace_the_certificate_check(candidate: Candidate, tmp_path: Path) -> None:
    rules = replace(script_in(tmp_path, "exit 0"), require_certificate=True, certificate_store=tmp_path)
    with pytest.raises(AgentRejected, match="Invalid EK certificate"):
        check(rules, candidate, tmp_path)
