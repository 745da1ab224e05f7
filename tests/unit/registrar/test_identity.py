"""Which registrations get a challenge, and which are refused, broken link by broken link."""

import copy
import dataclasses
import functools
import hashlib
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from keylime.hashes import HashAlgorithm
from keylime.identifiers import AgentId
from keylime.pki.der import read_certificate
from keylime.tpm.keys import SignatureScheme
from keylime_registrar.identity import (
    Certification,
    IdentityChanged,
    IdentityDemand,
    Registration,
    RegistrationRefused,
    check_unchanged,
    hash_tag,
)
from tests.fakes.challenged import challenge
from tests.fakes.software_ak import AK_ATTRIBUTES, SoftwareAk, pcr_selection, quote_attest
from tests.fakes.software_identity import SoftwareIdentity, b64, certify, certify_attest, name_of
from tests.fakes.tls_material import Authority

AGENT = AgentId("d432fbb3-d2f1-4a97-9ef7-75bd81c0aaaa")
QUALIFIED = hashlib.sha256(AGENT.encode()).digest()
SECRET = b"Bte1ioEt41Bv5lqHCgR07ArL5wAAhGoY"
VENDOR = Authority("TPM vendor")
ANCHORS = [read_certificate(VENDOR.certificate.public_bytes(Encoding.DER))]
ANY = IdentityDemand.EK_CERT_OR_IAK_IDEVID


@functools.cache
def machine(number: int) -> SoftwareIdentity:
    return SoftwareIdentity()


@functools.cache
def device_keys(number: int) -> tuple[SoftwareAk, SoftwareAk]:
    """IAK and IDevID of a machine."""
    return tuple(SoftwareAk.generate("rsa2048", SignatureScheme.RSAPSS) for _ in range(2))  # type: ignore[return-value]


def registration(number: int = 0, /, **changes: Any) -> Registration:
    plain = Registration(AGENT, machine(number).ek_public, machine(number).ak.tpm2b_public)
    return dataclasses.replace(plain, **changes)


def certificate_of(key: SoftwareAk, authority: Authority = VENDOR) -> bytes:
    public_key = key.private_key.public_key()
    assert isinstance(public_key, RSAPublicKey)
    return certify(authority, public_key, "device").public_bytes(Encoding.DER)


def with_device_identity(**changes: Any) -> Registration:
    iak, idevid = device_keys(0)
    fields: dict[str, Any] = {
        "iak_tpm": iak.tpm2b_public,
        "iak_cert": certificate_of(iak),
        "idevid_tpm": idevid.tpm2b_public,
        "idevid_cert": certificate_of(idevid),
    }
    return registration(**{**fields, **changes})


def certification(
    *,
    name: bytes | None = None,
    qualifying: bytes = QUALIFIED,
    signer: SoftwareAk | None = None,
    **attest: int,
) -> Certification:
    attested = certify_attest(name or name_of(machine(0).ak.tpm2b_public), qualifying, **attest)
    return Certification(attested, (signer or device_keys(0)[0]).sign(attested))


def signed(attest: bytes) -> Certification:
    return Certification(attest, device_keys(0)[0].sign(attest))


def judge(
    candidate: Registration, proof: Certification | None = None, demanded: IdentityDemand = ANY
) -> tuple[bytes, bytes]:
    made = challenge(candidate, proof, demanded=demanded, anchors=ANCHORS, secret=SECRET)
    return made.blob, made.tag_hash


def test_the_tpm_of_the_registration_opens_the_credential_and_its_tag_fits() -> None:
    blob, tag_hash = judge(registration())
    assert machine(0).open(blob) == SECRET
    assert hash_tag(machine(0).answer(b64(blob), AGENT)) == tag_hash


def test_another_tpm_cannot_open_the_credential() -> None:
    blob, _ = judge(registration())
    with pytest.raises(ValueError, match=r"credential|[Dd]ecrypt"):
        machine(1).open(blob)


def test_an_ak_of_another_tpm_gets_a_credential_that_this_tpm_cannot_use() -> None:
    blob, _ = judge(registration(aik_tpm=machine(1).ak.tpm2b_public))
    with pytest.raises(ValueError, match="another key"):
        machine(0).open(blob)


def test_an_ek_that_is_not_the_one_in_its_certificate_is_refused() -> None:
    certificate = machine(1).ek_certificate(VENDOR)
    with pytest.raises(RegistrationRefused, match="ek_tpm is not the key in ekcert"):
        judge(registration(ekcert=certificate))


def test_an_ek_with_its_own_certificate_is_accepted_whoever_issued_it() -> None:
    judge(registration(ekcert=machine(0).ek_certificate(Authority("nobody"))))


@pytest.mark.parametrize(
    ("cleared", "name"),
    [
        (1 << 16, "restricted"),
        (1 << 18, "sign"),
        (1 << 1, "fixedTPM"),
        (1 << 4, "fixedParent"),
        (1 << 5, "sensitiveDataOrigin"),
        (1 << 6, "userWithAuth"),
    ],
)
def test_an_ak_that_lacks_an_attribute_is_refused_and_the_attribute_named(cleared: int, name: str) -> None:
    weak = dataclasses.replace(machine(0).ak, attributes=AK_ATTRIBUTES & ~cleared)
    with pytest.raises(RegistrationRefused, match=name):
        judge(registration(aik_tpm=weak.tpm2b_public))


def test_an_ak_that_decrypts_is_refused() -> None:
    weak = dataclasses.replace(machine(0).ak, attributes=AK_ATTRIBUTES | 1 << 17)
    with pytest.raises(RegistrationRefused, match="decrypt"):
        judge(registration(aik_tpm=weak.tpm2b_public))


@pytest.mark.parametrize("field", ["ek_tpm", "aik_tpm"])
def test_bytes_that_are_no_key_are_refused(field: str) -> None:
    for data in (b"", b"\x00", b"\xff" * 300, machine(0).ek_public[:-1], machine(0).ek_public + b"\0"):
        with pytest.raises(RegistrationRefused):
            judge(registration(**{field: data}))


def test_ek_and_ak_do_not_stand_in_for_each_other() -> None:
    ek, ak = machine(0).ek_public, machine(0).ak.tpm2b_public
    with pytest.raises(RegistrationRefused):
        judge(registration(aik_tpm=ek))
    with pytest.raises(RegistrationRefused):
        judge(registration(ek_tpm=ak))


def test_an_id_in_the_form_of_an_ek_hash_must_be_the_hash_of_this_ek() -> None:
    own = AgentId(hashlib.sha256(machine(0).ek_pem.encode()).hexdigest())
    judge(registration(agent_id=own))
    with pytest.raises(RegistrationRefused, match="hash"):
        judge(registration(1, agent_id=own))


@pytest.mark.parametrize("qualifying", [hashlib.sha256(AGENT.encode()).digest(), AGENT.encode()])
def test_a_device_identity_bound_to_the_ak_is_accepted_with_either_qualification(qualifying: bytes) -> None:
    judge(with_device_identity(), certification(qualifying=qualifying), IdentityDemand.IAK_IDEVID)


def test_a_devices_maker_may_be_named_with_other_capitals_and_blanks() -> None:
    vendor = copy.copy(VENDOR)
    vendor.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tpm  VENDOR")])
    named = {
        field: certificate_of(key, vendor)
        for field, key in zip(("iak_cert", "idevid_cert"), device_keys(0), strict=True)
    }
    judge(with_device_identity(**named), certification(), IdentityDemand.IAK_IDEVID)


REFUSED_CERTIFICATIONS = {
    "none at all": lambda: None,
    "for another id": lambda: certification(qualifying=hashlib.sha256(b"other").digest()),
    "without qualification": lambda: certification(qualifying=b""),
    "of another AK": lambda: certification(name=name_of(machine(1).ak.tpm2b_public)),
    "signed by another IAK": lambda: certification(signer=device_keys(1)[0]),
    "signed by the IDevID": lambda: certification(signer=device_keys(0)[1]),
    "not made by a TPM": lambda: certification(magic=0xFF544346),
    "of another type": lambda: certification(kind=0x8018),
    "a quote in its place": lambda: signed(
        quote_attest(nonce=QUALIFIED, selections=[pcr_selection(0x000B, [0])], digest=bytes(32))
    ),
    "random": lambda: Certification(bytes(100), bytes(70)),
    "empty": lambda: Certification(b"", b""),
    "with a truncated signature": lambda: dataclasses.replace(
        certification(), signature=certification().signature[:-1]
    ),
}


@pytest.mark.parametrize("name", REFUSED_CERTIFICATIONS)
def test_an_iak_that_did_not_certify_this_ak_is_refused(name: str) -> None:
    with pytest.raises(RegistrationRefused):
        judge(with_device_identity(), REFUSED_CERTIFICATIONS[name]())  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("field", ["iak_tpm", "iak_cert", "idevid_tpm", "idevid_cert"])
def test_half_a_device_identity_is_refused(field: str) -> None:
    with pytest.raises(RegistrationRefused, match="need each other"):
        judge(with_device_identity(**{field: None}), certification())


@pytest.mark.parametrize(("field", "position"), [("iak_cert", 0), ("idevid_cert", 1)])
def test_a_device_certificate_of_another_key_or_issuer_is_refused(field: str, position: int) -> None:
    other_key = certificate_of(device_keys(1)[position])
    with pytest.raises(RegistrationRefused, match="is not the key in"):
        judge(with_device_identity(**{field: other_key}), certification())
    other_issuer = certificate_of(device_keys(0)[position], Authority("TPM vendor"))
    with pytest.raises(RegistrationRefused, match="not issued by"):
        judge(with_device_identity(**{field: other_issuer}), certification())


def test_the_operators_demand_for_an_identity_is_met_or_the_registration_refused() -> None:
    with pytest.raises(RegistrationRefused, match="EK certificate"):
        judge(registration(), demanded=IdentityDemand.EK_CERT)
    with pytest.raises(RegistrationRefused, match="IAK"):
        judge(registration(), demanded=IdentityDemand.IAK_IDEVID)
    judge(registration(ekcert=machine(0).ek_certificate(VENDOR)), demanded=IdentityDemand.EK_CERT)


@pytest.mark.parametrize("field", ["ek_tpm", "aik_tpm", "ekcert"])
def test_an_active_agents_tpm_identity_cannot_change(field: str) -> None:
    active = registration(ekcert=b"certificate")
    changes: Any = {field: b"other"}
    with pytest.raises(IdentityChanged, match=field):
        check_unchanged(dataclasses.replace(active, **changes), active)
    if field == "ekcert":
        with pytest.raises(IdentityChanged):
            check_unchanged(dataclasses.replace(active, ekcert=None), active)


def test_contact_and_what_was_missing_may_be_added_to_an_active_agent() -> None:
    active = registration()
    check_unchanged(registration(ekcert=b"new", ip="10.0.0.1", port=1, mtls_cert="disabled"), active)


def test_a_sha1_name_is_no_ak() -> None:
    public = machine(0).ak.tpm2b_public
    sha1 = public[:4] + HashAlgorithm.SHA1.to_bytes(2, "big") + public[6:]
    with pytest.raises(RegistrationRefused):
        judge(registration(aik_tpm=sha1))
