"""Registrations as agents of the last years send them: taken, or refused with field and reason."""

import base64
import json
from typing import Any

import pytest

from keylime.identifiers import AgentId
from keylime.messages.envelope import parse_body
from keylime.messages.registrar import RegisterRequest
from keylime.tpm.credential import activation_tag
from keylime.tpm.sealing import make_credential
from keylime_registrar.identity import ChallengedTpm, IdentityDemand, RegistrationRefused, judge
from keylime_registrar.submission import Submission, read_submission
from tests.captures import DATA

AGENT = AgentId("d432fbb3-d2f1-4a97-9ef7-75bd81c000aa")
SHA256, SHA1, RSASSA = b"\x00\x0b", b"\x00\x04", b"\x00\x14"
ECSCHNORR = b"\x00\x1c"


def body(name: str) -> dict[str, Any]:
    text = (DATA / "registrations" / f"register-{name}.json").read_text()
    content: dict[str, Any] = json.loads(text)
    return content


def read(content: dict[str, Any]) -> Submission:
    return read_submission(AGENT, parse_body(json.dumps(content).encode(), RegisterRequest))


def judged(
    content: dict[str, Any], demanded: IdentityDemand = IdentityDemand.EK_CERT_OR_IAK_IDEVID
) -> ChallengedTpm:
    submission = read(content)
    return judge(
        submission.registration,
        submission.certificates,
        submission.certification,
        demanded=demanded,
        load_anchors=tuple,
    )


@pytest.mark.parametrize("name", ["python-6.x-with-ekcert", "python-6.x-emulator", "rust-0.2.9-serial-0"])
def test_what_agents_of_the_field_send_is_taken(name: str) -> None:
    tpm = judged(body(name))
    assert make_credential(tpm.ek, tpm.ak_name, b"a secret")
    assert activation_tag(b"a secret", AGENT)


def test_an_ek_that_is_left_out_follows_from_its_certificate() -> None:
    full = body("rust-0.2.9-serial-0")  # the same TPM
    derived = read(body("python-6.x-with-ekcert")).registration
    assert derived.ek_tpm == base64.b64decode(full["ek_tpm"])
    assert derived.ekcert is not None


def test_the_word_emulator_is_no_certificate() -> None:
    assert read(body("python-6.x-emulator")).registration.ekcert is None
    with pytest.raises(RegistrationRefused, match="ekcert is missing"):
        judged(body("python-6.x-emulator"), IdentityDemand.EK_CERT)
    with pytest.raises(RegistrationRefused, match="ek_tpm is missing, and there is no ekcert"):
        read({**body("python-6.x-emulator"), "ek_tpm": None})


def test_a_name_made_with_sha1_is_refused_with_field_and_reason() -> None:
    with pytest.raises(RegistrationRefused, match=r"aik_tpm: AK has name algorithm sha1.*can have one name"):
        judged(body("rust-hash-sha1"))


def test_a_scheme_that_nobody_can_check_is_refused_with_field_and_name() -> None:
    content = body("rust-0.2.9-serial-0")
    public = base64.b64decode(content["aik_tpm"])
    content["aik_tpm"] = base64.b64encode(public.replace(RSASSA + SHA256, ECSCHNORR + SHA256, 1)).decode()
    with pytest.raises(RegistrationRefused, match=r"aik_tpm: AK has signature scheme ecschnorr \(0x001c\)"):
        judged(content)


@pytest.mark.parametrize("field", ["ek_tpm", "aik_tpm", "ekcert", "mtls_cert", "ip", "port", "iak_tpm"])
@pytest.mark.parametrize("value", ["AAAA", "?", "x" * 70_000, "-----BEGIN CERTIFICATE-----"])
def test_every_refusal_names_the_field(field: str, value: str) -> None:
    content = {**body("rust-0.2.9-serial-0"), field: value}
    if (field, value) == ("ip", "AAAA"):
        return  # a host name
    with pytest.raises(RegistrationRefused, match=field if field != "iak_tpm" else "iak_"):
        judged(content)
