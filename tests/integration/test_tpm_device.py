"""keylime.tpm.device against a real software TPM: keys, certificates, credentials, quotes, reboots."""

import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keylime.errors import TpmError
from keylime.hashes import HashAlgorithm
from keylime.ima.measurement_list import ima_ng_line, parse_line
from keylime.ima.replay import extend_value
from keylime.ima.templates import FileDigest
from keylime.tpm.credential import parse_credential_blob
from keylime.tpm.device import AkBlobs, LoadedKey, Tpm, choose_tcti
from keylime.tpm.keys import parse_attestation_key, parse_endorsement_key
from keylime.tpm.pcr import DATA_PCR, PcrSelection, data_pcr_value, encode_pcr_blob, extend, start_value
from keylime.tpm.quote import QuoteRejected, VerifiedQuote, encode_quote, parse_quote, verify_quote
from keylime.tpm.sealing import make_credential
from keylime_agent.evidence import LogFile
from keylime_agent.ima_list import ImaList
from tests.fakes.busy_machine import all_values
from tests.fakes.swtpm import SoftwareTpm

SHA1, SHA256, SHA384 = HashAlgorithm.SHA1, HashAlgorithm.SHA256, HashAlgorithm.SHA384
PUBKEY = "-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----\n"
NONCE = b"0YkqCoOGTUKHwBO8oeBa"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    home = tmp_path_factory.mktemp("tpm")
    with SoftwareTpm.manufactured(home, banks=("sha1", "sha256", "sha384")) as tpm:
        yield tpm


@pytest.fixture
def tpm(machine: SoftwareTpm) -> Iterator[Tpm]:
    with Tpm.open(machine.tcti) as opened:
        yield opened


def load(
    tpm: Tpm, signing: str = "ecdsa", encryption: str = "ecc", bank: HashAlgorithm = SHA256
) -> LoadedKey:
    ek = tpm.create_ek(encryption)
    return tpm.load_ak(ek, tpm.create_ak(ek, signing, encryption, bank))


def quote_and_verify(tpm: Tpm, ak: LoadedKey, asked: PcrSelection, expected: PcrSelection) -> VerifiedQuote:
    parts = tpm.quote(ak, asked, NONCE, PUBKEY)
    text = encode_quote(parts.attest, parts.signature, encode_pcr_blob(parts.pcrs))
    return verify_quote(parse_quote(text), parse_attestation_key(ak.tpm2b_public), NONCE, expected)


@pytest.mark.parametrize(
    ("encryption", "kind", "bits"),
    [
        ("rsa", RSAPublicKey, 2048),
        ("rsa2048", RSAPublicKey, 2048),
        ("ecc", EllipticCurvePublicKey, 256),
        ("ecc256", EllipticCurvePublicKey, 256),
        ("ecc384", EllipticCurvePublicKey, 384),
    ],
)
def test_an_ek_is_the_same_each_time_it_is_made(tpm: Tpm, encryption: str, kind: type, bits: int) -> None:
    first, second = tpm.create_ek(encryption), tpm.create_ek(encryption)
    assert first.tpm2b_public == second.tpm2b_public
    key = parse_endorsement_key(first.tpm2b_public).public_key
    assert isinstance(key, kind)
    assert key.key_size == bits


@pytest.mark.parametrize("encryption", ["rsa", "ecc384"])
def test_the_certificate_in_nv_is_that_of_the_ek(tpm: Tpm, machine: SoftwareTpm, encryption: str) -> None:
    ek = tpm.create_ek(encryption)
    stored = tpm.ek_certificates(ek).certificate
    assert stored is not None
    certificate = x509.load_der_x509_certificate(stored)
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    key = parse_endorsement_key(ek.tpm2b_public).public_key
    assert certificate.public_key().public_bytes(*spki) == key.public_bytes(*spki)
    issuer = x509.load_pem_x509_certificate(machine.ca_certificates[0].read_bytes())
    certificate.verify_directly_issued_by(issuer)


def test_a_certificate_of_another_ek_is_not_taken(tpm: Tpm) -> None:
    assert tpm.ek_certificates(tpm.create_ek("ecc256")).certificate is None


def test_a_persistent_ek_is_used_and_survives_closing(machine: SoftwareTpm) -> None:
    for _ in range(2):
        with Tpm.open(machine.tcti) as tpm:
            persistent = tpm.persistent_ek(0x81010001)
            assert persistent.tpm2b_public == tpm.create_ek("rsa").tpm2b_public
            tpm.load_ak(persistent, tpm.create_ak(persistent, "rsassa", "rsa", SHA256))


@pytest.mark.parametrize(
    ("signing", "encryption", "label"),
    [
        ("rsassa", "rsa", "rsa2048"),
        ("rsapss", "rsa", "rsa2048"),
        ("ecdsa", "ecc", "ecc256"),
        ("ecdsa", "ecc384", "ecc384"),
        ("ecdsa", "rsa", "ecc256"),
        ("rsassa", "ecc384", "rsa2048"),
    ],
)
def test_each_kind_of_ak_is_suitable_activates_and_quotes(
    tpm: Tpm, signing: str, encryption: str, label: str
) -> None:
    ek = tpm.create_ek(encryption)
    ak = tpm.load_ak(ek, tpm.create_ak(ek, signing, encryption, SHA256))
    key = parse_attestation_key(ak.tpm2b_public)
    assert (key.scheme.label, key.encryption_label, key.scheme_hash) == (signing, label, SHA256)

    blob = make_credential(parse_endorsement_key(ek.tpm2b_public), key.name, b"s" * 32)
    assert tpm.activate_credential(ek, ak, *parse_credential_blob(blob)) == b"s" * 32

    selection = PcrSelection(SHA256, frozenset({0, DATA_PCR}))
    assert quote_and_verify(tpm, ak, PcrSelection(SHA256, frozenset({0})), selection).signature_hash == SHA256


def test_a_credential_for_another_ak_is_not_activated(tpm: Tpm) -> None:
    ek = tpm.create_ek("ecc")
    ak = tpm.load_ak(ek, tpm.create_ak(ek, "ecdsa", "ecc", SHA256))
    other = parse_attestation_key(tpm.create_ak(ek, "ecdsa", "ecc", SHA256).tpm2b_public)
    blob = make_credential(parse_endorsement_key(ek.tpm2b_public), other.name, b"s" * 32)
    with pytest.raises(TpmError, match="TPM2_ActivateCredential"):
        tpm.activate_credential(ek, ak, *parse_credential_blob(blob))


@pytest.mark.parametrize("bank", [SHA1, SHA256, SHA384])
@pytest.mark.parametrize("asked", [frozenset[int](), frozenset({10}), frozenset(range(24))])
def test_a_quote_covers_what_was_asked_and_pcr_16(
    tpm: Tpm, bank: HashAlgorithm, asked: frozenset[int]
) -> None:
    ak = load(tpm, bank=bank)
    parts = tpm.quote(ak, PcrSelection(bank, asked), NONCE, PUBKEY)
    assert parts.pcrs.selection == PcrSelection(bank, asked | {DATA_PCR})
    assert quote_and_verify(tpm, ak, PcrSelection(bank, asked), parts.pcrs.selection).signature_hash == bank


def test_pcr_16_holds_the_binding_whatever_was_extended_before(tpm: Tpm) -> None:
    ak = load(tpm)
    tpm.extend_pcr(DATA_PCR, {SHA256: bytes(32), SHA1: bytes(20)})
    for _ in range(2):
        parts = tpm.quote(ak, PcrSelection(SHA256, frozenset()), NONCE, PUBKEY)
        assert parts.pcrs.values[DATA_PCR] == data_pcr_value(SHA256, PUBKEY)


def test_a_quote_for_one_nonce_is_refused_for_another(tpm: Tpm) -> None:
    ak = load(tpm)
    parts = tpm.quote(ak, PcrSelection(SHA256, frozenset()), NONCE, PUBKEY)
    quote = parse_quote(encode_quote(parts.attest, parts.signature, encode_pcr_blob(parts.pcrs)))
    with pytest.raises(QuoteRejected):
        verify_quote(quote, parse_attestation_key(ak.tpm2b_public), b"another", parts.pcrs.selection)


def test_extension_is_the_formula_of_the_standard(tpm: Tpm) -> None:
    banks = tpm.banks()
    assert banks == {SHA1, SHA256, SHA384}
    before = {bank: tpm.read_pcrs(PcrSelection(bank, frozenset({10}))).values[10] for bank in banks}
    tpm.extend_pcr(10, {bank: bank.digest(b"measured") for bank in banks})
    for bank in banks:
        after = tpm.read_pcrs(PcrSelection(bank, frozenset({10}))).values[10]
        assert after == extend(bank, before[bank], bank.digest(b"measured"))


def test_all_pcrs_start_as_the_platform_specification_says(machine: SoftwareTpm) -> None:
    machine.restart()
    with Tpm.open(machine.tcti) as tpm:
        values = tpm.read_pcrs(PcrSelection(SHA256, frozenset(range(24)))).values
    assert values == {index: start_value(SHA256, index) for index in range(24)}


def test_the_ak_survives_a_reboot_and_the_reset_count_rises(machine: SoftwareTpm) -> None:
    with Tpm.open(machine.tcti) as tpm:
        ek = tpm.create_ek("ecc")
        blobs = tpm.create_ak(ek, "ecdsa", "ecc", SHA256)
        selection = PcrSelection(SHA256, frozenset({DATA_PCR}))
        before = quote_and_verify(tpm, tpm.load_ak(ek, blobs), selection, selection)
    machine.restart()
    with Tpm.open(machine.tcti) as tpm:
        after = quote_and_verify(tpm, tpm.load_ak(tpm.create_ek("ecc"), blobs), selection, selection)
    assert after.clock.reset_count == before.clock.reset_count + 1


def test_an_ak_loads_only_under_the_ek_that_made_it(tpm: Tpm) -> None:
    rsa, ecc = tpm.create_ek("rsa"), tpm.create_ek("ecc")
    blobs = tpm.create_ak(ecc, "ecdsa", "ecc", SHA256)
    with pytest.raises(TpmError, match="TPM2_Load"):
        tpm.load_ak(rsa, blobs)
    with pytest.raises(TpmError, match="damaged"):
        tpm.load_ak(ecc, AkBlobs(blobs.tpm2b_public[:-4], blobs.tpm2b_private))


def test_nothing_stays_in_the_tpm_after_closing(machine: SoftwareTpm) -> None:
    for _ in range(5):  # three slots for loaded keys, three for sessions
        with Tpm.open(machine.tcti) as tpm:
            load(tpm)
            with pytest.raises(TpmError):
                tpm.create_ak(tpm.create_ek("rsa"), "rsassa", "ecc", HashAlgorithm.SM3_256)


def test_what_a_killed_program_left_loaded_gives_way(machine: SoftwareTpm, tpm: Tpm) -> None:
    for encryption in ("rsa", "ecc", "ecc384"):  # all three slots, never flushed by their owner
        tpm.create_ek(encryption)
    with Tpm.open(machine.tcti) as later:
        ak = load(later)
        selection = PcrSelection(SHA256, frozenset({DATA_PCR}))
        quote_and_verify(later, ak, selection, selection)


def test_two_programs_share_the_tpm(machine: SoftwareTpm, tpm: Tpm) -> None:
    ak = load(tpm)
    with Tpm.open(machine.tcti) as other:
        other.extend_pcr(10, {SHA256: bytes(32)})
        selection = PcrSelection(SHA256, frozenset({10, DATA_PCR}))
        value = quote_and_verify(tpm, ak, selection, selection).pcrs.values[10]
        assert value == other.read_pcrs(PcrSelection(SHA256, frozenset({10}))).values[10]


def test_a_bank_that_is_not_allocated_is_named(tpm: Tpm) -> None:
    with pytest.raises(TpmError, match="sha512"):
        tpm.read_pcrs(PcrSelection(HashAlgorithm.SHA512, frozenset({0})))


def test_a_software_tpm_says_what_it_is(tpm: Tpm) -> None:
    assert tpm.properties().manufacturer == "IBM"
    assert tpm.properties().is_emulator


def test_a_tpm_that_is_not_there_is_one_clear_error() -> None:
    with pytest.raises(TpmError, match=r"cannot reach the TPM through 'swtpm:host=127\.0\.0\.1,port=1'"):
        Tpm.open("swtpm:host=127.0.0.1,port=1")
    with pytest.raises(TpmError, match="cannot reach the TPM"):
        Tpm.open("nonsense")


@pytest.mark.parametrize(
    ("environ", "devices", "expected"),
    [
        ({"TCTI": "tabrmd:"}, {"/dev/tpmrm0"}, "tabrmd:"),
        ({}, {"/dev/tpmrm0", "/dev/tpm0"}, "device:/dev/tpmrm0"),
        ({"TCTI": ""}, {"/dev/tpm0"}, "device:/dev/tpm0"),
    ],
)
def test_the_resource_manager_of_the_kernel_is_preferred(
    environ: dict[str, str], devices: set[str], expected: str
) -> None:
    assert choose_tcti(environ, devices.__contains__) == expected


def test_no_tpm_at_all_is_one_clear_line() -> None:
    with pytest.raises(TpmError, match="neither /dev/tpmrm0 nor /dev/tpm0"):
        choose_tcti({}, lambda _: False)


class TakingTurns:
    """ESAPI for two threads: swtpm serves one command at a time, where a kernel would queue them."""

    def __init__(self, esapi: Any) -> None:
        self._esapi = esapi
        self._turn = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        command = getattr(self._esapi, name)

        def in_turn(*arguments: Any, **options: Any) -> Any:
            with self._turn:
                return command(*arguments, **options)

        return in_turn


def test_a_machine_that_never_stops_measuring_is_quoted_all_the_same(tpm: Tpm, tmp_path: Path) -> None:
    tpm._esapi = TakingTurns(tpm._esapi)
    start = tpm.read_pcrs(PcrSelection(SHA256, frozenset({10}))).values[10]
    path, done = tmp_path / "list", threading.Event()
    path.touch()

    def churn() -> None:
        with path.open("ab", buffering=0) as file:
            for number in itertools.count():
                if done.is_set():
                    return
                line = ima_ng_line(FileDigest("sha256", SHA256.digest(b"%d" % number)), f"/bin/{number}")
                file.write(line + b"\n")
                tpm.extend_pcr(10, {bank: extend_value(parse_line(line), bank) for bank in (SHA1, SHA256)})

    ima = ImaList(LogFile(path))
    assert ima.open()
    ak, selection = load(tpm), PcrSelection(SHA256, frozenset(range(17)))
    writer = threading.Thread(target=churn)
    writer.start()
    try:
        for _ in range(100):
            parts = tpm.quote(ak, selection, NONCE, PUBKEY, ima.tail())
            quote = parse_quote(encode_quote(parts.attest, parts.signature, encode_pcr_blob(parts.pcrs)))
            verified = verify_quote(quote, parse_attestation_key(ak.tpm2b_public), NONCE, selection)
            assert verified.pcrs.values[10] in all_values(path, SHA256, start=start)
    finally:
        done.set()
        writer.join()
        ima.close()
