"""The fields of a registration: which texts are read, and which are refused."""

import base64
import functools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.errors import MalformedMessage
from keylime.identifiers import AgentId
from keylime.messages.envelope import parse_body
from keylime.messages.registrar import RegisterRequest
from keylime_registrar.identity import Certification, RegistrationRefused
from keylime_registrar.submission import Submission, read_submission
from tests.fakes.hostile_der import SHAPES
from tests.fakes.software_identity import SoftwareIdentity, b64
from tests.fakes.tls_material import Authority, self_signed

AGENT = AgentId("agent-1")
VENDOR = Authority("vendor")


@functools.cache
def machine() -> SoftwareIdentity:
    return SoftwareIdentity()


def read(**fields: object) -> Submission:
    return read_submission(AGENT, msgspec.convert(machine().registration(**fields), RegisterRequest))


def test_keys_are_read_from_base64_and_from_hexadecimal() -> None:
    public = machine().ek_public
    for text in (b64(public), public.hex(), "0x" + public.hex(), public.hex().upper()):
        assert read(ek_tpm=text).registration.ek_tpm == public


@pytest.mark.parametrize("absent", [None, ""])
def test_null_and_empty_fields_are_absent(absent: str | None) -> None:
    registration = read(
        ekcert=absent, ip=absent, port=absent, mtls_cert=absent, iak_tpm=absent, iak_cert=absent
    ).registration
    assert (registration.ekcert, registration.ip, registration.port) == (None, None, None)
    assert (registration.mtls_cert, registration.iak_tpm, registration.iak_cert) == (None, None, None)


@pytest.mark.parametrize("field", ["ek_tpm", "aik_tpm"])
@pytest.mark.parametrize("value", [None, "", "!", "AAA", "AA==\n", "0x1", "\ud800", "А"])  # noqa: RUF001
def test_keys_that_are_missing_or_unreadable_are_refused(field: str, value: str | None) -> None:
    with pytest.raises(RegistrationRefused, match=field):
        read(**{field: value})


def test_the_first_certificate_of_a_pem_chain_is_the_eks() -> None:
    der = machine().ek_certificate(VENDOR)
    lines = "\n".join(base64.encodebytes(der).decode().splitlines())
    pem = f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"
    other = VENDOR.issue("intermediate").pem
    assert read(ekcert=pem + other).registration.ekcert == der
    assert read(ekcert=b64(der)).registration.ekcert == der


@pytest.mark.parametrize(
    "text",
    [
        "emulators",
        "AAAA",
        "-----BEGIN CERTIFICATE-----",
        "-----BEGIN X-----\nAA==\n-----END X-----",
        "x" * 100_000,
    ],
)
def test_what_is_no_certificate_is_refused(text: str) -> None:
    with pytest.raises(RegistrationRefused, match="ekcert"):
        read(ekcert=text)


def test_a_certificate_followed_by_padding_is_kept_and_reported() -> None:
    padded = machine().ek_certificate(VENDOR) + bytes(20)
    submission = read(ekcert=b64(padded))
    assert submission.registration.ekcert == padded
    assert submission.certificates.irregular == ("ekcert",)


def test_the_agents_own_certificate_is_stored_as_pem_whatever_form_it_came_in() -> None:
    own = self_signed("agent-1")
    assert read(mtls_cert=own.pem).registration.mtls_cert == own.pem
    assert read(mtls_cert=b64(own.der)).registration.mtls_cert == own.pem
    assert read(mtls_cert="disabled").registration.mtls_cert == "disabled"


@pytest.mark.parametrize(
    "text", ["Disabled", "-----BEGIN CERTIFICATE-----\nAA\n", "AA==", "\ud800-----BEGIN"]
)
def test_an_unreadable_own_certificate_is_refused(text: str) -> None:
    with pytest.raises(RegistrationRefused, match="mtls_cert"):
        read(mtls_cert=text)


@pytest.mark.parametrize(
    "host", ["10.0.0.1", "2001:db8::1", "[2001:db8::1]", "node-1.example.org", "fe80::1%eth0"]
)
def test_addresses_and_names_are_contacts(host: str) -> None:
    assert read(ip=host).registration.ip == host


@pytest.mark.parametrize(
    "host", ["a b", "a/b", "x@y", "a\nb", "-x", "http://x", "a:b", "é", "x" * 300, "a?b", "#"]
)
def test_other_contacts_are_refused(host: str) -> None:
    with pytest.raises(RegistrationRefused, match="ip"):
        read(ip=host)


@pytest.mark.parametrize("port", [1, "9002", 65535])
def test_a_port_is_a_number_or_its_text(port: int | str) -> None:
    assert read(port=port).registration.port == int(port)


@pytest.mark.parametrize("port", [0, -1, 65536, 10**30, "x", "9002 ", "\u0661", "-1", "99999"])
def test_other_ports_are_refused(port: int | str) -> None:
    with pytest.raises(RegistrationRefused, match="port"):
        read(port=port)


def test_a_certification_needs_both_parts() -> None:
    assert read(iak_attest="AAEC/w==").certification is None
    assert read(iak_attest="AAEC/w==", iak_sign="0a0b").certification == Certification(b"\0\1\2\xff", b"\n\v")


@given(
    st.dictionaries(
        st.sampled_from(RegisterRequest.__struct_fields__),
        st.none()
        | st.text(max_size=40)
        | st.binary(max_size=60).map(b64)
        | st.integers()
        | st.lists(st.none()),
    )
)
def test_any_fields_are_read_or_refused(fields: dict[str, object]) -> None:
    try:
        request = parse_body(msgspec.json.encode(fields), RegisterRequest)
        read_submission(AGENT, request)
    except (RegistrationRefused, MalformedMessage):
        pass


@pytest.mark.parametrize("name", ["ek_tpm", "aik_tpm", "iak_tpm", "idevid_tpm", "iak_attest", "iak_sign"])
def test_r8_a_structure_larger_than_any_tpm_makes_is_not_read(name: str) -> None:
    with pytest.raises(RegistrationRefused, match=rf"^{name} has 8196 characters, at most 8192 are read"):
        read(**{name: "AAAA" * 2049})


@pytest.mark.parametrize("name", ["ekcert", "iak_cert", "idevid_cert"])
def test_r4_a_certificate_larger_than_any_vendors_is_not_read(name: str) -> None:
    with pytest.raises(RegistrationRefused, match=rf"^{name}: a certificate of more than 8192 bytes"):
        read(**{name: b64(SHAPES["one large key"](9000))})
    with pytest.raises(RegistrationRefused, match=rf"^{name} has 40000 characters"):
        read(**{name: "AAAA" * 10_000})
    with pytest.raises(RegistrationRefused, match=rf"^{name}: .*more than 640 ASN.1 elements"):
        read(**{name: b64(SHAPES["deep and indefinite"](8000))})


def test_r4_a_chain_may_be_long_since_its_first_certificate_counts() -> None:
    der = machine().ek_certificate(VENDOR)
    block = f"-----BEGIN CERTIFICATE-----\n{b64(der)}\n-----END CERTIFICATE-----\n"
    assert read(ekcert=block * 100).registration.ekcert == der
    with pytest.raises(RegistrationRefused, match="mtls_cert has"):
        read(mtls_cert=block * 100)
