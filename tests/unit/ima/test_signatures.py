import hashlib
import json
import struct
from collections.abc import Iterable
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as generate_ec_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keylime.ima.keyrings import EMPTY_KEYRING, ImaKey, Keyring, keyring_of, recognise_key
from keylime.ima.measurement_list import Entry, parse_line, split_lines
from keylime.ima.runtime_policy import EMPTY_POLICY, RuntimePolicy, parse_runtime_policy
from keylime.ima.signatures import check_signature, parse_file_signature
from tests.captures import CAPTURE_NAMES, IMA_KEYS_DIRECTORY, capture
from tests.ima_rounds import Kernel, Verifier, file_digest, line_of

SIGNED = {
    "/opt/lab/bin/signed-rsa.sh": True,
    "/opt/lab/bin/signed-ec.sh": True,
    "/opt/lab/bin/signed-stale.sh": False,  # changed after it was signed
}
LAB_KEYS = keyring_of([(IMA_KEYS_DIRECTORY / f"ima-{kind}.crt.der").read_bytes() for kind in ("rsa", "ec")])


@pytest.mark.parametrize(
    "name", [name for name in CAPTURE_NAMES if name not in ("direct-ima-ng", "direct-ima-legacy-template")]
)
def test_captured_signatures_verify_but_for_the_stale_one(name: str) -> None:
    lines = split_lines(capture(name).stage("s1-clean").ascii_list)
    signed = {entry.name: entry for entry in map(parse_line, lines) if entry.signature}
    verified = {path: signer_of(entry, [LAB_KEYS]) is not None for path, entry in signed.items()}
    assert verified == SIGNED
    assert not any(signer_of(entry, [EMPTY_KEYRING]) for entry in signed.values())


def signer_of(entry: Entry, keyrings: Iterable[Keyring]) -> ImaKey | None:
    found = check_signature(entry, keyrings)
    return found if isinstance(found, ImaKey) else None


class Signer:
    """A key that signs files as evmctl does."""

    def __init__(self) -> None:
        self.private: EllipticCurvePrivateKey = generate_ec_key(SECP256R1())
        self.spki = self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        key = recognise_key(self.spki)
        assert key is not None
        self.key = key

    @property
    def keyring(self) -> Keyring:
        return Keyring((self.key,))

    def sign(self, digest: bytes, *, kind: int = 3, version: int = 2, algorithm: int = 4) -> bytes:
        signed = digest
        if version == 3:
            signed = hashlib.sha256(bytes((kind, algorithm)) + digest).digest()
        value = self.private.sign(signed, ECDSA(Prehashed(hashes.SHA256())))
        return struct.pack(">BBBIH", kind, version, algorithm, self.key.key_id, len(value)) + value


def entry_with(signature: bytes, digest: bytes, template: str = "ima-sig", kind: str = "") -> Entry:
    prefix = f"{kind}:" if kind else ""
    return parse_line(line_of(template, f"{prefix}sha256:{digest.hex()} /x {signature.hex()}"))


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer()


@pytest.mark.parametrize(
    ("kind", "version", "holds"),
    [
        (3, 2, True),
        (5, 2, True),
        (6, 3, True),
        (3, 3, True),
        (6, 2, False),
        (5, 3, False),
        (4, 2, False),
        (3, 1, False),
    ],
)
def test_only_known_types_and_versions_count(signer: Signer, kind: int, version: int, holds: bool) -> None:
    entry = entry_with(signer.sign(b"\xab" * 32, kind=kind, version=version), b"\xab" * 32)
    assert (signer_of(entry, [signer.keyring]) is not None) is holds


@pytest.mark.parametrize(
    ("digest_kind", "kind", "version", "holds"),
    [
        ("ima", 3, 2, True),
        ("verity", 6, 3, True),
        ("verity", 3, 3, False),
        ("ima", 6, 3, False),
        ("verity", 3, 2, False),
        ("verity", 5, 2, False),
    ],
)
def test_a_signature_of_a_file_digest_is_none_of_a_verity_digest(
    signer: Signer, digest_kind: str, kind: int, version: int, holds: bool
) -> None:
    signature = signer.sign(b"\xab" * 32, kind=kind, version=version)
    entry = entry_with(signature, b"\xab" * 32, "ima-sigv2", digest_kind)
    assert (signer_of(entry, [signer.keyring]) is not None) is holds


def test_a_signature_of_other_content_or_by_an_unknown_key_does_not_count(signer: Signer) -> None:
    signature = signer.sign(b"\xab" * 32)
    assert signer_of(entry_with(signature, b"\xcd" * 32), [signer.keyring]) is None
    assert signer_of(entry_with(signature, b"\xab" * 32), [LAB_KEYS]) is None
    impostor = Keyring((replace(LAB_KEYS.keys[0], key_id=signer.key.key_id),))
    assert signer_of(entry_with(signature, b"\xab" * 32), [impostor, signer.keyring]) is None, (
        "first hit only"
    )
    assert signer_of(entry_with(signature, b"\xab" * 32), [LAB_KEYS, signer.keyring]) == signer.key


@pytest.mark.parametrize("algorithm", [0, 1, 2, 5, 17, 255])
def test_the_hash_named_by_the_signature_must_be_that_of_the_entry(signer: Signer, algorithm: int) -> None:
    entry = entry_with(signer.sign(b"\xab" * 32, algorithm=algorithm), b"\xab" * 32)
    assert signer_of(entry, [signer.keyring]) is None


def test_a_digest_of_the_same_size_but_another_algorithm_is_not_what_was_signed(signer: Signer) -> None:
    signature = signer.sign(b"\xab" * 32)
    entry = parse_line(line_of("ima-sig", f"sha3-256:{'ab' * 32} /x {signature.hex()}"))
    assert signer_of(entry, [signer.keyring]) is None


def test_a_signature_field_is_exact(signer: Signer) -> None:
    field = signer.sign(b"\xab" * 32)
    assert parse_file_signature(field) is not None
    for other in (b"", field[:8], field[:-1], field + b"\0"):
        assert parse_file_signature(other) is None


def policy(**changes: object) -> RuntimePolicy:
    document = json.loads(EMPTY_POLICY)
    document["meta"]["generator"] = 3
    return parse_runtime_policy(json.dumps({**document, **changes}))


def signed_kernel(signer: Signer, field: bytes | None = None) -> Kernel:
    digest = hashlib.sha256(b"content").digest()
    kernel = Kernel()
    signature = signer.sign(digest) if field is None else field
    kernel.add(line_of("ima-sig", f"sha256:{digest.hex()} /signed {signature.hex()}"))
    return kernel


def key_line(signer: Signer, keyring: str = ".ima") -> bytes:
    digest = hashlib.sha256(signer.spki).hexdigest()
    return line_of("ima-buf", f"sha256:{digest} {keyring} {signer.spki.hex()}")


def test_a_key_of_the_policy_allows_what_it_signed_whatever_the_digests_say(signer: Signer) -> None:
    kernel = signed_kernel(signer)
    keys = signer.keyring.to_json()
    for rules in (
        policy(**{"verification-keys": keys}),
        policy(**{"verification-keys": keys, "digests": {"/signed": ["ab" * 32]}}),
    ):
        verifier = Verifier(rules)
        for _ in range(2):
            assert verifier.appraise(kernel.text(), kernel.pcr).findings == ()


def test_the_agents_own_keys_replace_those_of_the_policy(signer: Signer) -> None:
    kernel = signed_kernel(signer)
    verifier = Verifier(policy(**{"verification-keys": signer.keyring.to_json()}), tenant_keys=LAB_KEYS)
    assert verifier.appraise(kernel.text(), kernel.pcr).findings[0].path == "/signed"
    same_memory = replace(verifier, tenant_keys=signer.keyring)
    assert same_memory.appraise(kernel.text(), kernel.pcr).findings == ()
    assert verifier.appraise(kernel.text(), kernel.pcr).findings != ()


def test_a_measured_key_verifies_later_entries_if_the_policy_lists_it(signer: Signer) -> None:
    listed = policy(keyrings={".ima": [hashlib.sha256(signer.spki).hexdigest()]})
    kernel = Kernel()
    kernel.add(key_line(signer))
    signed = signed_kernel(signer).lines[0]
    kernel.add(signed)
    verifier = Verifier(listed)
    first = verifier.appraise(kernel.text(), kernel.pcr)
    assert first.findings == ()
    assert [(ring.name, len(ring.keys)) for ring in first.checkpoint.keyrings] == [(".ima", 1)]
    assert verifier.appraise(kernel.text(), kernel.pcr).findings == (), "again, from memory"
    kernel.add(signed)
    assert verifier.after(first).appraise(kernel.text(2), kernel.pcr).findings == (), "learned keys are kept"
    other_agent = Kernel()
    other_agent.add(signed)
    result = verifier.appraise(other_agent.text(), other_agent.pcr)
    assert [finding.path for finding in result.findings] == ["/signed"], "per agent, not per process"


def test_a_key_measured_after_its_use_comes_too_late(signer: Signer) -> None:
    listed = policy(keyrings={".ima": [hashlib.sha256(signer.spki).hexdigest()]})
    kernel = signed_kernel(signer)
    kernel.add(key_line(signer))
    findings = Verifier(listed).appraise(kernel.text(), kernel.pcr).findings
    assert [finding.log_index for finding in findings] == [0]


def ignoring(*names: str) -> dict[str, object]:
    return {"ignored_keyrings": list(names), "log_hash_alg": "sha1", "dm_policy": None}


@pytest.mark.parametrize(
    "rules", [{"ima": ignoring("*")}, {"ima": ignoring(".ima")}, {"excludes": [r"\.ima"]}]
)
def test_ignored_and_excluded_keyrings_are_accepted_but_teach_no_key(
    signer: Signer, rules: dict[str, object]
) -> None:
    kernel = Kernel()
    kernel.add(key_line(signer))
    result = Verifier(policy(**rules)).appraise(kernel.text(), kernel.pcr)
    assert result.findings == ()
    assert result.checkpoint.keyrings == ()


@pytest.mark.parametrize(
    ("keyrings", "event"),
    [
        ({}, "not_in_allowlist"),
        ({".ima": ["ab" * 32]}, "runtime_policy_hash"),
        ({".other": ["ab" * 32]}, "not_in_allowlist"),
    ],
)
def test_an_unlisted_key_fails_and_is_not_learned(
    signer: Signer, keyrings: dict[str, object], event: str
) -> None:
    kernel = Kernel()
    kernel.add(key_line(signer))
    kernel.add(signed_kernel(signer).lines[0])
    findings = Verifier(policy(keyrings=keyrings)).appraise(kernel.text(), kernel.pcr).findings
    assert [finding.event_id.rsplit(".")[-1] for finding in findings] == [event, "not_in_allowlist"]


def test_a_key_entry_whose_digest_is_of_something_else_teaches_no_key(signer: Signer) -> None:
    kernel = Kernel()
    kernel.add(line_of("ima-buf", f"sha256:{'ab' * 32} .ima {signer.spki.hex()}"))
    result = Verifier(policy(keyrings={".ima": ["ab" * 32]})).appraise(kernel.text(), kernel.pcr)
    assert [finding.event_id for finding in result.findings] == ["ima.invalid_key"]
    assert result.checkpoint.keyrings == ()


def test_a_key_of_an_unusable_type_fails() -> None:
    data = (
        Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    )
    kernel = Kernel()
    kernel.add(line_of("ima-buf", f"sha256:{hashlib.sha256(data).hexdigest()} .ima {data.hex()}"))
    findings = Verifier(policy()).appraise(kernel.text(), kernel.pcr).findings
    assert [finding.event_id for finding in findings] == ["ima.invalid_key"]


def test_a_malformed_signature_is_a_template_failure_even_when_the_file_is_listed(signer: Signer) -> None:
    kernel = signed_kernel(signer, field=signer.sign(b"\xab" * 32)[:-1])
    findings = (
        Verifier(policy(digests={"/signed": [file_digest("content")]}))
        .appraise(kernel.text(), kernel.pcr)
        .findings
    )
    assert [finding.event_id for finding in findings] == ["ima.validation.ima_hash"]


def test_an_unverified_signature_leaves_the_decision_to_the_digest(signer: Signer) -> None:
    kernel = signed_kernel(signer)
    assert (
        Verifier(policy(digests={"/signed": [file_digest("content")]}))
        .appraise(kernel.text(), kernel.pcr)
        .findings
        == ()
    )
    findings = Verifier(policy()).appraise(kernel.text(), kernel.pcr).findings
    assert [finding.event_id for finding in findings] == ["ima.validation.ima-ng.not_in_allowlist"]


def test_a_portable_signature_counts_for_a_file_digest_that_names_its_kind(signer: Signer) -> None:
    """Its type says nothing about the kind of digest, so it contradicts none but that of fs-verity."""
    entry = entry_with(signer.sign(b"\xab" * 32, kind=5), b"\xab" * 32, "ima-sigv2", "ima")
    assert signer_of(entry, [signer.keyring]) is not None


def test_an_entry_without_a_signature_has_no_signer(signer: Signer) -> None:
    assert signer_of(entry_with(b"", b"\xab" * 32), [signer.keyring]) is None
    assert signer_of(entry_with(b"\x03\x02", b"\xab" * 32), [signer.keyring]) is None


def test_a_field_that_is_only_a_header_is_a_signature_without_value() -> None:
    header = bytes((3, 2, 4)) + b"\xaa\xbb\xcc\xdd" + b"\0\0"
    signature = parse_file_signature(header)
    assert signature is not None
    assert (signature.key_id, signature.value) == (0xAABBCCDD, b"")
    assert parse_file_signature(header[:-1]) is None
