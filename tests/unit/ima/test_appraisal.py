import json
from dataclasses import replace

import msgspec
import pytest

from keylime.hashes import HashAlgorithm
from keylime.ima.checkpoint import ImaCheckpoint
from keylime.ima.measurement_list import parse_line, split_lines
from keylime.ima.memo import EntryMemo
from keylime.ima.replay import ExtendMode
from keylime.ima.runtime_policy import EMPTY_POLICY, RuntimePolicy, parse_runtime_policy
from tests.captures import CAPTURE_NAMES, Stage, capture, stages
from tests.evidence import policy_of
from tests.ima_rounds import Kernel, Verifier, file_digest, line_of

CASES = [(stage, bank) for stage in stages() for bank in stage.banks]
TAMPERED = {
    "/usr/local/bin/hello.sh": "ima.validation.ima-ng.runtime_policy_hash",
    "/usr/local/bin/dropped-in": "ima.validation.ima-ng.not_in_allowlist",
    "/opt/lab/moved/a.sh": "ima.validation.ima-ng.not_in_allowlist",
}


def policy_for(files: dict[str, str], **changes: object) -> RuntimePolicy:
    """A policy that allows these contents under these paths, with top-level keys changed."""
    document = json.loads(EMPTY_POLICY)
    document["meta"]["generator"] = 3
    document["digests"] = {path: [file_digest(content)] for path, content in files.items()}
    return parse_runtime_policy(json.dumps({**document, **changes}))


def machine(*files: tuple[str, str]) -> Kernel:
    kernel = Kernel()
    for path, content in files:
        kernel.run(path, content)
    return kernel


@pytest.mark.parametrize(("stage", "bank"), CASES, ids=[f"{s.capture}/{s.name}/{b}" for s, b in CASES])
def test_captured_lists_are_accepted_under_a_policy_that_lists_them(stage: Stage, bank: str) -> None:
    verifier = Verifier(
        policy_of([stage.ascii_list]), bank=HashAlgorithm.from_label(bank), ignore_tomtou=True
    )
    quoted = stage.pcrs(bank)[10]
    for _ in range(2):  # the second time from memory
        result = verifier.appraise(stage.ascii_list, quoted)
        assert result.findings == ()
        assert result.pcr_matched
        assert result.reached_end
        assert (result.entries, result.violations) == (stage.entries, stage.violations)
        assert result.extend_mode is ExtendMode(stage.pcr10_extension(bank))
        assert result.checkpoint.next_entry == stage.entries


@pytest.mark.parametrize("name", CAPTURE_NAMES)
def test_a_tampered_machine_is_named_by_exactly_the_tampered_paths(name: str) -> None:
    clean, tampered = capture(name).stage("s1-clean"), capture(name).stage("s2-tampered")
    known = {parse_line(line).name for line in split_lines(clean.ascii_list)}
    new = {
        entry.name
        for entry in map(parse_line, split_lines(tampered.ascii_list)[clean.entries :])
        if entry.name not in known
    }
    result = Verifier(policy_of([clean.ascii_list])).appraise(
        tampered.ascii_list, tampered.pcrs("sha256")[10]
    )
    found = {finding.path: finding.event_id for finding in result.findings}
    assert found.items() >= TAMPERED.items()
    assert found.keys() == new | {"/usr/local/bin/hello.sh"}
    assert result.checkpoint == ImaCheckpoint.fresh()
    for finding in result.findings:
        assert finding.recoverable
        assert finding.log_index is not None
        line = split_lines(tampered.ascii_list)[finding.log_index]
        assert parse_line(line).name == finding.path
        assert parse_line(line).digest.hex() == finding.observed


@pytest.mark.parametrize("name", CAPTURE_NAMES)
def test_violations_fail_unless_they_are_to_be_ignored(name: str) -> None:
    stage = capture(name).stage("s3-violations")
    strict = Verifier(policy_of([stage.ascii_list]))
    result = strict.appraise(stage.ascii_list, stage.pcrs("sha256")[10])
    assert [finding.event_id for finding in result.findings] == ["ima.validation.tomtou"] * stage.violations
    assert result.violations == stage.violations
    lenient = replace(strict, ignore_tomtou=True).appraise(stage.ascii_list, stage.pcrs("sha256")[10])
    assert lenient.findings == ()
    assert lenient.violations == stage.violations


def test_a_list_ahead_of_the_quote_is_accepted_up_to_the_quote_and_fetched_again() -> None:
    kernel = machine(("/a", "1"), ("/b", "2"))
    quoted = kernel.pcr
    kernel.run("/evil", "3")
    verifier = Verifier(policy_for({"/a": "1", "/b": "2"}))
    first = verifier.appraise(kernel.text(), quoted)
    assert (first.findings, first.entries, first.uncovered) == ((), 2, 1)
    assert first.pcr_matched
    assert not first.reached_end
    assert first.checkpoint.next_entry == 2
    second = verifier.after(first).appraise(kernel.text(2), kernel.pcr)
    assert [(finding.path, finding.log_index) for finding in second.findings] == [("/evil", 2)]


def test_a_quote_ahead_of_the_list_is_no_match_and_no_finding() -> None:
    kernel = machine(("/a", "1"))
    text = kernel.text()
    kernel.run("/b", "2")
    verifier = Verifier(policy_for({"/a": "1"}))
    result = verifier.appraise(text, kernel.pcr)
    assert not result.pcr_matched
    assert result.findings == ()
    assert result.checkpoint == verifier.known
    assert result.replayed is not None
    assert result.replayed != kernel.pcr
    assert not result.reached_end
    assert not verifier.appraise(b"", kernel.pcr).reached_end


def test_violations_are_not_judged_before_the_list_reaches_its_quote() -> None:
    kernel = machine(("/a", "1"))
    kernel.violate("/a")
    text = kernel.text()
    kernel.run("/b", "2")
    assert Verifier(policy_for({"/a": "1"})).appraise(text, kernel.pcr).findings == ()


def test_blank_lines_keep_their_index_and_say_nothing() -> None:
    kernel = machine(("/a", "1"), ("/b", "2"))
    text = kernel.lines[0] + b"\n\n" + kernel.lines[1] + b"\n"
    result = Verifier(policy_for({"/a": "1"})).appraise(text, kernel.pcr)
    assert [(finding.path, finding.log_index) for finding in result.findings] == [("/b", 2)]
    assert result.entries == 3


def test_lines_before_the_quote_moves_are_neither_judged_nor_counted() -> None:
    kernel = machine(("/a", "1"))
    quoted = kernel.pcr
    verifier = Verifier(policy_for({"/a": "1", "/b": "2"}))
    verifier = verifier.after(verifier.appraise(kernel.text(), quoted))
    kernel.run("/b", "2")
    kernel.run("/evil", "3")
    early = verifier.appraise(kernel.text(1), quoted)
    assert (early.findings, early.entries, early.uncovered) == ((), 0, 2)
    assert (early.checkpoint.next_entry, early.checkpoint.pcr) == (1, quoted)


def test_only_the_first_part_of_a_list_must_begin_with_boot_aggregate() -> None:
    kernel = machine(("boot_aggregate", "boot"))
    digest = parse_line(kernel.lines[0]).digest.hex()
    verifier = Verifier(policy_for({"/a": "1"}), boot_aggregates=frozenset({digest})).at_first_contact()
    first = verifier.appraise(kernel.text(), kernel.pcr)
    assert first.checkpoint.anchored
    kernel.run("/a", "1")
    later = verifier.after(first).appraise(kernel.text(1), kernel.pcr)
    assert (later.findings, later.checkpoint.anchored) == ((), True)
    unproven = msgspec.structs.replace(first.checkpoint, anchored=False)
    result = replace(verifier, checkpoint=unproven).appraise(kernel.text(1), kernel.pcr)
    assert [finding.event_id for finding in result.findings] == ["qoute_validation.invalid_ima_entry_nb"]


def test_a_round_without_news_keeps_the_checkpoint() -> None:
    kernel = machine(("/a", "1"))
    verifier = Verifier(policy_for({"/a": "1"}))
    first = verifier.appraise(kernel.text(), kernel.pcr)
    second = verifier.after(first).appraise(b"", kernel.pcr)
    assert second.reached_end
    assert second.checkpoint.next_entry == 1
    assert second.checkpoint.pcr == kernel.pcr


def test_an_empty_list_is_a_finding_when_nothing_was_extended() -> None:
    """Not even boot_aggregate: this kernel has no IMA, or was told to measure nothing."""
    for text in (b"", b"\n", b"\n\n"):
        result = Verifier(policy_for({})).at_first_contact().appraise(text, bytes(32))
        assert [(finding.event_id, finding.recoverable) for finding in result.findings] == [
            ("ima.nothing_measured", True)
        ]
        assert "ima_policy=" in str(result.findings[0].hint)
        assert result.checkpoint == ImaCheckpoint.fresh()


def test_lines_before_anything_was_extended_are_no_match_and_no_finding() -> None:
    kernel = machine(("boot_aggregate", "boot"))
    verifier = Verifier(policy_for({"boot_aggregate": "boot"})).at_first_contact()
    early = verifier.appraise(kernel.text(), bytes(32))
    assert (early.pcr_matched, early.findings, early.uncovered) == (False, (), 1)
    assert early.checkpoint == ImaCheckpoint.fresh()
    assert verifier.appraise(kernel.text(), kernel.pcr).checkpoint.anchored


def test_entries_that_were_ahead_must_be_covered_by_the_next_quote() -> None:
    kernel = machine(("boot_aggregate", "boot"))
    quoted = kernel.pcr
    forged = kernel.text() + line_of("ima-ng", f"{file_digest('9')} /never-ran") + b"\n"
    verifier = Verifier(policy_for({"boot_aggregate": "boot"})).at_first_contact()
    first = verifier.appraise(forged, quoted)
    assert first.findings == ()
    for text, stated in (
        (forged.split(b"\n", 1)[1], 1),  # shown again
        (b"", 1),  # withdrawn: a kernel's list never gets shorter
        (forged, 0),
        (kernel.text(), 0),
    ):
        second = verifier.after(first).appraise(text, quoted, stated=stated)
        assert [finding.event_id for finding in second.findings] == ["ima.quote_progress"]


def test_entries_that_were_ahead_are_covered_when_the_next_quote_reaches_just_the_last_of_them() -> None:
    kernel = machine(("/a", "1"))
    quotes = [kernel.pcr]
    for path in ("/b", "/c"):
        kernel.run(path, "1")
        quotes.append(kernel.pcr)
    verifier = Verifier(policy_for({"/a": "1", "/b": "1"}))
    first = verifier.appraise(b"".join(line + b"\n" for line in kernel.lines[:2]), quotes[0])
    assert (first.findings, first.checkpoint.lag) == ((), 1)
    second = verifier.after(first).appraise(kernel.text(1), quotes[1])
    assert (second.findings, second.checkpoint.lag) == ((), 1)


@pytest.mark.parametrize("stated", [1, 3, -1, 10**9])
def test_only_the_entry_asked_for_or_the_first_may_begin_a_list(stated: int) -> None:
    kernel = machine(("boot_aggregate", "boot"), ("/b", "2"))
    verifier = Verifier(policy_for({"boot_aggregate": "boot", "/b": "2"})).at_first_contact()
    verifier = verifier.after(verifier.appraise(kernel.text(), kernel.pcr))
    result = verifier.appraise(b"", kernel.pcr, stated=stated)
    assert [finding.event_id for finding in result.findings] == ["qoute_validation.invalid_ima_entry_nb"]
    assert not result.findings[0].recoverable
    assert not result.pcr_matched
    assert verifier.appraise(kernel.text(), kernel.pcr, stated=0).findings == ()


def test_a_checkpoint_of_another_bank_cannot_be_continued() -> None:
    kernel = machine(("/a", "1"))
    verifier = Verifier(policy_for({"/a": "1"}))
    verifier = replace(verifier.after(verifier.appraise(kernel.text(), kernel.pcr)), bank=HashAlgorithm.SHA1)
    assert verifier.appraise(b"", bytes(20)).findings[0].event_id == "qoute_validation.invalid_ima_entry_nb"


def test_a_kernel_that_pads_is_recognised_once_and_remembered() -> None:
    kernel = Kernel(HashAlgorithm.SHA384, ExtendMode.PADDED_SHA1)
    kernel.run("/a", "1")
    verifier = Verifier(policy_for({"/a": "1", "/b": "2"}), bank=HashAlgorithm.SHA384)
    first = verifier.appraise(kernel.text(), kernel.pcr)
    assert first.checkpoint.extend_mode == "sha1-zero-padded"
    other = Kernel(HashAlgorithm.SHA384, ExtendMode.NATIVE, pcr=b"")
    other.pcr = kernel.pcr
    other.run("/b", "2")
    changed = verifier.after(first).appraise(other.text(), other.pcr)
    assert not changed.pcr_matched
    kernel.run("/b", "2")
    assert verifier.after(first).appraise(kernel.text(1), kernel.pcr).reached_end


def test_violations_alone_do_not_tell_how_a_kernel_extends() -> None:
    kernel = Kernel(HashAlgorithm.SHA384, ExtendMode.PADDED_SHA1)
    kernel.violate("/a")
    verifier = Verifier(policy_for({"/b": "2"}), bank=HashAlgorithm.SHA384, ignore_tomtou=True)
    first = verifier.appraise(kernel.text(), kernel.pcr)
    assert (first.violations, first.extend_mode, first.checkpoint.extend_mode) == (1, None, None)
    kernel.run("/b", "2")
    second = verifier.after(first).appraise(kernel.text(1), kernel.pcr)
    assert second.extend_mode is ExtendMode.PADDED_SHA1
    kernel.violate("/a")
    third = verifier.after(second).appraise(kernel.text(2), kernel.pcr)
    assert third.checkpoint.extend_mode == "sha1-zero-padded", "what was told once is kept"


def test_a_kernel_that_pads_may_list_the_hashes_of_the_bank_all_the_same() -> None:
    kernel = Kernel(mode=ExtendMode.PADDED_SHA1)
    kernel.add(line_of("ima-ng", f"{file_digest('1')} /a", column=HashAlgorithm.SHA256))
    ima: dict[str, object] = {"ignored_keyrings": [], "log_hash_alg": "sha256", "dm_policy": None}
    result = Verifier(policy_for({"/a": "1"}, ima=ima)).appraise(kernel.text(), kernel.pcr)
    assert result.reached_end
    assert result.extend_mode is ExtendMode.PADDED_SHA1


def test_the_boot_aggregate_of_the_measured_boot_is_accepted_beside_the_policys() -> None:
    kernel = machine(("boot_aggregate", "boot"), ("/a", "1"))
    digest = parse_line(kernel.lines[0]).digest.hex()
    verifier = Verifier(policy_for({"/a": "1"}))
    unknown = verifier.appraise(kernel.text(), kernel.pcr)
    assert [finding.event_id for finding in unknown.findings] == ["ima.validation.ima-ng.not_in_allowlist"]
    right = replace(verifier, boot_aggregates=frozenset({digest, "00" * 32}))
    assert right.appraise(kernel.text(), kernel.pcr).findings == ()
    wrong = replace(verifier, boot_aggregates=frozenset({"00" * 32}))
    findings = wrong.appraise(kernel.text(), kernel.pcr).findings
    assert [finding.event_id for finding in findings] == ["ima.validation.ima-ng.runtime_policy_hash"]
    listed = replace(wrong, policy=policy_for({"boot_aggregate": "boot", "/a": "1"}))
    assert listed.appraise(kernel.text(), kernel.pcr).findings == ()
    assert "boot_aggregate" not in verifier.policy.digests


def test_a_second_boot_aggregate_needs_a_measured_kexec() -> None:
    kexec = line_of("ima-buf", f"{file_digest('quiet')} kexec-cmdline {b'quiet'.hex()}")
    policy = policy_for({"boot_aggregate": "boot"}, **{"ima-buf": {"kexec-cmdline": [file_digest("quiet")]}})
    with_kexec = machine(("boot_aggregate", "boot"))
    with_kexec.add(kexec)
    with_kexec.run("boot_aggregate", "boot")
    assert Verifier(policy).appraise(with_kexec.text(), with_kexec.pcr).findings == ()
    with_kexec.run("boot_aggregate", "boot")
    findings = Verifier(policy).appraise(with_kexec.text(), with_kexec.pcr).findings
    assert [finding.log_index for finding in findings] == [3], "one kexec explains one boot_aggregate"
    without = machine(("boot_aggregate", "boot"), ("boot_aggregate", "boot"))
    findings = Verifier(policy).appraise(without.text(), without.pcr).findings
    assert [(finding.path, finding.log_index) for finding in findings] == [("boot_aggregate", 1)]


def test_excluded_files_are_counted_and_listed_ones_are_not() -> None:
    policy = policy_for({"/a": "1"}, excludes=["/scratch/", "/a"])
    kernel = machine(("/a", "1"), ("/scratch/x", "2"), ("/a", "changed"))
    verifier = Verifier(policy)
    for _ in range(2):
        result = verifier.appraise(kernel.text(), kernel.pcr)
        assert (result.findings, result.excluded) == ((), 2)


def test_findings_are_bounded_but_counted() -> None:
    kernel = machine(*((f"/evil-{number}", "x") for number in range(1500)))
    result = Verifier(policy_for({})).appraise(kernel.text(), kernel.pcr)
    assert len(result.findings) == 1000
    assert result.failures == 1500


LISTED = {f"/file-{number}": "x" for number in range(3500)}


@pytest.mark.parametrize(
    ("files", "quoted", "pauses"),
    [
        (LISTED, None, 7),
        ({}, None, 7 + 35),  # each of the entries must be judged, which may take a signature check
        (LISTED, bytes(31) + b"\1", 7 + 7),  # nothing to judge: replayed in both modes
        ({}, bytes(31) + b"\1", 7 + 7 + 35),  # and searched for lines that no kernel wrote
    ],
    ids=["listed", "unlisted", "listed, no match", "unlisted, no match"],
)
def test_others_have_their_turn_after_every_five_hundred_lines_and_every_hundred_judged(
    files: dict[str, str], quoted: bytes | None, pauses: int
) -> None:
    kernel = machine(*LISTED.items())
    steps = Verifier(policy_for(files)).steps(kernel.text(), kernel.pcr if quoted is None else quoted)
    assert len(list(steps)) >= pauses


def test_a_memory_full_of_one_policy_says_nothing_under_another() -> None:
    kernel = machine(("/a", "1"), ("/b", "2"))
    memo = EntryMemo()
    generous = Verifier(policy_for({"/a": "1", "/b": "2"}), memo=memo)
    assert generous.appraise(kernel.text(), kernel.pcr).findings == ()
    strict = Verifier(policy_for({"/a": "1"}), memo=memo)
    assert [finding.path for finding in strict.appraise(kernel.text(), kernel.pcr).findings] == ["/b"]
    unrelated = machine(("/b", "2"))
    assert not strict.appraise(unrelated.text(), kernel.pcr).pcr_matched


def test_an_unsupported_template_is_named() -> None:
    kernel = machine(("/a", "1"))
    text = kernel.text() + b"10 " + b"ab" * 20 + b" ima-new whatever\n"
    result = Verifier(policy_for({"/a": "1"})).appraise(text, bytes(31) + b"\1")
    (finding,) = result.findings
    assert finding.event_id == "ima.parser.entry"
    assert finding.log_index == 1
    assert "ima-new" in finding.explanation


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        ("ima", "ab" * 20 + " /x"),
        ("ima-sig", "sha256:" + "ab" * 32 + " /x "),
        ("ima-ngv2", "ima:sha256:" + "ab" * 32 + " /x"),
        ("ima-sigv2", "verity:sha256:" + "ab" * 32 + " /x "),
        ("ima-modsig", "sha256:" + "ab" * 32 + " /x  sha256:" + "cd" * 32 + " 3000"),
        ("evm-sig", "sha256:" + "ab" * 32 + " /x  security.ima 10000000 aa 0 0 33261"),
    ],
)
def test_every_template_is_judged_by_its_file_digest(template: str, fields: str) -> None:
    kernel = Kernel()
    kernel.add(line_of(template, fields))
    right = policy_for({}, digests={"/x": ["ab" * 32, "ab" * 20]})
    assert Verifier(right).appraise(kernel.text(), kernel.pcr).findings == ()
    wrong = policy_for({}, digests={"/x": ["cd" * 32]})
    findings = Verifier(wrong).appraise(kernel.text(), kernel.pcr).findings
    assert [finding.event_id for finding in findings] == ["ima.validation.ima-ng.runtime_policy_hash"]


def test_per_bank_lists_are_checked_against_the_log_hash_of_the_policy() -> None:
    kernel = Kernel()
    kernel.add(line_of("ima-ng", f"{file_digest('1')} /a", column=HashAlgorithm.SHA256))
    ima: dict[str, object] = {"ignored_keyrings": [], "log_hash_alg": "sha256", "dm_policy": None}
    assert Verifier(policy_for({"/a": "1"}, ima=ima)).appraise(kernel.text(), kernel.pcr).reached_end
    findings = Verifier(policy_for({"/a": "1"})).appraise(kernel.text(), kernel.pcr).findings
    assert [finding.event_id for finding in findings] == ["ima.validation.ima_hash"]
    assert findings[0].rule == "ima.log_hash_alg sha1"


def test_a_zero_template_hash_of_another_length_is_no_violation() -> None:
    fields = f"{file_digest('1')} /a"
    kernel = Kernel()
    kernel.add(line_of("ima-ng", fields))
    forged = b"10 " + b"00" * 32 + b" ima-ng " + fields.encode() + b"\n"
    findings = Verifier(policy_for({"/a": "1"}), ignore_tomtou=True).appraise(forged, kernel.pcr).findings
    assert [finding.event_id for finding in findings] == ["ima.validation.ima_hash"]


def test_a_checkpoint_survives_its_json_form() -> None:
    stage = capture("direct-critical-data-4banks").stage("s1-clean")
    verifier = Verifier(policy_of([stage.ascii_list]), bank=HashAlgorithm.SHA512)
    result = verifier.appraise(stage.ascii_list, stage.pcrs("sha512")[10])
    text = msgspec.json.encode(result.checkpoint)
    assert msgspec.json.decode(text, type=ImaCheckpoint) == result.checkpoint
