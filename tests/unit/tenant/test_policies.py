import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keylime.documents.dsse import key_id_of, sign_policy
from keylime.errors import KeylimeError
from keylime.ima.runtime_policy import EMPTY_POLICY
from keylime_tenant.arguments import Arguments
from keylime_tenant.policies import PolicyDocuments, compose

POLICY = json.dumps(
    {
        "meta": {"version": 1, "generator": 3},
        "release": 0,
        "digests": {"/usr/bin/true": ["ab" * 32]},
        "excludes": [],
        "keyrings": {},
        "ima": {"ignored_keyrings": [], "log_hash_alg": "sha1", "dm_policy": None},
        "ima-buf": {},
        "verification-keys": "",
    }
).encode()


def pem_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def signed(payload: bytes, key: ec.EllipticCurvePrivateKey) -> bytes:
    return sign_policy(payload, key, key_id_of(key.public_key())).encode()


def test_a_list_that_cannot_be_read_is_told_with_its_flag_and_file() -> None:
    arguments = Arguments(allowlist="allow.txt", exclude="skip.txt")
    line = f"{'ab' * 32}  /usr/bin/true\n".encode()
    with pytest.raises(KeylimeError, match=r"^--exclude skip.txt: not UTF-8 text: .* at byte 4$"):
        compose(arguments, PolicyDocuments(allowlist=line, excludes=b"/caf\xe9$"))
    with pytest.raises(KeylimeError, match=r"^--allowlist allow.txt: not UTF-8 text: .* at byte 0$"):
        compose(arguments, PolicyDocuments(allowlist=b"\xff", excludes=b""))
    marked = compose(
        arguments, PolicyDocuments(allowlist=b"\xef\xbb\xbf" + line, excludes=b"\xef\xbb\xbf/var/x$\r\n")
    )
    document = json.loads(base64.b64decode(marked.runtime_policy))
    assert document["digests"] == {"/usr/bin/true": ["ab" * 32]}
    assert document["excludes"] == ["/var/x$"]
    reference = Arguments(mb_policy="state.json")
    with pytest.raises(KeylimeError, match=r"^--mb-policy state.json: not UTF-8 text: .* at byte 0$"):
        compose(reference, PolicyDocuments(reference_state=b"\xff"))


IMA = 0x400
BOOT = 0xFBFF


@pytest.mark.parametrize(
    ("arguments", "documents", "mask"),
    [
        (Arguments(), PolicyDocuments(), 0),
        (Arguments(tpm_policy='{"15": "AB", "22": ["cd"]}'), PolicyDocuments(), 0x408000),
        (Arguments(), PolicyDocuments(runtime_policy=POLICY), IMA),
        (Arguments(runtime_policy_name="n"), PolicyDocuments(), IMA),
        (Arguments(allowlist_name="n"), PolicyDocuments(), IMA),
        (Arguments(), PolicyDocuments(allowlist=b"ab" * 20 + b"  /bin/x\n"), IMA),
        (Arguments(), PolicyDocuments(reference_state=b"{}"), BOOT),
        (Arguments(mb_policy_name="n"), PolicyDocuments(), BOOT),
        (Arguments(mb_policy_name="n", runtime_policy_name="m"), PolicyDocuments(), 0xFFFF),
        (Arguments(tpm_policy='{"23": "ab"}', mb_policy_name="n"), PolicyDocuments(), BOOT | 1 << 23),
    ],
)
def test_the_mask_has_the_pcrs_of_every_policy(
    arguments: Arguments, documents: PolicyDocuments, mask: int
) -> None:
    policies = compose(arguments, documents)
    assert policies.mask == mask
    assert json.loads(policies.tpm_policy)["mask"] == hex(mask)


def test_l7_an_agent_of_whom_nothing_is_demanded_is_warned_of() -> None:
    def warned(arguments: Arguments, documents: PolicyDocuments) -> bool:
        return "nothing judged" in " ".join(compose(arguments, documents).warnings)

    assert warned(Arguments(), PolicyDocuments())
    assert not warned(Arguments(tpm_policy='{"15": "AB"}'), PolicyDocuments())
    assert not warned(Arguments(runtime_policy_name="n"), PolicyDocuments())
    assert not warned(Arguments(), PolicyDocuments(reference_state=b"{}"))
    empty = compose(Arguments(), PolicyDocuments(runtime_policy=EMPTY_POLICY.encode())).warnings
    assert "judges nothing" in " ".join(empty)


def test_an_agent_that_attests_by_itself_needs_a_policy_to_pass() -> None:
    (warning,) = compose(Arguments(push_model=True), PolicyDocuments()).warnings
    assert "stays PENDING" in warning
    assert "attested" not in warning


def test_the_operators_own_mask_is_told_apart() -> None:
    policies = compose(Arguments(tpm_policy='{"15": "ab"}', runtime_policy_name="n"), PolicyDocuments())
    assert (policies.operator_mask, policies.mask) == (0x8000, 0x8400)


def test_values_become_lists_in_lower_case() -> None:
    policies = compose(Arguments(tpm_policy='{"15": "AB", "3": ["CD", "ef"]}'), PolicyDocuments())
    assert json.loads(policies.tpm_policy) == {"15": ["ab"], "3": ["cd", "ef"], "mask": "0x8008"}


@pytest.mark.parametrize(
    "text",
    ['{"10": "ab"}', '{"16": "ab"}', '{"x": "ab"}', '{"24": "ab"}', '{"mask": "0x1"}', "[]", "{", '{"1": 7}'],
)
def test_a_tpm_policy_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(KeylimeError, match="--tpm_policy"):
        compose(Arguments(tpm_policy=text), PolicyDocuments())


def test_pcrs_that_measured_boot_owns_cannot_be_in_the_tpm_policy() -> None:
    expected = (
        'WARNING: PCR 7 is specified in "tpm_policy", but will in fact be used by measured boot. '
        "Please remove it from policy"
    )
    with pytest.raises(KeylimeError) as refused:
        compose(Arguments(tpm_policy='{"7": "ab"}', mb_policy_name="n"), PolicyDocuments())
    assert str(refused.value) == expected
    assert compose(Arguments(tpm_policy='{"7": "ab"}'), PolicyDocuments()).mask == 0x80


def test_a_policy_file_travels_byte_by_byte() -> None:
    policies = compose(Arguments(), PolicyDocuments(runtime_policy=POLICY))
    assert base64.b64decode(policies.runtime_policy) == POLICY
    assert policies.runtime_policy_key == ""


def test_the_checksum_is_that_of_the_file() -> None:
    digest = hashlib.sha256(POLICY).hexdigest()
    documents = PolicyDocuments(runtime_policy=POLICY)
    assert compose(Arguments(runtime_policy_checksum=digest.upper()), documents).runtime_policy
    with pytest.raises(KeylimeError, match="SHA-256"):
        compose(Arguments(runtime_policy_checksum="0" * 64), documents)


@pytest.mark.parametrize(
    "content", [b"", b"x", b"{}", b"\xff", POLICY.replace(b'"excludes": []', b'"excludes": ["["]')]
)
def test_a_runtime_policy_that_cannot_be_used_is_refused(content: bytes) -> None:
    with pytest.raises(KeylimeError):
        compose(Arguments(), PolicyDocuments(runtime_policy=content))


def test_an_unsigned_policy_is_refused_where_a_signer_is_named() -> None:
    with pytest.raises(KeylimeError, match="--runtime-policy-sig-key"):
        compose(Arguments(), PolicyDocuments(runtime_policy=POLICY, runtime_policy_key=b"x"))


def test_a_signed_policy_travels_with_the_key_that_signed_it() -> None:
    signer, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    envelope = signed(POLICY, signer)
    policies = compose(
        Arguments(), PolicyDocuments(runtime_policy=envelope, runtime_policy_key=pem_of(signer))
    )
    assert base64.b64decode(policies.runtime_policy) == envelope
    assert base64.b64decode(policies.runtime_policy_key) == pem_of(signer)
    for key in (pem_of(other), None, b"x"):
        with pytest.raises(KeylimeError, match="--runtime-policy-sig-key"):
            compose(Arguments(), PolicyDocuments(runtime_policy=envelope, runtime_policy_key=key))


def test_what_was_signed_must_be_a_policy() -> None:
    signer = ec.generate_private_key(ec.SECP256R1())
    documents = PolicyDocuments(runtime_policy=signed(b'{"a": 1}', signer), runtime_policy_key=pem_of(signer))
    with pytest.raises(KeylimeError):
        compose(Arguments(), documents)


def test_the_old_flags_give_the_same_rules_as_a_runtime_policy() -> None:
    documents = PolicyDocuments(
        allowlist=b"ab" * 20 + b"  /bin/a\n" + b"cd" * 20 + b"  /bin/a\n" + b"ef" * 20 + b"  %keyring:.ima\n",
        excludes=b"# not this\n\n  /var/.*  \n",
    )
    policy = json.loads(base64.b64decode(compose(Arguments(), documents).runtime_policy))
    assert policy["digests"]["/bin/a"] == ["ab" * 20, "cd" * 20]
    assert policy["keyrings"] == {".ima": ["ef" * 20]}
    assert policy["excludes"] == ["/var/.*"]
    assert policy["meta"]["generator"] == 3


def test_l5_a_reference_state_with_a_key_twice_is_not_sent() -> None:
    with pytest.raises(KeylimeError, match=r"--mb-policy: .*the key 'pk' is given twice"):
        compose(Arguments(), PolicyDocuments(reference_state=b'{"pk": [], "pk": []}'))


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff"])
def test_a_reference_state_is_a_json_object(content: bytes) -> None:
    with pytest.raises(KeylimeError, match="--mb-policy"):
        compose(Arguments(), PolicyDocuments(reference_state=content))


def test_an_empty_reference_state_is_sent_and_asks_for_the_replay() -> None:
    policies = compose(Arguments(), PolicyDocuments(reference_state=b"{}\n"))
    assert policies.mb_policy == "{}\n"
    assert policies.mask == BOOT
