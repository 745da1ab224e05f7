import datetime as dt
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from keylime.errors import ConfigError
from keylime.pki.der import read_certificate
from keylime.pki.ek import EkVerdict, TrustStore, check_ek_certificate, trust_store
from keylime.pki.tpm_cert_store import load_trust_store
from keylime.pki.weak_keys import is_roca_modulus, key_weaknesses
from tests.captures import CA_DIRECTORY, CAPTURE_NAMES, VM_DEBIAN12

NOW = datetime(2027, 1, 1, tzinfo=UTC)
TCG_EK = x509.ObjectIdentifier("2.23.133.8.1")
KEYS = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("root", "intermediate", "ek", "other")}


def captured_ek(capture: str) -> rsa.RSAPublicKey:
    key = load_pem_public_key((VM_DEBIAN12 / capture / "ek_rsa.pem").read_bytes())
    assert isinstance(key, rsa.RSAPublicKey)
    return key


def captured_certificate(capture: str = "direct-efistub") -> bytes:
    return (VM_DEBIAN12 / capture / "nv_1c00002.der").read_bytes()


@pytest.mark.parametrize("capture", CAPTURE_NAMES)
def test_a_captured_ek_leads_to_the_root_in_the_store(capture: str) -> None:
    store = load_trust_store(CA_DIRECTORY)
    verdict = check_ek_certificate(captured_certificate(capture), captured_ek(capture), store, NOW)
    assert verdict == EkVerdict(
        trusted=True, chain=("CN=unknown", "CN=swtpm-localca", "CN=swtpm-localca-rootca")
    )


def test_an_intermediate_alone_is_an_anchor_but_a_root_alone_does_not_reach_the_ek() -> None:
    def check(name: str) -> EkVerdict:
        store = trust_store(
            [read_certificate(x509_der(CA_DIRECTORY / name))],
        )
        return check_ek_certificate(captured_certificate(), captured_ek("direct-efistub"), store, NOW)

    assert check("issuercert.pem").trusted
    refused = check("swtpm-localca-rootca-cert.pem")
    assert not refused.trusted
    assert "no certificate in the TPM certificate store signed" in refused.reason


def x509_der(path: Path) -> bytes:
    return x509.load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)


def test_a_certificate_of_another_ek_is_refused() -> None:
    store = load_trust_store(CA_DIRECTORY)
    verdict = check_ek_certificate(captured_certificate(), captured_ek("grub-secureboot"), store, NOW)
    assert verdict == EkVerdict(trusted=False, reason="the EK certificate is for another key than the EK")


@pytest.mark.parametrize(
    ("when", "reason"),
    [(datetime(2020, 1, 1, tzinfo=UTC), "not valid before"), (datetime(2027, 1, 1, tzinfo=UTC), "")],
)
def test_the_dates_of_a_captured_certificate_count(when: datetime, reason: str) -> None:
    store = load_trust_store(CA_DIRECTORY)
    verdict = check_ek_certificate(captured_certificate(), captured_ek("direct-efistub"), store, when)
    assert verdict.trusted == (reason == "")
    assert reason in verdict.reason


def test_an_altered_signed_byte_is_noticed_also_behind_normalisation() -> None:
    store = load_trust_store(CA_DIRECTORY)
    data = captured_certificate()
    position = data.index(b"swtpm", 300)  # inside the alternative name
    altered = data[:position] + b"S" + data[position + 1 :]
    for variant in (altered, altered + b"\xff\xff"):
        verdict = check_ek_certificate(variant, captured_ek("direct-efistub"), store, NOW)
        assert not verdict.trusted
        assert "no certificate in the TPM certificate store signed" in verdict.reason


def test_a_padded_certificate_is_trusted_and_marked() -> None:
    store = load_trust_store(CA_DIRECTORY)
    padded = captured_certificate() + b"\xff" * 50
    verdict = check_ek_certificate(padded, captured_ek("direct-efistub"), store, NOW)
    assert verdict.trusted
    assert any("not strict DER" in warning for warning in verdict.warnings)


def test_bytes_that_are_no_certificate_are_a_verdict_not_a_crash() -> None:
    verdict = check_ek_certificate(b"emulator", captured_ek("direct-efistub"), TrustStore({}), NOW)
    assert not verdict.trusted
    assert "cannot be read" in verdict.reason


# Chains made for the purpose: root -> intermediate -> EK.


def name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def made(
    subject: str,
    issuer: str,
    *extensions: tuple[x509.ExtensionType, bool],
    signer: str | None = None,
    days: tuple[int, int] = (-10, 10),
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(KEYS[subject].public_key())
        .serial_number(5)
        .not_valid_before(NOW + dt.timedelta(days=days[0]))
        .not_valid_after(NOW + dt.timedelta(days=days[1]))
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(KEYS[signer or issuer], hashes.SHA256())


def ca_flag(path_length: int | None = None) -> tuple[x509.ExtensionType, bool]:
    return x509.BasicConstraints(ca=True, path_length=path_length), True


def key_usage(**chosen: bool) -> tuple[x509.ExtensionType, bool]:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{**dict.fromkeys(names, False), **chosen}), True


def check(*store: x509.Certificate, leaf: x509.Certificate | None = None) -> EkVerdict:
    leaf = leaf or made("ek", "intermediate", key_usage(key_agreement=True))
    certificates = trust_store(read_certificate(item.public_bytes(Encoding.DER)) for item in store)
    return check_ek_certificate(leaf.public_bytes(Encoding.DER), KEYS["ek"].public_key(), certificates, NOW)


ROOT = made("root", "root", ca_flag())
INTERMEDIATE = made("intermediate", "root", ca_flag(0), key_usage(key_cert_sign=True))
UNKNOWN = (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\x00"), True)
SERVER_AUTH = (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
PERMITTED = x509.NameConstraints([x509.DirectoryName(name("vendor"))], None)
EXCLUDED = x509.NameConstraints(None, [x509.DirectoryName(name("ek"))])


def test_a_made_chain_is_trusted() -> None:
    assert check(ROOT, INTERMEDIATE).chain == ("CN=ek", "CN=intermediate", "CN=root")


def test_a_root_that_was_renewed_with_its_key_is_one_beside_the_expired_one() -> None:
    expired = made("root", "root", ca_flag(), days=(-10, -1))
    for store in ((expired, ROOT, INTERMEDIATE), (ROOT, expired, INTERMEDIATE)):
        assert check(*store).chain == ("CN=ek", "CN=intermediate", "CN=root")
    assert not check(expired, INTERMEDIATE).trusted
    direct = made("ek", "root", key_usage(key_agreement=True))
    assert check(expired, ROOT, leaf=direct).trusted
    assert not check(expired, leaf=direct).trusted


def test_cross_signed_authorities_are_no_endless_chain() -> None:
    cross = made("root", "intermediate", ca_flag(3))
    assert check(made("intermediate", "root", ca_flag(3)), cross).trusted


@pytest.mark.parametrize(
    ("store", "reason"),
    [
        ((), "no certificate in the TPM certificate store"),
        ((made("intermediate", "root", signer="root"), ROOT), "lacks the CA flag"),
        ((made("intermediate", "root", ca_flag(), key_usage(crl_sign=True)),), "may not sign certificates"),
        ((made("intermediate", "root", ca_flag(), days=(-10, -1)),), "expired on"),
        ((made("intermediate", "root", ca_flag(), days=(1, 5)),), "not valid before"),
        ((INTERMEDIATE, made("root", "root", ca_flag(), days=(-10, -1))), "expired on"),
        ((INTERMEDIATE, made("root", "root", ca_flag(0))), "path length"),
        ((made("intermediate", "root", ca_flag(), UNKNOWN),), "critical extension 1.3.6.1.4.1.99999.1"),
        ((made("intermediate", "root", ca_flag(), (PERMITTED, True)),), "is not permitted"),
        ((made("intermediate", "root", ca_flag(), (EXCLUDED, True)),), "is excluded"),
    ],
)
def test_an_unfit_authority_is_refused(store: tuple[x509.Certificate, ...], reason: str) -> None:
    verdict = check(*store)
    assert not verdict.trusted
    assert reason in verdict.reason


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        (made("ek", "ek"), "no certificate in the TPM certificate store signed"),
        (made("ek", "intermediate", signer="other"), "no certificate in the TPM certificate store signed"),
        (made("ek", "intermediate", ca_flag()), "that of a CA"),
        (made("ek", "intermediate", days=(-10, -1)), "expired on"),
        (made("ek", "intermediate", days=(1, 5)), "not valid before"),
        (made("ek", "intermediate", key_usage(digital_signature=True)), "key usage"),
        (made("ek", "intermediate", SERVER_AUTH), "for another purpose"),
        (made("ek", "intermediate", UNKNOWN), "critical extension"),
    ],
)
def test_an_unfit_ek_certificate_is_refused(leaf: x509.Certificate, reason: str) -> None:
    verdict = check(ROOT, INTERMEDIATE, leaf=leaf)
    assert not verdict.trusted
    assert reason in verdict.reason


def test_a_critical_alternative_name_and_the_purpose_of_an_ek_are_understood() -> None:
    names = x509.SubjectAlternativeName([x509.DirectoryName(name("id:1234"))])
    leaf = made("ek", "intermediate", (names, True), (x509.ExtendedKeyUsage([TCG_EK]), False))
    assert check(ROOT, INTERMEDIATE, leaf=leaf).trusted


def test_a_store_may_mix_pem_of_several_der_and_other_files(tmp_path: Path) -> None:
    both = ROOT.public_bytes(Encoding.PEM) + INTERMEDIATE.public_bytes(Encoding.PEM)
    (tmp_path / "vendor.PEM").write_bytes(both)
    (tmp_path / "other.der").write_bytes(made("other", "other", ca_flag()).public_bytes(Encoding.DER))
    (tmp_path / "README").write_text("not a certificate")
    assert len(load_trust_store(tmp_path).by_subject) == 3


def test_a_file_that_is_no_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.pem").write_text("hello")
    (sentence,) = load_trust_store(tmp_path).unreadable
    assert "broken.pem in the TPM certificate store cannot be used" in sentence


def test_a_missing_store_stops_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"store .*nowhere cannot be read"):
        load_trust_store(tmp_path / "nowhere")


def test_the_mark_of_factorable_keys_is_found() -> None:
    product = 1
    for prime in (3, 5, 7, 11, 13, 17, 37, 53, 61, 71, 73, 79, 97, 103, 107, 109, 127, 151, 157):
        product *= prime
    assert is_roca_modulus(product * 12345 + pow(65537, 77, product))
    assert not is_roca_modulus(captured_ek("direct-efistub").public_numbers().n)


def test_sound_and_small_keys_are_told_apart() -> None:
    assert key_weaknesses(captured_ek("direct-efistub")) == ()
    assert key_weaknesses(KEYS["ek"].public_key()) == ()
    small = rsa.RSAPublicNumbers(65537, (1 << 1023) + 1155).public_key()
    assert key_weaknesses(small)[0] == "an RSA key of 1024 bits"
