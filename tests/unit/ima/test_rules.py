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
from keylime.ima.runtime_policy import EMPTY_POLICY, RuntimePolicy, parse_runtime_policy
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
    kernel.pcr = verifier.known.pcr or bytes(32)
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


def test_violations_count_on_the_paths_that_a_policy_judges_and_on_no_others() -> None:
    journal, program = violation_line("/var/log/journal/a b.journal"), violation_line("/a")
    rules = policy(excludes=["/var/log/.*"])
    assert found([FILE, journal, program], rules) == [("ima.validation.tomtou", 2)]
    accepted = after([FILE, journal], Verifier(rules))
    assert (accepted.findings, accepted.violations, accepted.excluded) == ((), 1, 1)
    assert found([journal], policy()) == [("ima.validation.tomtou", 0)]
    assert after([program], Verifier(policy(), ignore_tomtou=True)).findings == ()


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


def at_first_contact(
    lines: list[bytes],
    rules: RuntimePolicy,
    aggregates: frozenset[str] = frozenset(),
    *,
    ignore_tomtou: bool = False,
) -> list[object]:
    """What is found in a list that starts at entry 0."""
    verifier = Verifier(rules, boot_aggregates=aggregates, ignore_tomtou=ignore_tomtou).at_first_contact()
    return [(finding.event_id, finding.log_index) for finding in after(lines, verifier).findings]


MISSING = ("ima.missing_boot_aggregate", 0)


def test_another_boot_aggregate_than_the_policys_is_a_wrong_digest() -> None:
    listed = policy(digests={"boot_aggregate": [file_digest("other boot")]})
    assert found([BOOT_AGGREGATE], listed) == [(WRONG_DIGEST, 0)]


def test_an_excluded_boot_aggregate_is_accepted_and_counted_where_nothing_tells_its_value() -> None:
    rules = policy(excludes=["^boot_aggregate$"])
    result = after([BOOT_AGGREGATE], Verifier(rules).at_first_contact())
    assert (result.findings, result.excluded) == ((), 1)


@pytest.mark.parametrize("digest", [BOOT, file_digest("forged"), "sha1:" + "ab" * 20])
def test_no_exclude_makes_a_wrong_boot_aggregate_right(digest: str) -> None:
    """One that the policy lists, or that follows from the quoted boot PCRs, is the only right one."""
    line = line_of("ima-ng", f"{digest} boot_aggregate")
    expected = [] if digest == BOOT else [(WRONG_DIGEST, 0)]
    for source in ("^boot_aggregate$", ".*"):
        listed = policy(digests={"boot_aggregate": [BOOT]}, excludes=[source])
        assert at_first_contact([line], listed) == expected
        computed = at_first_contact([line], policy(excludes=[source]), AGGREGATE)
        # The boot PCRs of one bank do not tell what a kernel makes of those of another.
        assert computed == ([] if digest.startswith("sha1:") else expected)


def test_a_boot_aggregate_of_a_bank_that_nothing_tells_must_be_listed_or_excluded() -> None:
    line = line_of("ima-ng", f"sha1:{'ab' * 20} boot_aggregate")
    assert at_first_contact([line], policy(), AGGREGATE) == [(NOT_LISTED, 0)]
    assert at_first_contact([line], policy(digests={"boot_aggregate": ["ab" * 20]}), AGGREGATE) == []


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        ("ima", "{sha1} boot_aggregate"),
        ("ima-ng", "sha1:{sha1} boot_aggregate"),
        ("ima-ng", "sha256:{sha256} boot_aggregate"),
        ("ima-sig", "sha256:{sha256} boot_aggregate "),
        ("ima-ngv2", "ima:sha256:{sha256} boot_aggregate"),
        ("ima-sigv2", "ima:sha256:{sha256} boot_aggregate "),
        ("ima-modsig", "sha256:{sha256} boot_aggregate   "),
        ("evm-sig", "sha256:{sha256} boot_aggregate     0 0 0"),
    ],
)
def test_every_template_of_the_kernel_can_hold_a_boot_aggregate(template: str, fields: str) -> None:
    right, forged = (
        line_of(template, fields.format(sha1=digit * 40, sha256=digit * 64)) for digit in ("a", "b")
    )
    listed = policy(digests={"boot_aggregate": ["a" * 40, "a" * 64], "/a": [file_digest("1")]})
    assert at_first_contact([right, FILE], listed) == []
    assert at_first_contact([forged, FILE], listed) == [(WRONG_DIGEST, 0)]
    computed = frozenset({"a" * 64})
    assert at_first_contact([right], policy(), computed) == ([] if "sha256" in fields else [(NOT_LISTED, 0)])


def test_a_buffer_of_that_name_is_no_boot_aggregate() -> None:
    """The kernel takes names of critical data from whoever measures them."""
    named_so = buffer_line("boot_aggregate", b"boot")
    assert BOOT in named_so.decode()
    assert at_first_contact([named_so], policy(), AGGREGATE) == [MISSING, (NOT_LISTED, 0)]
    listed = policy(**{"ima-buf": {"boot_aggregate": [BOOT]}})
    assert at_first_contact([named_so], listed, AGGREGATE) == [MISSING]
    assert at_first_contact([BOOT_AGGREGATE, named_so], listed, AGGREGATE) == []


def test_a_violation_of_that_name_is_no_boot_aggregate() -> None:
    """It says nothing of the boot, and extends the same whatever its fields are."""
    lines = [violation_line("boot_aggregate"), FILE]
    assert at_first_contact(lines, policy(), ignore_tomtou=True) == [MISSING]
    assert at_first_contact(lines, policy(excludes=[".*"]), AGGREGATE, ignore_tomtou=True) == [MISSING]


@pytest.mark.parametrize("aggregates", [frozenset(), AGGREGATE])
def test_a_list_that_begins_with_another_accepted_entry_lacks_its_boot_aggregate(
    aggregates: frozenset[str],
) -> None:
    """Also where nothing tells what its value would be."""
    scratch = line_of("ima-ng", f"{file_digest('x')} /scratch/x")
    assert at_first_contact([scratch], policy(excludes=["/scratch/"]), aggregates) == [MISSING]
    assert at_first_contact([FILE], policy(), aggregates) == [MISSING]
    assert at_first_contact([FILE], policy(excludes=[".*"]), aggregates) == [MISSING]


def test_a_list_that_begins_with_a_blank_line_lacks_its_boot_aggregate() -> None:
    kernel = Kernel()
    kernel.add(BOOT_AGGREGATE)
    verifier = Verifier(policy(), boot_aggregates=AGGREGATE).at_first_contact()
    result = verifier.appraise(b"\n" + kernel.text(), kernel.pcr)
    assert [finding.event_id for finding in result.findings] == [MISSING[0], NOT_LISTED]


def test_a_late_boot_aggregate_is_missing_at_the_start_and_misplaced_where_it_is() -> None:
    expected = [MISSING, (NOT_LISTED, 1)]
    assert at_first_contact([FILE, BOOT_AGGREGATE], policy(), AGGREGATE) == expected
    wrong = line_of("ima-ng", f"{file_digest('other')} boot_aggregate")
    assert at_first_contact([FILE, wrong], policy(), AGGREGATE) == expected, (
        "its digest does not matter there"
    )


@pytest.mark.parametrize("excludes", [[], [".*"]])
def test_a_machine_that_measured_nothing_is_named(excludes: list[str]) -> None:
    for aggregates in (frozenset[str](), AGGREGATE):
        found_at_0 = at_first_contact([], policy(excludes=excludes), aggregates)
        assert found_at_0 == [("ima.nothing_measured", None)]


@pytest.mark.parametrize(
    ("name", "rules", "events"),
    [
        ("kexec-cmdline", {"ima-buf": {"kexec-cmdline": [file_digest("quiet")]}}, []),
        ("kexec-cmdline", {"excludes": ["^kexec-cmdline$"]}, []),
        ("kexec_execute", {"ima-buf": {"kexec_execute": [file_digest("quiet")]}}, []),
        ("kexec_execute", {}, [(NOT_LISTED, 1), (NOT_LISTED, 2)]),
        ("kexec_load", {"ima-buf": {"kexec_load": [file_digest("quiet")]}}, [(NOT_LISTED, 2)]),
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
        next_entry=1, anchored=True, pcr=bytes(32), bank="sha256", keyrings=(LearnedKeyring(".ima", keys),)
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
    checkpoint = ImaCheckpoint(next_entry=1, anchored=True, pcr=bytes(32), bank="sha256", keyrings=(keyring,))
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


# -- signatures that vouch for nothing


def tenants_keys() -> Keyring:
    key = recognise_key((IMA_KEYS_DIRECTORY / "ima-ec.crt.der").read_bytes())
    assert key is not None
    return Keyring((key,))


def signed_elsewhere(key_id: int | None = None) -> bytes:
    """A line of a file whose signature was made for another content."""
    fields = SIGNED.decode().split(" ")
    fields[3] = file_digest("changed after it was signed")
    if key_id is not None:
        fields[5] = fields[5][:6] + f"{key_id:08x}" + fields[5][14:]
    return line_of("ima-sig", " ".join(fields[3:]))


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(
    ("key_id", "text"),
    [(None, "does not fit the file"), (0x1234ABCD, "by key 1234abcd, is by an unknown key")],
)
def test_a_signature_that_does_not_fit_is_named_and_no_policy_is_recommended(
    key_id: int | None, text: str, listed: bool
) -> None:
    line = signed_elsewhere(key_id)
    name = parse_line(line).name
    digests = {name: [file_digest("as it was")]} if listed else {}
    verifier = Verifier(policy(digests=digests), tenant_keys=tenants_keys())
    (finding,) = after([line], verifier).findings
    assert finding.event_id == (WRONG_DIGEST if listed else NOT_LISTED)
    assert text in finding.explanation
    assert text in (finding.hint or "")
    assert "policy" not in (finding.hint or "")
    assert str(finding.context["message"]).startswith(
        "Hashes for file" if listed else "File not found in allowlist: "
    )


def test_where_no_key_is_known_the_policy_alone_is_spoken_of() -> None:
    (finding,) = after([signed_elsewhere()], Verifier(policy())).findings
    assert "add it to the policy" in (finding.hint or "")
