"""Attacks on the measurement list, I1 to I31 of the attack catalogue; properties P2 to P5, P8 and P10.

A pass is what moves the checkpoint on: the replay reaches PCR 10 and nothing speaks against the machine.
"""

import hashlib
import json
import time
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keylime.errors import PolicyError
from keylime.hashes import HashAlgorithm
from keylime.ima.appraisal import ImaResult
from keylime.ima.checkpoint import ImaCheckpoint
from keylime.ima.keyrings import keyring_of
from keylime.ima.measurement_list import parse_line, split_lines
from keylime.ima.memo import EntryMemo
from keylime.ima.replay import ExtendMode
from keylime.ima.runtime_policy import EMPTY_POLICY, RuntimePolicy, merge, parse_runtime_policy
from tests.captures import IMA_KEYS_DIRECTORY, Stage, capture, stages
from tests.evidence import policy_of
from tests.ima_rounds import Kernel, Verifier, file_digest, line_of, values_of

CLEAN = [stage for stage in stages() if stage.violations == 0]
STAGE = capture("direct-efistub").stage("s1-clean")
LINES = split_lines(STAGE.ascii_list)
QUOTED = STAGE.pcrs("sha256")[10]
MEMO = EntryMemo()
POLICIES = {(stage.capture, stage.name): policy_of([stage.ascii_list]) for stage in stages()}


def verifier_of(stage: Stage = STAGE) -> Verifier:
    return Verifier(POLICIES[stage.capture, stage.name], memo=MEMO)


def text_of(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def passes(result: ImaResult) -> bool:
    return result.pcr_matched and not result.findings


def events(result: ImaResult) -> list[str]:
    return [finding.event_id for finding in result.findings]


def policy(**changes: object) -> RuntimePolicy:
    document = json.loads(EMPTY_POLICY)
    document["meta"]["generator"] = 3
    return parse_runtime_policy(json.dumps({**document, **changes}))


def test_the_captured_machine_itself_passes() -> None:
    """Without this, every other test here could pass for the wrong reason."""
    for stage in CLEAN:
        assert passes(verifier_of(stage).appraise(stage.ascii_list, stage.pcrs("sha256")[10]))


# -- P2: no bit is without meaning


def test_p2_no_bit_of_a_short_list_can_be_flipped() -> None:
    text, quoted = text_of(LINES[:8]), values_of(STAGE.ascii_list, HashAlgorithm.SHA256)[7]
    verifier = verifier_of()
    assert passes(verifier.appraise(text, quoted))
    for position in range(len(text) - 1):  # the last newline ends the text and nothing else
        for bit in range(8):
            flipped = bytearray(text)
            flipped[position] ^= 1 << bit
            result = verifier.appraise(bytes(flipped), quoted)
            assert not passes(result) or not result.reached_end, (position, bit)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(CLEAN), st.data())
def test_p2_no_bit_of_a_captured_list_can_be_flipped(stage: Stage, data: st.DataObject) -> None:
    text = bytearray(stage.ascii_list)
    text[data.draw(st.integers(0, len(text) - 2))] ^= 1 << data.draw(st.integers(0, 7))
    assert not passes(verifier_of(stage).appraise(bytes(text), stage.pcrs("sha256")[10]))


# -- P3, I1 to I5: entries cannot be removed, doubled, swapped or put in


@pytest.mark.parametrize("stage", CLEAN, ids=lambda stage: f"{stage.capture}/{stage.name}")
def test_p3_i2_i3_no_covered_entry_can_be_removed_or_doubled(stage: Stage) -> None:
    lines, quoted = split_lines(stage.ascii_list), stage.pcrs("sha256")[10]
    verifier = verifier_of(stage)
    for index in range(0, len(lines), 1 + len(lines) // 60):
        assert not passes(verifier.appraise(text_of(lines[:index] + lines[index + 1 :]), quoted))
        assert (
            not passes(verifier.appraise(text_of(lines[: index + 1] + lines[index:]), quoted))
            or index == len(lines) - 1
        )


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(CLEAN), st.data())
def test_p3_i4_no_two_covered_entries_can_be_swapped(stage: Stage, data: st.DataObject) -> None:
    lines = split_lines(stage.ascii_list)
    one = data.draw(st.integers(0, len(lines) - 2))
    other = data.draw(st.integers(one + 1, len(lines) - 1))
    lines[one], lines[other] = lines[other], lines[one]
    assert not passes(verifier_of(stage).appraise(text_of(lines), stage.pcrs("sha256")[10]))


def test_i1_a_list_without_its_last_entries_does_not_reach_the_quote() -> None:
    for missing in (1, 2, len(LINES)):
        result = verifier_of().appraise(text_of(LINES[:-missing]), QUOTED)
        assert not result.pcr_matched


def test_i5_no_entry_can_be_put_in() -> None:
    forged = line_of("ima-ng", f"{file_digest('evil')} /usr/bin/evil")
    for index in (0, 1, 70, len(LINES) - 1):
        assert (
            not verifier_of().appraise(text_of([*LINES[:index], forged, *LINES[index:]]), QUOTED).pcr_matched
        )


def test_i6_entries_that_are_never_covered_are_not_judged_and_not_shown_for_ever() -> None:
    forged = line_of("ima-ng", f"{file_digest('evil')} /usr/bin/evil")
    verifier = verifier_of()
    first = verifier.appraise(text_of([*LINES, forged]), QUOTED)
    assert passes(first)
    assert first.uncovered == 1
    second = verifier.after(first).appraise(text_of([forged]), QUOTED)
    assert events(second) == ["ima.quote_progress"]


# -- I7, I8: the template hash is recomputed


@pytest.mark.parametrize("what", [b"sha256:", b"/usr/lib"])
def test_i7_an_altered_digest_or_path_is_named_although_its_template_hash_is_the_old(what: bytes) -> None:
    index = next(index for index, line in enumerate(LINES) if what in line and b"boot_aggregate" not in line)
    if what == b"sha256:":
        start = LINES[index].index(what) + len(what)
        altered = LINES[index][:start] + b"0000" + LINES[index][start + 4 :]
    else:
        altered = LINES[index].replace(what, b"/usr/bin", 1)
    result = verifier_of().appraise(text_of([*LINES[:index], altered, *LINES[index + 1 :]]), QUOTED)
    assert not result.pcr_matched
    assert [(finding.event_id, finding.log_index) for finding in result.findings] == [
        ("ima.validation.ima_hash", index)
    ]


def test_i8_an_altered_entry_with_a_right_template_hash_fails_by_pcr_10() -> None:
    entry = parse_line(LINES[20])
    altered = line_of(entry.template, f"{file_digest('evil')} {entry.name} ")
    result = verifier_of().appraise(text_of([*LINES[:20], altered, *LINES[21:]]), QUOTED)
    assert not result.pcr_matched
    assert result.findings == ()


# -- I9, I10: violations


def test_i9_i10_a_violation_fails_by_default_on_every_path_that_is_not_excluded() -> None:
    kernel = Kernel()
    kernel.violate("/usr/bin/bash")
    verifier = Verifier(policy(digests={"/usr/bin/bash": ["ab" * 32]}, excludes=["/usr/share/"]))
    assert events(verifier.appraise(kernel.text(), kernel.pcr)) == ["ima.validation.tomtou"]
    tolerated = replace(verifier, ignore_tomtou=True).appraise(kernel.text(), kernel.pcr)
    assert passes(tolerated)
    assert tolerated.violations == 1


def test_i10_the_path_of_a_violation_is_only_claimed_so_that_an_exclude_covers_whatever_claims_it() -> None:
    """The price of excludes (T22): all violations extend PCR 10 alike, nothing vouches for their names."""
    kernel = Kernel()
    kernel.violate("/usr/bin/bash")
    renamed = kernel.text().replace(b"/usr/bin/bash", b"/var/log/x")
    excluding = Verifier(policy(digests={"/usr/bin/bash": ["ab" * 32]}, excludes=["/var/log/"]))
    result = excluding.appraise(renamed, kernel.pcr)
    assert passes(result)
    assert result.violations == 1, "counted all the same"
    without = Verifier(policy(digests={"/usr/bin/bash": ["ab" * 32]}))
    assert events(without.appraise(renamed, kernel.pcr)) == ["ima.validation.tomtou"]


def test_i10_a_measured_entry_cannot_be_shown_as_a_violation() -> None:
    kernel = Kernel()
    kernel.run("/usr/bin/evil", "evil")
    shown = b"10 " + b"00" * 20 + kernel.lines[0][43:] + b"\n"
    result = replace(verifier_of(), ignore_tomtou=True).appraise(shown, kernel.pcr)
    assert not result.pcr_matched


# -- I11, I12, I16: names


@pytest.mark.parametrize("name", ["/a\n10 x", "/a b", "/a\tb", "/a\rb", "/a ", "/a\x00", "/" + "a" * 6000])
def test_i11_no_name_becomes_two_entries_or_another_name(name: str) -> None:
    kernel = Kernel()
    kernel.run("/a", "good")
    rules = policy(digests={"/a": [file_digest("good")]})
    data = name.encode()
    packed = b"\x28\0\0\0sha256:\0" + hashlib.sha256(b"good").digest()
    packed += (len(data) + 1).to_bytes(4, "little") + data + b"\0"
    column = HashAlgorithm.SHA1.digest(packed).hex()
    line = f"10 {column} ima-ng {file_digest('good')} ".encode() + data
    pcr = HashAlgorithm.SHA256.digest(bytes(32) + HashAlgorithm.SHA256.digest(packed))
    assert not passes(Verifier(rules).appraise(line + b"\n", pcr))


@pytest.mark.parametrize(
    "name", ["//usr/bin/a", "/usr/./bin/a", "/usr/bin/../bin/a", "/usr/bin/a_", "/usr/bin/A", "usr/bin/a"]
)
def test_i12_names_are_compared_byte_by_byte(name: str) -> None:
    kernel = Kernel()
    kernel.run(name, "good")
    rules = policy(digests={"/usr/bin/a": [file_digest("good")]})
    assert events(Verifier(rules).appraise(kernel.text(), kernel.pcr)) == [
        "ima.validation.ima-ng.not_in_allowlist"
    ]


def test_i13_files_that_only_an_exclude_allows_are_counted() -> None:
    kernel = Kernel()
    kernel.run("/var/cache/evil", "evil")
    result = Verifier(policy(excludes=["/var/cache/"])).appraise(kernel.text(), kernel.pcr)
    assert passes(result)
    assert result.excluded == 1


@pytest.mark.parametrize("source", [r"(a+)+\1$", r"(?=(a|a)*b)", r"(?:(?:a?){20}){20}(?!x)", r"((?=x)a*)*b"])
def test_i14_expressions_that_could_run_for_ever_are_refused(source: str) -> None:
    with pytest.raises(PolicyError, match=r"excludes\[0\]"):
        policy(excludes=[source])


def test_i14_accepted_expressions_are_fast_on_the_worst_names() -> None:
    rules = policy(excludes=[r"(a+)+$", r"(a|aa)+$", r"(.*)*x", r"(?!/usr).*b", "a?" * 30 + "a" * 30])
    started = time.process_time()
    for length in (100, 1000, 4000, 20_000):
        rules.is_excluded("a" * length + "!")
    assert time.process_time() - started < 1


@pytest.mark.parametrize("source", [".*", "", "/", "()|/opt", "^/", "[^ ]"])
def test_i15_expressions_that_exclude_nearly_everything_are_warned_about(source: str) -> None:
    assert any("excludes[0]" in warning for warning in policy(excludes=[source]).warnings)


def test_i16_a_digest_counts_under_its_own_path_only() -> None:
    rules = policy(digests={"/a": [file_digest("1")], "/b": [file_digest("2")]})
    for path, content, event in [("/a", "2", "runtime_policy_hash"), ("/c", "1", "not_in_allowlist")]:
        kernel = Kernel()
        kernel.run(path, content)
        assert events(Verifier(rules).appraise(kernel.text(), kernel.pcr)) == [
            f"ima.validation.ima-ng.{event}"
        ]


def test_i18_unlisted_execution_names_need_a_rule_of_their_own() -> None:
    kernel = Kernel()
    kernel.run("memfd:x_(deleted)", "evil")
    assert not passes(Verifier(policy()).appraise(kernel.text(), kernel.pcr))


# -- I19: boot_aggregate


def test_i19_boot_aggregate_must_agree_with_the_boot_and_come_first_and_once() -> None:
    real = "11" * 32
    aggregates = frozenset({real})
    for lines, verdict in [
        ([f"sha256:{real} boot_aggregate"], True),
        (["sha256:" + "22" * 32 + " boot_aggregate"], False),
        ([f"{file_digest('1')} /a"], False),
        ([f"sha256:{real} boot_aggregate", f"sha256:{real} boot_aggregate"], False),
        ([f"{file_digest('1')} /a", f"sha256:{real} boot_aggregate"], False),
    ]:
        kernel = Kernel()
        for fields in lines:
            kernel.add(line_of("ima-ng", fields))
        rules = policy(digests={"/a": [file_digest("1")]})
        verifier = Verifier(rules, boot_aggregates=aggregates).at_first_contact()
        assert passes(verifier.appraise(kernel.text(), kernel.pcr)) is verdict, lines


def test_i19_excluding_boot_aggregate_does_not_allow_a_second_one() -> None:
    kernel = Kernel()
    for content in "12":
        kernel.run("boot_aggregate", content)
    result = Verifier(policy(excludes=["boot_aggregate"])).appraise(kernel.text(), kernel.pcr)
    assert [finding.log_index for finding in result.findings] == [1]


# -- I20, I21, I30: where a list begins


@pytest.mark.parametrize("stated", [-1, 1, 146, 148, 2**63])
def test_i20_a_stated_offset_is_not_trusted(stated: int) -> None:
    verifier = verifier_of()
    first = verifier.appraise(STAGE.ascii_list, QUOTED)
    result = verifier.after(first).appraise(b"", QUOTED, stated=stated)
    assert events(result) == ["qoute_validation.invalid_ima_entry_nb"]
    assert not result.findings[0].recoverable


def test_i20_a_restart_from_entry_0_is_a_full_appraisal() -> None:
    verifier = verifier_of()
    first = verifier.appraise(STAGE.ascii_list, QUOTED)
    again = verifier.after(first).appraise(STAGE.ascii_list, QUOTED, stated=0)
    assert passes(again)
    assert again.entries == STAGE.entries
    assert not passes(verifier.after(first).appraise(b"", QUOTED, stated=0))


def test_i21_the_list_of_another_boot_does_not_reach_the_quote() -> None:
    other = capture("seabios-no-uefi").stage("s1-clean")
    assert not verifier_of(other).appraise(other.ascii_list, QUOTED).pcr_matched


def test_i30_a_trimmed_list_needs_a_checkpoint() -> None:
    fresh = verifier_of()
    assert events(fresh.appraise(text_of(LINES[50:]), QUOTED, stated=50)) == [
        "qoute_validation.invalid_ima_entry_nb"
    ]
    half = fresh.appraise(text_of(LINES[:50]), values_of(STAGE.ascii_list, HashAlgorithm.SHA256)[49])
    assert passes(fresh.after(half).appraise(text_of(LINES[50:]), QUOTED))


# -- I22 to I25, I28, I29: odd entries


def test_i22_an_entry_cannot_escape_by_naming_another_pcr() -> None:
    altered = b"11" + LINES[30][2:]
    result = verifier_of().appraise(text_of([*LINES[:30], altered, *LINES[31:]]), QUOTED)
    assert events(result) == ["ima.validation.ima_pcr"]


@pytest.mark.parametrize("template", ["ima-ngx", "d-ng|sig|n-ng", "sig|n-ng", "IMA-NG", "ima-ng\x00", ""])
def test_i23_unknown_templates_fail_by_name(template: str) -> None:
    altered = LINES[30].replace(b"ima-sig", template.encode())
    result = verifier_of().appraise(text_of([*LINES[:30], altered, *LINES[31:]]), QUOTED)
    assert events(result) == ["ima.parser.entry"]
    assert template.isprintable() is (template in result.findings[0].explanation)


def test_i23_templates_with_missing_or_more_fields_fail() -> None:
    for altered in (
        LINES[30].rsplit(b" ", 2)[0],
        LINES[30] + b" 00",
        LINES[30].replace(b"ima-sig", b"ima-ng"),
        LINES[30].replace(b"ima-sig", b"d-ng|n-ng"),
        LINES[30].replace(b"ima-sig", b"d-ng|n-ng|iuid"),
        LINES[30].replace(b"ima-sig", b"d-ngv2|n-ng|sig"),
    ):
        assert not passes(verifier_of().appraise(text_of([*LINES[:30], altered, *LINES[31:]]), QUOTED))


@pytest.mark.parametrize(
    "digest", ["sha256:" + "ab" * 20, "md4:" + "ab" * 16, "none:" + "ab" * 32, "ab" * 32, "sha256:"]
)
def test_i24_digests_without_a_known_algorithm_of_their_length_fail(digest: str) -> None:
    altered = b"10 " + b"ab" * 20 + b" ima-ng " + digest.encode() + b" /x"
    assert events(Verifier(policy()).appraise(altered + b"\n", bytes(31) + b"\1")) == ["ima.parser.entry"]


def test_i25_sha1_digests_pass_only_where_the_policy_lists_them() -> None:
    kernel = Kernel()
    kernel.add(line_of("ima", "ab" * 20 + " /x"))
    assert not passes(Verifier(policy(digests={"/x": ["cd" * 32]})).appraise(kernel.text(), kernel.pcr))
    assert passes(Verifier(policy(digests={"/x": ["ab" * 20]})).appraise(kernel.text(), kernel.pcr))


def test_i26_signatures_count_only_by_known_keys_over_the_files_digest() -> None:
    stage = capture("grub-secureboot").stage("s1-clean")
    document = json.loads(POLICIES[stage.capture, stage.name].to_json())
    signed = {path for path in document["digests"] if "/signed-" in path}
    document["digests"] = {path: values for path, values in document["digests"].items() if path not in signed}
    rules = parse_runtime_policy(json.dumps(document))
    quoted = stage.pcrs("sha256")[10]
    keys = keyring_of([(IMA_KEYS_DIRECTORY / f"ima-{kind}.crt.der").read_bytes() for kind in ("rsa", "ec")])
    without = Verifier(rules).appraise(stage.ascii_list, quoted)
    assert {finding.path for finding in without.findings} == signed
    known = Verifier(rules, tenant_keys=keys).appraise(stage.ascii_list, quoted)
    assert [finding.path for finding in known.findings] == ["/opt/lab/bin/signed-stale.sh"]


def test_i27_an_unlisted_key_in_the_list_verifies_nothing() -> None:
    key = (IMA_KEYS_DIRECTORY / "ima-rsa.crt.der").read_bytes()
    kernel = Kernel()
    kernel.add(line_of("ima-buf", f"sha256:{hashlib.sha256(key).hexdigest()} .ima {key.hex()}"))
    signed = next(line for line in map(parse_line, LINES) if line.name.endswith("signed-rsa.sh"))
    kernel.add(signed.to_line())
    result = Verifier(policy(excludes=[r"\.ima$"])).appraise(kernel.text(), kernel.pcr)
    assert [finding.path for finding in result.findings] == [signed.name]


@pytest.mark.parametrize("buffer", ["0", "zz", "00 00", "30820"])
def test_i28_buffers_of_broken_hex_fail(buffer: str) -> None:
    line = b"10 " + b"ab" * 20 + f" ima-buf {file_digest('1')} x {buffer}".encode()
    assert events(Verifier(policy()).appraise(line + b"\n", bytes(31) + b"\1")) == ["ima.parser.entry"]


def test_i28_i29_huge_buffers_and_lines_are_judged_like_any_other() -> None:
    data = bytes(5_000_000)
    kernel = Kernel()
    kernel.add(line_of("ima-buf", f"sha256:{hashlib.sha256(data).hexdigest()} dm_table_load {data.hex()}"))
    kernel.run("/" + "x" * 5_000_000, "1")
    started = time.process_time()
    result = Verifier(policy()).appraise(kernel.text(), kernel.pcr)
    assert len(result.findings) == 2
    assert time.process_time() - started < 2


def test_i31_a_machine_that_measures_all_the_time_makes_progress() -> None:
    kernel = Kernel()
    rules = policy(digests={f"/file-{number}": [file_digest("x")] for number in range(400)})
    verifier = Verifier(rules)
    number = 0
    for _ in range(20):
        for _ in range(10):
            kernel.run(f"/file-{number}", "x")
            number += 1
        quoted = kernel.pcr
        for _ in range(7):  # between quote and list
            kernel.run(f"/file-{number}", "x")
            number += 1
        result = verifier.appraise(kernel.text(verifier.known.next_entry), quoted)
        assert passes(result)
        verifier = verifier.after(result)
    assert verifier.known.next_entry == number - 7


# -- P4, P5, P8, P10


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(stages()), st.booleans(), st.data())
def test_p4_a_list_in_two_rounds_has_the_verdict_of_one(
    stage: Stage, tolerant: bool, data: st.DataObject
) -> None:
    values = values_of(stage.ascii_list, HashAlgorithm.SHA256)
    clean = capture(stage.capture).stage("s1-clean")
    verifier = Verifier(POLICIES[clean.capture, clean.name], ignore_tomtou=tolerant, memo=MEMO)
    whole = verifier.appraise(stage.ascii_list, values[-1])
    lines = split_lines(stage.ascii_list)
    cut = data.draw(st.integers(1, len(lines) - 1))
    ahead = data.draw(st.integers(cut, len(lines)))
    first = verifier.appraise(text_of(lines[:ahead]), values[cut - 1])
    if not passes(first):
        assert all(finding in whole.findings for finding in first.findings)
        assert not passes(whole)
        return
    stored = msgspec.json.decode(msgspec.json.encode(first.checkpoint), type=ImaCheckpoint)
    second = replace(verifier, checkpoint=stored, memo=EntryMemo()).appraise(text_of(lines[cut:]), values[-1])
    assert second.findings == whole.findings
    assert passes(second) is passes(whole)
    if passes(whole):
        assert second.checkpoint.next_entry == whole.checkpoint.next_entry
        assert second.checkpoint.pcr == whole.checkpoint.pcr


@pytest.mark.parametrize("stage", stages(), ids=lambda stage: f"{stage.capture}/{stage.name}")
def test_p5_the_verdict_does_not_depend_on_what_was_seen_before(stage: Stage) -> None:
    clean = capture(stage.capture).stage("s1-clean")
    rules = POLICIES[clean.capture, clean.name]
    results = [
        Verifier(rules, memo=memo).appraise(stage.ascii_list, stage.pcrs("sha256")[10])
        for memo in (EntryMemo(), MEMO, MEMO, EntryMemo(capacity=1500))
    ]
    assert all(result == results[0] for result in results)


@settings(deadline=None)
@given(
    st.binary(max_size=2000), st.sampled_from(list(HashAlgorithm)[:4]), st.binary(min_size=20, max_size=20)
)
def test_p8_any_bytes_are_a_list_with_a_verdict(text: bytes, bank: HashAlgorithm, quoted: bytes) -> None:
    verifier = replace(verifier_of(), bank=bank)
    result = verifier.appraise(text, quoted.ljust(bank.size, b"\1"))
    assert result.entries == 0
    assert result.pcr_matched is (not any(quoted) and bank is HashAlgorithm.SHA1)


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.sampled_from(["/a", "/b", "/c"]), st.sets(st.sampled_from("123"), min_size=1)),
    st.dictionaries(st.sampled_from(["/a", "/b", "/c"]), st.sets(st.sampled_from("123"), min_size=1)),
    st.sampled_from([[], ["/b"]]),
)
def test_p10_a_merged_policy_allows_exactly_the_union(
    one: dict[str, set[str]], other: dict[str, set[str]], excludes: list[str]
) -> None:
    first, second = (
        policy(
            digests={
                path: [file_digest(content) for content in contents] for path, contents in rules.items()
            },
            excludes=out,
        )
        for rules, out in ((one, excludes), (other, []))
    )
    merged = merge(first, second)
    assert merged.content_hash == merge(second, first).content_hash
    for path in ("/a", "/b", "/c"):
        for content in "123":
            kernel = Kernel()
            kernel.run(path, content)
            verdicts = [
                passes(Verifier(rules).appraise(kernel.text(), kernel.pcr))
                for rules in (first, second, merged)
            ]
            assert verdicts[2] is (verdicts[0] or verdicts[1])


def test_a_padded_bank_is_not_accepted_for_a_native_one_later() -> None:
    native = Kernel(HashAlgorithm.SHA384, ExtendMode.NATIVE)
    native.run("/a", "1")
    verifier = Verifier(policy(digests={"/a": [file_digest("1")]}), bank=HashAlgorithm.SHA384)
    verifier = verifier.after(verifier.appraise(native.text(), native.pcr))
    padded = Kernel(HashAlgorithm.SHA384, ExtendMode.PADDED_SHA1)
    padded.pcr = native.pcr
    padded.run("/a", "1")
    assert not verifier.appraise(padded.text(), padded.pcr).pcr_matched
