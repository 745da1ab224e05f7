"""Rules for single entries, each shown by a list in which it alone decides."""

import hashlib
import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from keylime.ima.appraisal import ImaResult
from keylime.ima.checkpoint import ImaCheckpoint, LearnedKey, LearnedKeyring
from keylime.ima.keyrings import Keyring, recognise_key
from keylime.ima.measurement_list import parse_line, split_lines, violation_line
from keylime.ima.memo import ViewKey
from keylime.ima.replay import ExtendMode
from keylime.policy.runtime import EMPTY_POLICY, RuntimePolicy, parse_runtime_policy
from tests.appraisal_rounds import NOT_LISTED, WRONG_DIGEST
from tests.captures import IMA_KEYS_DIRECTORY, capture
from tests.ima_rounds import SHA256, Kernel, Verifier, file_digest, line_of

BOOT = file_digest("boot")
AGGREGATE = frozenset({BOOT.removeprefix("sha256:")})
FILE = line_of("ima-ng", f"{file_digest('1')} /a")
BOOT_AGGREGATE = line_of("ima-ng", f"{BOOT} boot_aggregate")
SIGNED = next(
    line
    for line in split_lines(capture("grub-secureboot").stage("s1-clean").ascii_list)
    if b"/signed-ec.sh" in line
)


def policy(**changes: object) -> RuntimePolicy:
    document = json.loads(EMPTY_POLICY)
    return parse_runtime_policy(json.dumps({**document, "digests": {"/a": [file_digest("1")]}, **changes}))


def buffer_line(name: str, buffer: bytes, algorithm: str = "sha256", digest: str | None = None) -> bytes:
    value = hashlib.sha256(buffer).hexdigest() if digest is None else digest
    return line_of("ima-buf", f"{algorithm}:{value} {name} {buffer.hex()}")


def public_key(secret: int) -> bytes:
    key = derive_private_key(secret, SECP256R1()).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def after(lines: list[bytes], verifier: Verifier) -> ImaResult:
    """The round of a machine that measured `lines`."""
    kernel = Kernel()
    kernel.pcr = verifier.checkpoint.pcr or bytes(32)
    for line in lines:
        kernel.add(line)
    return verifier.appraise(kernel.text(), kernel.pcr)


def found(lines: list[bytes], rules: RuntimePolicy, aggregates: frozenset[str] = frozenset()) -> list[object]:
    findings = after(lines, Verifier(rules, boot_aggregates=aggregates)).findings
    return [(finding.event_id, finding.log_index) for finding in findings]


def test_a_finding_names_the_version_of_the_policy_when_a_rule_of_it_decides() -> None:
    rules = policy()
    lines = [line_of("ima-ng", f"{file_digest('2')} /a"), violation_line("/a")]
    by_rule, by_fact = after(lines, Verifier(rules)).findings
    assert (by_rule.rule, by_rule.policy) == ("digests", rules.version)
    assert (by_fact.rule, by_fact.policy) == (None, None)


@pytest.mark.parametrize("pcr", [b"10", b"11"])
def test_what_a_covered_entry_states_beside_its_fields_must_be_true(pcr: bytes) -> None:
    """Only its fields are extended, so that the rest of the line could be anything."""
    altered = pcr + b" " + (FILE[3:43] if pcr != b"10" else b"ab" * 20) + FILE[43:]
    verifier = Verifier(policy(), ignore_tomtou=True)
    assert after([FILE], verifier).findings == ()
    kernel = Kernel()
    kernel.add(FILE)
    result = verifier.appraise(altered + b"\n", kernel.pcr)
    assert result.pcr_matched
    event = "ima.validation.ima_hash" if pcr == b"10" else "ima.validation.ima_pcr"
    assert [finding.event_id for finding in result.findings] == [event]
    assert result.violations == 0


# -- boot_aggregate


def test_another_boot_aggregate_than_the_policys_is_a_wrong_digest() -> None:
    listed = policy(digests={"boot_aggregate": [file_digest("other boot")]})
    assert found([BOOT_AGGREGATE], listed) == [(WRONG_DIGEST, 0)]


def test_an_excluded_boot_aggregate_is_accepted_and_counted() -> None:
    result = after([BOOT_AGGREGATE], Verifier(policy(excludes=["^boot_aggregate$"])))
    assert (result.findings, result.excluded) == ((), 1)


def test_a_buffer_of_that_name_is_no_boot_aggregate() -> None:
    """The kernel takes names of critical data from whoever measures them."""
    named_so = buffer_line("boot_aggregate", b"boot")
    assert BOOT in named_so.decode()
    missing = (NOT_LISTED, 0)
    assert found([named_so], policy(), AGGREGATE) == [missing, (NOT_LISTED, 0)]
    listed = policy(**{"ima-buf": {"boot_aggregate": [BOOT]}})
    assert found([named_so], listed, AGGREGATE) == [missing]
    assert found([BOOT_AGGREGATE, named_so], listed, AGGREGATE) == []


def test_a_list_that_begins_with_another_accepted_entry_lacks_its_boot_aggregate() -> None:
    scratch = line_of("ima-ng", f"{file_digest('x')} /scratch/x")
    assert found([scratch], policy(excludes=["/scratch/"]), AGGREGATE) == [(NOT_LISTED, 0)]
    assert found([FILE], policy(), AGGREGATE) == [(NOT_LISTED, 0)]


def test_a_late_boot_aggregate_is_missing_at_the_start_and_misplaced_where_it_is() -> None:
    expected = [(NOT_LISTED, 0), (NOT_LISTED, 1)]
    assert found([FILE, BOOT_AGGREGATE], policy(), AGGREGATE) == expected
    wrong = line_of("ima-ng", f"{file_digest('other')} boot_aggregate")
    assert found([FILE, wrong], policy(), AGGREGATE) == expected, "its digest does not matter there"


def test_a_machine_that_measured_nothing_owes_no_boot_aggregate() -> None:
    assert found([], policy(), AGGREGATE) == []


@pytest.mark.parametrize(
    ("name", "rules", "events"),
    [
        ("kexec-cmdline", {"ima-buf": {"kexec-cmdline": [file_digest("quiet")]}}, []),
        ("kexec-cmdline", {"excludes": ["^kexec-cmdline$"]}, []),
        ("kexec-cmdline", {}, [(NOT_LISTED, 1), (NOT_LISTED, 2)]),
        ("kexec-cmdline", {"ima-buf": {"kexec-cmdline": ["ab" * 32]}}, [(WRONG_DIGEST, 1), (NOT_LISTED, 2)]),
        ("selinux-state", {"ima-buf": {"selinux-state": [file_digest("quiet")]}}, [(NOT_LISTED, 2)]),
    ],
)
def test_only_an_allowed_kexec_explains_a_second_boot_aggregate(
    name: str, rules: dict[str, object], events: list[object]
) -> None:
    lines = [BOOT_AGGREGATE, buffer_line(name, b"quiet"), BOOT_AGGREGATE]
    assert found(lines, policy(**rules), AGGREGATE) == events


def test_a_buffer_that_only_an_exclude_allows_is_counted() -> None:
    result = after([buffer_line("selinux-state", b"1")], Verifier(policy(excludes=["^selinux-state$"])))
    assert (result.findings, result.excluded) == ((), 1)


# -- keys that the list teaches


def listing(*keys: bytes) -> RuntimePolicy:
    return policy(keyrings={".ima": [hashlib.sha256(key).hexdigest() for key in keys]})


def learned_keys(result: ImaResult) -> int:
    assert result.findings == ()
    return sum(len(keyring.keys) for keyring in result.checkpoint.keyrings)


def test_a_key_that_is_measured_again_is_learned_once() -> None:
    key = public_key(1)
    assert (
        learned_keys(after([buffer_line(".ima", key), buffer_line(".ima", key)], Verifier(listing(key)))) == 1
    )


@pytest.mark.parametrize(("before", "afterwards"), [(998, 1000), (999, 1000), (1000, 1000)])
def test_no_more_than_a_thousand_keys_are_learned(before: int, afterwards: int) -> None:
    keys = tuple(LearnedKey(number, b"key") for number in range(before))
    checkpoint = ImaCheckpoint(
        next_entry=1, pcr=bytes(32), bank="sha256", keyrings=(LearnedKeyring(".ima", keys),)
    )
    two = [public_key(1), public_key(2)]
    verifier = Verifier(listing(*two), checkpoint=checkpoint)
    assert learned_keys(after([buffer_line(".ima", key) for key in two], verifier)) == afterwards


@pytest.mark.parametrize("algorithm", ["wp256", "sha256"])
def test_a_key_under_a_digest_that_is_not_its_own_vouches_for_nothing(algorithm: str) -> None:
    """Also when the policy lists the digest; of some algorithms no library can tell whose it is."""
    key = (IMA_KEYS_DIRECTORY / "ima-ec.crt.der").read_bytes()
    line = buffer_line(".ima", key, algorithm, "ab" * 32)
    listed = policy(keyrings={".ima": ["ab" * 32]})
    assert found([line, SIGNED], listed) == [("ima.invalid_key", 0), (NOT_LISTED, 1)]


def test_a_learned_key_that_was_damaged_in_the_store_verifies_nothing() -> None:
    keyring = LearnedKeyring(".ima", (LearnedKey(1, b"damaged"), LearnedKey(2, b"\x30damaged")))
    checkpoint = ImaCheckpoint(next_entry=1, pcr=bytes(32), bank="sha256", keyrings=(keyring,))
    findings = after([SIGNED], Verifier(policy(), checkpoint=checkpoint)).findings
    assert [finding.event_id for finding in findings] == [NOT_LISTED]


def test_a_signature_proven_for_one_agent_counts_for_another_only_with_the_same_key() -> None:
    key = (IMA_KEYS_DIRECTORY / "ima-ec.crt.der").read_bytes()
    verifier = Verifier(listing(key, public_key(1)))
    assert learned_keys(after([buffer_line(".ima", key), SIGNED], verifier)) == 1
    findings = after([buffer_line(".ima", public_key(1)), SIGNED], verifier).findings
    assert [finding.log_index for finding in findings] == [1]


def test_a_signature_that_was_proven_is_not_verified_again() -> None:
    key = recognise_key(public_key(1))
    assert key is not None
    keys = Keyring((key,))
    verifier = Verifier(policy(), tenant_keys=keys)
    assert len(after([SIGNED], verifier).findings) == 1, "this key did not sign it"
    view = ViewKey(verifier.policy.content_hash, keys.fingerprint, SHA256, ExtendMode.NATIVE)
    verifier.memo.view(view).signed[SIGNED] = key.fingerprint
    assert after([SIGNED], verifier).findings == (), "the memory is believed"


def test_what_a_tenants_key_signed_is_accepted_from_memory_like_a_listed_file() -> None:
    key = recognise_key((IMA_KEYS_DIRECTORY / "ima-ec.crt.der").read_bytes())
    assert key is not None
    verifier = Verifier(policy(), tenant_keys=Keyring((key,)))
    assert after([SIGNED], verifier).findings == ()
    view = ViewKey(verifier.policy.content_hash, Keyring((key,)).fingerprint, SHA256, ExtendMode.NATIVE)
    assert SIGNED in verifier.memo.view(view).accepted
    assert verifier.memo.view(view).signed == {}
    without = replace(verifier, tenant_keys=Keyring(()))
    assert [finding.path for finding in after([SIGNED], without).findings] == [parse_line(SIGNED).name]
