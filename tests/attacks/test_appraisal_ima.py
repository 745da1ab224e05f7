"""Attacks on the measurement list, I1 to I33 of the attack catalogue, judged as whole rounds.

The rules for single entries are tested in `test_ima_attacks`; here counts what the agent's verdict is, with a
quote around the list. Every machine used passes when it is honest.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from keylime.appraisal.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from keylime.appraisal.reference import Reference
from keylime.appraisal.verdict import Accepted, Incomplete, Rejected, Verdict
from keylime.errors import PolicyError
from keylime.hashes import HashAlgorithm
from keylime.ima.keyrings import keyring_of
from keylime.ima.measurement_list import parse_line, split_lines, violation_line
from keylime.ima.names import list_text
from keylime.ima.replay import ExtendMode
from keylime.ima.runtime_policy import EMPTY_POLICY, RuntimePolicy, parse_runtime_policy
from keylime.measured_boot.boot_policy import MeasuredBootPolicy
from keylime.tpm.keys import SignatureScheme
from keylime.tpm.tpm_policy import TpmPolicy
from keylime_verifier.agent_client import MAX_ANSWER
from keylime_verifier.polling.answer_budget import LONG_ANSWERS, ORDINARY_ANSWER
from tests.appraisal_rounds import MISMATCH, NOT_LISTED, WRONG_DIGEST, Watch, events
from tests.captures import IMA_KEYS_DIRECTORY, capture
from tests.evidence import SoftwareMachine, boot_policy, policy_of, reference
from tests.fakes.software_ak import SoftwareAk
from tests.ima_rounds import BOOT_DIGEST, BOOTED, Kernel, file_digest, line_of, values_of

AK = SoftwareAk.generate("ecc256", SignatureScheme.ECDSA)
CLEAN = capture("direct-efistub").stage("s1-clean")
LINES = split_lines(CLEAN.ascii_list)
CLEAN_POLICY = policy_of([CLEAN.ascii_list])
EVIL = line_of("ima-ng", f"{file_digest('evil')} /usr/bin/evil")


def policy(**changes: object) -> RuntimePolicy:
    """A policy that lists the boot of `Kernel.booted`."""
    document = json.loads(EMPTY_POLICY)
    document["meta"]["generator"] = 3
    document |= changes
    document["digests"] = {"boot_aggregate": [BOOT_DIGEST], **document["digests"]}
    return parse_runtime_policy(json.dumps(document))


def text_of(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def captured() -> Watch:
    """The captured machine with its boot log, held to its own list."""
    machine = SoftwareMachine.of_stage(CLEAN)
    machine.ak = AK
    known = reference(AK.tpm2b_public, measured_boot=boot_policy(), runtime_policy=CLEAN_POLICY)
    return Watch(machine, known)


def running(kernel: Kernel, rules: RuntimePolicy, **changes: object) -> Watch:
    """A machine without boot log whose IMA is `kernel`, held to `rules`."""
    known: Reference = reference(AK.tpm2b_public, runtime_policy=rules, **changes)
    machine = SoftwareMachine(ak=AK, bank=kernel.bank, pcrs={10: kernel.pcr}, ima_list=kernel.text())
    return Watch(machine, known)


def update(watch: Watch, kernel: Kernel) -> None:
    watch.machine.pcrs[10], watch.machine.ima_list = kernel.pcr, kernel.text()


def verdict_on(rules: RuntimePolicy, *files: tuple[str, str], **changes: object) -> Verdict:
    kernel = Kernel.booted()
    for path, content in files:
        kernel.run(path, content)
    return running(kernel, rules, **changes).round()


def retried(watch: Watch, **lies: Any) -> list[str]:
    """The findings after the one round without a verdict that a list which does not reach its quote gets."""
    watch.incomplete(**lies)
    return events(watch.round(**lies))


def test_the_honest_machines_pass() -> None:
    """Without this, every refusal here could have another reason."""
    captured().accept()
    assert isinstance(verdict_on(policy(digests={"/a": [file_digest("1")]}), ("/a", "1")), Accepted)


@pytest.mark.parametrize("missing", [1, 2, 50, len(LINES) - 1, len(LINES)])
def test_i1_a_list_cut_off_at_its_end_fails_after_one_more_try(missing: int) -> None:
    watch = captured()
    watch.machine.ima_list = text_of(LINES[: len(LINES) - missing])
    assert retried(watch) == [MISMATCH]
    assert retried(watch) == [MISMATCH], "a failure does not buy more than one new try"


def test_i1_a_cut_list_is_named_beside_what_else_is_wrong() -> None:
    watch = captured()
    watch.machine.ima_list = text_of(LINES[:-1])
    assert events(watch.round(pubkey="another key")) == ["pcr_validation.invalid_pcr_16", MISMATCH]


def test_i1_an_unlisted_file_and_a_new_payload_key_are_named_together() -> None:
    kernel = Kernel.booted()
    kernel.run("/a", "1")
    watch = running(kernel, policy(digests={"/a": [file_digest("1")]}))
    watch.accept()
    kernel.run("/usr/bin/evil", "evil")
    update(watch, kernel)
    watch.machine.public_key = "another key, which nobody was asked for"
    assert events(watch.round()) == ["pcr_validation.invalid_pcr_16", NOT_LISTED]


def test_i1_a_list_cut_off_in_a_later_round_fails_after_one_more_try() -> None:
    kernel = Kernel.booted()
    kernel.run("/a", "1")
    watch = running(kernel, policy(digests={"/a": [file_digest("1")]}))
    watch.accept()
    kernel.run("/usr/bin/evil", "evil")
    watch.machine.pcrs[10] = kernel.pcr  # the list without the new entry
    assert retried(watch) == [MISMATCH]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda lines: lines[1:], id="i2-first"),
        pytest.param(lambda lines: lines[60:], id="i2-many"),
        pytest.param(lambda lines: lines[:70] + lines[71:], id="i3"),
        pytest.param(lambda lines: [*lines[:70], lines[71], lines[70], *lines[72:]], id="i4"),
        pytest.param(lambda lines: [*lines[:-2], lines[-1], lines[-2]], id="i4-last"),
        pytest.param(lambda lines: [*lines[:70], EVIL, *lines[70:]], id="i5"),
        pytest.param(lambda lines: [EVIL, *lines], id="i5-first"),
        pytest.param(lambda lines: [*lines[:-1], EVIL, lines[-1]], id="i5-last"),
        pytest.param(lambda lines: [*lines[:70], lines[69], *lines[70:]], id="doubled"),
    ],
)
def test_i2_i3_i4_i5_entries_cannot_be_removed_moved_or_put_in(
    change: Callable[[list[bytes]], list[bytes]],
) -> None:
    watch = captured()
    watch.machine.ima_list = text_of(change(LINES))
    assert MISMATCH in retried(watch)


def test_i6_entries_after_the_covered_part_are_not_judged_but_must_be_covered_next_time() -> None:
    watch = captured()
    watch.machine.ima_list = text_of([*LINES, EVIL])
    verdict = watch.accept()
    assert verdict.quote.ima_entries == len(LINES)
    assert events(watch.round()) == ["ima.quote_progress"]


def test_i6_starting_over_does_not_make_the_demand_go_away() -> None:
    watch = captured()
    watch.machine.ima_list = text_of([*LINES, EVIL])
    watch.accept()
    everything = watch.machine.ima_list.decode()
    verdict = watch.round(ima_measurement_list=everything, ima_measurement_list_entry=0)
    assert events(verdict) == ["ima.quote_progress"]


@pytest.mark.parametrize("what", [b"sha256:", b"/usr/lib"])
def test_i7_an_altered_digest_or_path_under_the_old_template_hash_fails(what: bytes) -> None:
    index = next(index for index, line in enumerate(LINES) if what in line and index > 20)
    at = LINES[index].index(what) + len(what)
    new = b"0" if LINES[index][at : at + 1] != b"0" else b"1"
    altered = LINES[index][:at] + new + LINES[index][at + 1 :]
    watch = captured()
    watch.machine.ima_list = text_of([*LINES[:index], altered, *LINES[index + 1 :]])
    assert "ima.validation.ima_hash" in events(watch.round()), "the altered line is named at once"


def test_i8_an_altered_entry_with_a_right_template_hash_fails_by_pcr_10() -> None:
    path = parse_line(LINES[30]).name
    altered = line_of("ima-ng", f"{file_digest('good')} {path}")
    watch = captured()
    watch.machine.ima_list = text_of([*LINES[:30], altered, *LINES[31:]])
    assert retried(watch) == [MISMATCH]


def test_i9_a_violation_fails_unless_the_operator_accepts_them_and_then_is_counted() -> None:
    kernel = Kernel.booted()
    kernel.violate("/usr/bin/bash")
    rules = policy(digests={"/usr/bin/bash": ["ab" * 32]}, excludes=["/usr/share/"])
    assert events(running(kernel, rules).round()) == ["ima.validation.tomtou"]
    verdict = running(kernel, rules, ignore_tomtou=True).accept()
    assert verdict.quote.ima_violations == 1


def test_i9_the_captured_violations_are_reported_each() -> None:
    stage = capture("direct-efistub").stage("s3-violations")
    machine = SoftwareMachine.of_stage(stage)
    machine.ak = AK
    known = reference(AK.tpm2b_public, runtime_policy=policy_of([stage.ascii_list]))
    assert events(Watch(machine, known).round()) == ["ima.validation.tomtou"] * stage.violations
    assert (
        Watch(machine, replace(known, ignore_tomtou=True)).accept().quote.ima_violations == stage.violations
    )


def test_i10_a_measured_entry_cannot_be_shown_as_a_violation() -> None:
    kernel = Kernel.booted()
    kernel.run("/usr/bin/evil", "evil")
    watch = running(kernel, policy(), ignore_tomtou=True)
    watch.machine.ima_list = text_of([BOOTED, b"10 " + b"00" * 20 + kernel.lines[1][43:]])
    assert retried(watch) == [MISMATCH]


@pytest.mark.parametrize(
    "name", ["/a\n10 x", "/a b", "/a\tb", "/a\rb", "/a ", "/a\x00", "/a\x1b[2J", "/" + "a" * 6000, "/\u00e9"]
)
def test_i11_no_name_becomes_two_entries_or_another_name(name: str) -> None:
    data = name.encode()
    packed = b"\x28\0\0\0sha256:\0" + hashlib.sha256(b"good").digest()
    packed += (len(data) + 1).to_bytes(4, "little") + data + b"\0"
    column = HashAlgorithm.SHA1.digest(packed).hex()
    line = f"10 {column} ima-ng {file_digest('good')} ".encode() + data
    pcr = HashAlgorithm.SHA256.digest(bytes(32) + HashAlgorithm.SHA256.digest(packed))
    known = reference(AK.tpm2b_public, runtime_policy=policy(digests={"/a": [file_digest("good")]}))
    machine = SoftwareMachine(ak=AK, pcrs={10: pcr}, ima_list=line + b"\n")
    watch = Watch(machine, known)
    verdicts = [watch.round(), watch.round()]
    assert not any(isinstance(verdict, Accepted) for verdict in verdicts)
    for finding in verdicts[-1].findings:  # type: ignore[union-attr]  # not Incomplete: twice in a row
        assert finding.explanation.isprintable(), "what an operator reads is escaped"


def test_i11_a_replaced_name_fails() -> None:
    """Agents that cannot send a name as it is send a replacement: the hash no longer fits."""
    watch = captured()
    watch.machine.ima_list = text_of(
        [*LINES[:30], LINES[30].replace(b"/usr", "/\ufffdsr".encode()), *LINES[31:]]
    )
    assert "ima.validation.ima_hash" in events(watch.round())


NOT_UTF8 = b"/srv/caf\xe9/10\x80\\351"


def machine_with(name: bytes) -> SoftwareMachine:
    """Measures boot_aggregate and one good file with a name of any bytes."""
    packed = b"\x28\0\0\0sha256:\0" + hashlib.sha256(b"good").digest()
    packed += (len(name) + 1).to_bytes(4, "little") + name + b"\0"
    column = HashAlgorithm.SHA1.digest(packed).hex()
    first = line_of("ima-ng", f"{file_digest('aggregate')} boot_aggregate")
    second = f"10 {column} ima-ng {file_digest('good')} ".encode() + name
    pcr = bytes(32)
    for data in (parse_line(first).template_data, packed):
        pcr = HashAlgorithm.SHA256.digest(pcr + HashAlgorithm.SHA256.digest(data))
    return SoftwareMachine(ak=AK, pcrs={10: pcr}, ima_list=list_text(text_of([first, second])).encode())


@pytest.mark.parametrize("listed", ["by its name", "by an exclude"])
def test_i11_a_name_that_is_no_utf8_is_judged_like_others(listed: str) -> None:
    machine = machine_with(NOT_UTF8)
    name = r"/srv/caf\351/10\200\134351"
    aggregate = {"boot_aggregate": [file_digest("aggregate")]}
    known = (
        policy(digests={**aggregate, name: [file_digest("good")]})
        if listed == "by its name"
        else policy(digests=aggregate, excludes=["/srv/caf.+/10"])
    )
    assert isinstance(Watch(machine, reference(AK.tpm2b_public, runtime_policy=known)).round(), Accepted)
    stranger = Watch(machine, reference(AK.tpm2b_public, runtime_policy=policy(digests=aggregate)))
    verdict = stranger.round()
    assert isinstance(verdict, Rejected)
    assert [finding.path for finding in verdict.findings] == [name]


@pytest.mark.parametrize(
    "name",
    [
        "//usr/bin/a",
        "/usr/./bin/a",
        "/usr/bin/../bin/a",
        "/usr/bin/a_",
        "/usr/bin/A",
        "usr/bin/a",
        "/merged/usr/bin/a",
    ],
)
def test_i12_names_are_compared_byte_by_byte(name: str) -> None:
    assert events(verdict_on(policy(digests={"/usr/bin/a": [file_digest("good")]}), (name, "good"))) == [
        NOT_LISTED
    ]


def test_i13_files_that_only_an_exclude_allows_are_accepted_and_counted() -> None:
    """What is excluded is not judged: the count in the agent's status tells how much that is."""
    verdict = verdict_on(policy(excludes=["/var/cache/"]), ("/var/cache/evil", "evil"), ("/var/cache/b", "2"))
    assert isinstance(verdict, Accepted)
    assert verdict.quote.ima_excluded == 2


@pytest.mark.parametrize("source", [r"(a+)+\1$", r"(?=(a|a)*b)", r"((?=x)a*)*b"])
def test_i14_an_expression_that_could_run_for_ever_never_becomes_a_reference(source: str) -> None:
    with pytest.raises(PolicyError, match=r"excludes\[0\]"):
        policy(excludes=[source])


def test_i14_accepted_expressions_are_fast_on_the_worst_names() -> None:
    rules = policy(excludes=[r"(a+)+$", r"(a|aa)+$", r"(.*)*x"])
    started = time.process_time()
    verdict = verdict_on(rules, *((f"{'a' * length}!", "1") for length in (100, 1000, 4000)))
    assert len(events(verdict)) == 3
    assert time.process_time() - started < 1


@pytest.mark.parametrize("source", [".*", "", "()|/opt", "^/"])
def test_i15_an_expression_that_excludes_nearly_everything_is_warned_about_and_counted(source: str) -> None:
    rules = policy(excludes=[source])
    assert any("excludes[0]" in warning for warning in rules.warnings)
    verdict = verdict_on(rules, ("/a", "1"))
    assert isinstance(verdict, Accepted)
    assert verdict.quote.ima_excluded == 1


def test_i16_a_digest_counts_under_its_own_path_only() -> None:
    rules = policy(digests={"/a": [file_digest("1")], "/b": [file_digest("2")]})
    assert events(verdict_on(rules, ("/a", "2"))) == [WRONG_DIGEST]
    assert events(verdict_on(rules, ("/c", "1"))) == [NOT_LISTED]


def test_i17_a_script_that_ima_does_not_measure_is_not_seen() -> None:
    """Documented: what an interpreter reads counts only when the machine's IMA policy measures it."""
    rules = policy(digests={"/usr/bin/python3": [file_digest("python")]})
    assert isinstance(verdict_on(rules, ("/usr/bin/python3", "python")), Accepted)
    assert events(verdict_on(rules, ("/usr/bin/python3", "python"), ("/tmp/x.py", "evil"))) == [NOT_LISTED]  # noqa: S108


@pytest.mark.parametrize(
    "name", ["memfd:x_(deleted)", "/usr/bin/a_(deleted)", "/dev/fd/3", "/proc/self/fd/3"]
)
def test_i18_anonymous_and_deleted_files_need_a_rule_of_their_own(name: str) -> None:
    rules = {"/usr/bin/a": [file_digest("1")]}
    assert events(verdict_on(policy(digests=rules), (name, "1"))) == [NOT_LISTED]
    assert isinstance(verdict_on(policy(digests={**rules, name: [file_digest("1")]}), (name, "1")), Accepted)


def aggregate_line(content: bytes, algorithm: str = "sha256") -> bytes:
    return line_of("ima-ng", f"{algorithm}:{hashlib.new(algorithm, content).hexdigest()} boot_aggregate")


NO_AGGREGATE = "ima.missing_boot_aggregate"
NOTHING = "ima.nothing_measured"
OTHER = line_of("ima-ng", f"{file_digest('1')} /a")
RIGHT = aggregate_line(b"".join(CLEAN.pcrs("sha256")[index] for index in range(10)))
FORGED = aggregate_line(b"forged")


def machine_of(lines: list[bytes], **changes: object) -> Watch:
    """The captured machine with another list, held to a policy that lists `/a` and to its boot log."""
    kernel = Kernel()
    for line in lines:
        kernel.add(line)
    machine = SoftwareMachine.of_stage(CLEAN)
    machine.ak = AK
    machine.pcrs[10], machine.ima_list = kernel.pcr, kernel.text()
    own = {"measured_boot": boot_policy(), "runtime_policy": policy(digests={"/a": [file_digest("1")]})}
    return Watch(machine, reference(AK.tpm2b_public, **{**own, **changes}))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        pytest.param([RIGHT, OTHER], [], id="right"),
        # The kernel may have hashed a bank that is not quoted: the boot log, which agrees, vouches for it.
        pytest.param(
            [aggregate_line(b"".join(CLEAN.pcrs("sha1")[index] for index in range(8)), "sha1"), OTHER],
            [],
            id="of the sha1 bank",
        ),
        pytest.param([FORGED, OTHER], [WRONG_DIGEST], id="forged"),
        pytest.param([aggregate_line(b"forged", "sha1"), OTHER], [WRONG_DIGEST], id="forged, sha1"),
        pytest.param([OTHER], [NO_AGGREGATE], id="missing"),
        pytest.param([RIGHT, OTHER, RIGHT], [NOT_LISTED], id="second"),
        pytest.param([OTHER, RIGHT], [NO_AGGREGATE, NOT_LISTED], id="late"),
        pytest.param([violation_line("boot_aggregate"), OTHER], [NO_AGGREGATE], id="a violation of its name"),
    ],
)
@pytest.mark.parametrize("excludes", [[], ["boot_aggregate", "/a"], [".*"]], ids=["", "named", "everything"])
def test_i19_boot_aggregate_must_agree_with_the_quoted_boot_pcrs(
    lines: list[bytes], expected: list[str], excludes: list[str]
) -> None:
    rules = policy(digests={"/a": [file_digest("1")]}, excludes=excludes)
    verdict = machine_of(lines, runtime_policy=rules, ignore_tomtou=True).round()
    assert ([] if isinstance(verdict, Accepted) else events(verdict)) == expected


@pytest.mark.parametrize(
    ("mask", "line", "accepted"),
    [
        ("0x3ff", RIGHT, True),
        ("0x3ff", FORGED, False),
        # A kernel before 5.8 hashes PCR 0-7; whether this one does, these alone do not tell.
        ("0xff", aggregate_line(b"".join(CLEAN.pcrs("sha256")[index] for index in range(8))), True),
        ("0xff", RIGHT, True),
        ("0x0", RIGHT, True),
        ("0x0", FORGED, True),
    ],
)
def test_i19_the_quoted_boot_pcrs_decide_where_no_log_is_asked_for(
    mask: str, line: bytes, accepted: bool
) -> None:
    """An operator who excludes it has its value judged wherever the quote tells it."""
    quoted = TpmPolicy.from_wire(json.dumps({"mask": mask}))
    document = policy(digests={"/a": [file_digest("1")]}, excludes=["^boot_aggregate$"]).to_document()
    del document["digests"]["boot_aggregate"]
    rules = parse_runtime_policy(json.dumps(document))
    verdict = machine_of([line, OTHER], measured_boot=None, tpm_policy=quoted, runtime_policy=rules).round()
    assert isinstance(verdict, Accepted) == accepted
    if not accepted:
        assert events(verdict) == [WRONG_DIGEST]


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_i19_the_old_template_has_a_sha1_boot_aggregate(algorithm: str) -> None:
    values = b"".join(CLEAN.pcrs("sha1")[index] for index in range(8))
    for content, expected in ((values, []), (b"forged", [WRONG_DIGEST])):
        digest = hashlib.sha1(content).hexdigest()  # noqa: S324  what the template holds
        watch = machine_of([line_of("ima", f"{digest} boot_aggregate"), OTHER])
        if algorithm == "sha1":  # the quoted bank itself
            kernel = Kernel(HashAlgorithm.SHA1)
            for line in split_lines(watch.machine.ima_list):
                kernel.add(line)
            watch.machine.bank = HashAlgorithm.SHA1
            watch.machine.pcrs = {**CLEAN.pcrs("sha1"), 10: kernel.pcr}
        verdict = watch.round()
        assert ([] if isinstance(verdict, Accepted) else events(verdict)) == expected


def switch_ima_off(watch: Watch) -> None:
    """The machine reboots into a kernel that measures nothing."""
    watch.machine.reset_count += 1
    watch.machine.pcrs[10], watch.machine.ima_list = bytes(32), b""


@pytest.mark.parametrize("excludes", [[], [".*"]])
@pytest.mark.parametrize("measured_boot", [None, boot_policy()], ids=["no log", "log"])
def test_i19_a_machine_that_measures_nothing_fails_at_first_contact(
    excludes: list[str], measured_boot: MeasuredBootPolicy | None
) -> None:
    rules = policy(digests={"/a": [file_digest("1")]}, excludes=excludes)
    watch = machine_of([], measured_boot=measured_boot, runtime_policy=rules)
    for _ in range(3):
        assert events(watch.round()) == [NOTHING]
    assert events(watch.round(ima_measurement_list="\n\n")) == [NOTHING]
    assert events(watch.round(ima_measurement_list=None)) == ["pcr_validation.unused_pcr_10"]


def test_i19_a_machine_that_measures_nothing_any_more_fails_after_its_reboot() -> None:
    watch = captured()
    watch.accept()
    at = watch.checkpoint
    switch_ima_off(watch)
    assert events(watch.round()) == [NOTHING], "it starts over by itself"
    watch.checkpoint = at
    asked = {"ima_measurement_list": "", "ima_measurement_list_entry": at.ima.next_entry}
    watch.incomplete(**asked)  # "nothing new" is said of another boot
    assert events(watch.round()) == [NOTHING]
    watch.checkpoint = at
    assert events(watch.round(ima_measurement_list=None)) == ["pcr_validation.unused_pcr_10"]


def test_i19_a_machine_whose_tpm_forgot_its_boot_fails() -> None:
    """PCR 10 back at zero without a reset that the TPM counted, and a list that says "nothing new"."""
    watch = captured()
    watch.accept()
    watch.machine.pcrs[10] = bytes(32)
    assert retried(watch) == [NOTHING]


def test_i19_a_list_that_nothing_covers_is_never_accepted() -> None:
    """Entries are shown as if they had been measured a moment after the quote, round after round."""
    watch = machine_of([])
    watch.machine.ima_list = text_of([RIGHT, EVIL])
    watch.incomplete()
    assert events(watch.round()) == [NOTHING]
    watch.machine.ima_list = b""
    assert events(watch.round()) == [NOTHING]
    watch.machine.ima_list = text_of([RIGHT, EVIL])
    watch.incomplete()
    watch.machine.ima_list = b""
    assert events(watch.round()) == [NOTHING]


def test_i19_a_first_quote_just_before_boot_aggregate_is_asked_for_once_more() -> None:
    """An emulator writes the line before it extends the PCR."""
    watch = machine_of([])
    watch.machine.ima_list = text_of([RIGHT])
    watch.incomplete()
    kernel = Kernel()
    kernel.add(RIGHT)
    update(watch, kernel)
    assert watch.accept().quote.ima_entries == 1


def test_i19_nothing_new_is_accepted_where_the_checkpoint_has_seen_boot_aggregate() -> None:
    watch = captured()
    watch.accept()
    assert isinstance(watch.round(ima_measurement_list="", ima_measurement_list_entry=len(LINES)), Accepted)


def test_i19_a_checkpoint_that_does_not_say_how_the_list_began_is_not_gone_on_from() -> None:
    """Written by an earlier version, which took lists that begin with anything."""
    watch = machine_of([RIGHT, OTHER])
    watch.accept()
    ima = msgspec.structs.replace(watch.checkpoint.ima, anchored=False)
    watch.checkpoint = decode_checkpoint(
        encode_checkpoint(msgspec.structs.replace(watch.checkpoint, ima=ima))
    )
    assert watch.challenge().ima_entry == 0
    at = watch.checkpoint
    assert watch.accept().quote.ima_entries == 2
    watch.checkpoint = at
    kernel = Kernel()
    kernel.add(OTHER)
    update(watch, kernel)
    assert events(watch.round()) == [NO_AGGREGATE]


def test_i19_entries_that_were_ahead_of_a_quote_cannot_be_withdrawn() -> None:
    watch = captured()
    watch.machine.ima_list = text_of([*LINES, EVIL])
    watch.accept()
    watch.machine.ima_list = text_of(LINES)
    assert events(watch.round()) == ["ima.quote_progress"]


@pytest.mark.parametrize("stated", [-1, 1, len(LINES) - 1, len(LINES) + 1, 2**63])
def test_i20_a_stated_offset_that_was_not_asked_for_fails(stated: int) -> None:
    watch = captured()
    watch.accept()
    verdict = watch.round(ima_measurement_list_entry=stated)
    assert events(verdict) == ["qoute_validation.invalid_ima_entry_nb"]
    assert not verdict.recoverable  # type: ignore[union-attr]


def test_i20_a_restart_from_entry_0_is_a_full_appraisal() -> None:
    watch = captured()
    watch.accept()
    at = watch.checkpoint
    everything = {"ima_measurement_list": CLEAN.ascii_list.decode(), "ima_measurement_list_entry": 0}
    verdict = watch.round(**everything)
    assert isinstance(verdict, Accepted)
    assert verdict.quote.ima_entries == CLEAN.entries
    watch.checkpoint = at
    watch.incomplete(ima_measurement_list="", ima_measurement_list_entry=0)


def test_i21_the_list_of_the_boot_before_fails() -> None:
    watch = captured()
    watch.accept()
    kernel = Kernel.booted()
    kernel.run("/usr/bin/evil", "evil")
    watch.machine.reset_count += 1
    watch.machine.pcrs[10] = kernel.pcr
    watch.incomplete()
    assert MISMATCH in events(watch.round())


def test_i22_an_entry_cannot_escape_by_naming_another_pcr() -> None:
    for pcr in (b"11", b"16", b" 0", b"010", b"10 10"):
        watch = captured()
        watch.machine.ima_list = text_of([*LINES[:30], pcr + LINES[30][2:], *LINES[31:]])
        verdict = watch.round()
        assert events(verdict)[0] in ("ima.validation.ima_pcr", "ima.parser.entry")


@pytest.mark.parametrize("template", ["ima-ngx", "sig|d-ng|n-ng", "d-ng|sig|n-ng", "IMA-NG", ""])
def test_i23_an_unknown_template_fails_by_name(template: str) -> None:
    watch = captured()
    watch.machine.ima_list = text_of(
        [*LINES[:30], LINES[30].replace(b"ima-sig", template.encode()), *LINES[31:]]
    )
    assert "ima.parser.entry" in events(watch.round())


def test_i23_a_template_with_missing_or_more_fields_fails() -> None:
    for altered in (
        LINES[30].rsplit(b" ", 2)[0],
        LINES[30] + b" 00",
        LINES[30].replace(b"ima-sig", b"ima-ng"),
        LINES[30].replace(b"ima-sig", b"d-ng|n-ng"),
        LINES[30].replace(b"ima-sig", b"d-ng|n-ng|iuid"),
        LINES[30].replace(b"ima-sig", b"d-ngv2|n-ng|sig"),
    ):
        watch = captured()
        watch.machine.ima_list = text_of([*LINES[:30], altered, *LINES[31:]])
        assert events(watch.round())


@pytest.mark.parametrize(
    "digest",
    ["sha256:" + "ab" * 20, "md4:" + "ab" * 16, "none:" + "ab" * 32, "ab" * 32, "sha256:", "sha256:zz"],
)
def test_i24_a_digest_without_a_known_algorithm_of_its_length_fails(digest: str) -> None:
    kernel = Kernel.booted()
    kernel.run("/a", "1")
    watch = running(kernel, policy(digests={"/a": [file_digest("1")]}))
    watch.machine.ima_list += b"10 " + b"ab" * 20 + b" ima-ng " + digest.encode() + b" /x\n"
    watch.accept()  # not covered by the quote: neither trusted nor judged
    watch = running(kernel, policy(digests={"/a": [file_digest("1")]}))
    watch.machine.ima_list = b"10 " + b"ab" * 20 + f" ima-ng {digest} /x\n".encode() + kernel.text()
    assert "ima.parser.entry" in events(watch.round())


def test_i25_a_sha1_digest_passes_only_where_the_policy_lists_it() -> None:
    kernel = Kernel.booted()
    kernel.add(line_of("ima", "ab" * 20 + " /x"))
    assert events(running(kernel, policy(digests={"/x": ["cd" * 32]})).round()) == [WRONG_DIGEST]
    running(kernel, policy(digests={"/x": ["ab" * 20]})).accept()


def test_i26_signatures_count_only_by_known_keys_over_the_files_digest() -> None:
    stage = capture("grub-secureboot").stage("s1-clean")
    document = json.loads(policy_of([stage.ascii_list]).to_json())
    signed = {path for path in document["digests"] if "/signed-" in path}
    document["digests"] = {path: all_ for path, all_ in document["digests"].items() if path not in signed}
    machine = SoftwareMachine.of_stage(stage)
    machine.ak = AK
    known = reference(AK.tpm2b_public, runtime_policy=parse_runtime_policy(json.dumps(document)))
    without = Watch(machine, known).round()
    assert {finding.path for finding in without.findings} == signed  # type: ignore[union-attr]
    keys = keyring_of([(IMA_KEYS_DIRECTORY / f"ima-{kind}.crt.der").read_bytes() for kind in ("rsa", "ec")])
    verdict = Watch(machine, replace(known, tenant_keyring=keys)).round()
    assert [finding.path for finding in verdict.findings] == ["/opt/lab/bin/signed-stale.sh"]  # type: ignore[union-attr]


def key_line(name: str, key: bytes) -> bytes:
    return line_of("ima-buf", f"sha256:{hashlib.sha256(key).hexdigest()} {name} {key.hex()}")


def test_i27_a_key_is_learned_only_when_listed_and_only_for_this_boot() -> None:
    key = (IMA_KEYS_DIRECTORY / "ima-rsa.crt.der").read_bytes()
    signed = next(line for line in map(parse_line, LINES) if line.name.endswith("signed-rsa.sh"))
    kernel = Kernel.booted()
    kernel.add(key_line(".ima", key))
    kernel.add(signed.to_line())
    poisoned = running(kernel, policy(excludes=[r"\.ima$"])).round()
    assert [finding.path for finding in poisoned.findings] == [signed.name]  # type: ignore[union-attr]
    listed = policy(keyrings={".ima": [hashlib.sha256(key).hexdigest()]})
    watch = running(kernel, listed)
    assert watch.accept().checkpoint.ima.keyrings
    # After a reboot the key must be measured again before it vouches for anything.
    watch.machine.reset_count += 1
    kernel = Kernel.booted()
    kernel.add(signed.to_line())
    update(watch, kernel)
    watch.round()
    assert events(watch.round()) == [NOT_LISTED]


@pytest.mark.parametrize("buffer", ["0", "zz", "00 00", "30820"])
def test_i28_a_buffer_of_broken_hex_fails(buffer: str) -> None:
    kernel = Kernel.booted()
    kernel.run("/a", "1")
    watch = running(kernel, policy(digests={"/a": [file_digest("1")]}))
    broken = b"10 " + b"ab" * 20 + f" ima-buf {file_digest('1')} dm_table_load {buffer}".encode()
    watch.machine.ima_list = text_of([BOOTED, broken, *kernel.lines[1:]])
    assert events(watch.round()) == ["ima.parser.entry"]


def test_i28_i29_a_line_of_ten_megabytes_is_judged_like_any_other() -> None:
    data = bytes(5_000_000)
    kernel = Kernel.booted()
    kernel.add(line_of("ima-buf", f"sha256:{hashlib.sha256(data).hexdigest()} dm_table_load {data.hex()}"))
    watch = running(kernel, policy())
    started = time.process_time()
    assert events(watch.round()) == [NOT_LISTED]
    assert time.process_time() - started < 2
    assert len(watch.memo.ima) == 0, "long lines are not kept in memory"


def test_i29_an_answer_of_more_than_a_hundred_megabytes_exceeds_what_the_verifier_reads() -> None:
    """Decided where bodies are read (tests/integration/test_http_client): here only that there is a bound."""
    assert 20 << 20 < MAX_ANSWER <= 100 << 20
    assert ORDINARY_ANSWER < MAX_ANSWER <= LONG_ANSWERS


def test_i30_a_trimmed_list_fails_on_first_contact_and_goes_on_with_a_checkpoint() -> None:
    first = captured()
    trimmed = {"ima_measurement_list": text_of(LINES[50:]).decode(), "ima_measurement_list_entry": 50}
    assert "qoute_validation.invalid_ima_entry_nb" in events(first.round(**trimmed))
    values = values_of(CLEAN.ascii_list, HashAlgorithm.SHA256)
    watch = captured()
    watch.machine.ima_list, watch.machine.pcrs[10] = text_of(LINES[:50]), values[49]
    watch.accept()
    watch.machine.pcrs[10] = values[-1]
    assert isinstance(watch.round(**trimmed), Accepted)


def test_i30_a_list_that_begins_in_the_middle_has_a_reason_of_its_own() -> None:
    """Nobody knows the number of its first line, so that its agent calls it the whole list."""
    watch = captured()
    trimmed = {"ima_measurement_list": text_of(LINES[50:]).decode()}
    assert isinstance(watch.round(**trimmed), Incomplete)  # as any list that does not reach PCR 10
    verdict = watch.round(**trimmed)
    assert events(verdict) == ["ima.begins_in_the_middle", MISMATCH]
    assert isinstance(verdict, Rejected)
    assert verdict.recoverable
    assert "deletes entries" in (verdict.findings[0].hint or "")


def test_i31_a_machine_that_measures_all_the_time_is_accepted_and_makes_progress() -> None:
    kernel = Kernel.booted()
    watch = running(kernel, policy(digests={f"/file-{n}": [file_digest("x")] for n in range(400)}))
    number = 0
    for _ in range(20):
        for _ in range(10):
            kernel.run(f"/file-{number}", "x")
            number += 1
        watch.machine.pcrs[10] = kernel.pcr
        for _ in range(7):  # measured between quote and reading of the list
            kernel.run(f"/file-{number}", "x")
            number += 1
        watch.machine.ima_list = kernel.text()
        watch.accept()
    assert watch.checkpoint.ima.next_entry == len(kernel.lines) - 7


def test_i32_a_pcr_10_extended_by_hand_fails() -> None:
    watch = captured()
    watch.machine.pcrs[10] = HashAlgorithm.SHA256.digest(watch.machine.pcrs[10] + b"\x01" * 32)
    assert retried(watch) == [MISMATCH]


def test_i33_a_boot_time_that_changes_gives_no_verdict_once_and_a_failure_twice() -> None:
    watch = captured()
    watch.accept()
    partial = watch.checkpoint
    watch.incomplete(boottime=99)
    assert watch.challenge().ima_entry == 0, "the whole list is asked for at once"
    counted = watch.checkpoint
    watch.checkpoint = msgspec.structs.replace(counted, ima=partial.ima)
    assert events(watch.round(boottime=98)) == ["qoute_validation.quote_validation"]
    watch.checkpoint = counted
    assert isinstance(watch.accept().checkpoint, Checkpoint)


def test_i33_a_changed_boot_time_does_not_drop_the_findings_of_the_round() -> None:
    watch = captured()
    watch.accept()
    verdict = watch.round(boottime=99, pubkey="another key")
    assert events(verdict) == ["pcr_validation.invalid_pcr_16"]


def test_rounds_without_verdict_never_come_in_a_row() -> None:
    """Whatever mix of excuses an agent uses, every second of its rounds at the latest has a verdict."""
    watch = captured()
    watch.accept()
    short = text_of(LINES[:-1]).decode()
    excuses: list[dict[str, Any]] = [
        {"boottime": 1},
        {"ima_measurement_list": short, "ima_measurement_list_entry": 0},
        {"boottime": 2, "ima_measurement_list": short, "ima_measurement_list_entry": 0},
        {"ima_measurement_list": "", "ima_measurement_list_entry": 0},
    ]
    for excuse in excuses * 3:
        for following in excuses:
            first, second = watch.round(**excuse), watch.round(**following)
            assert not (isinstance(first, Incomplete) and isinstance(second, Incomplete))


def test_a_padded_bank_is_not_taken_for_a_native_one_later() -> None:
    native = Kernel.booted(HashAlgorithm.SHA384)
    native.run("/a", "1")
    watch = running(native, policy(digests={"/a": [file_digest("1")]}))
    watch.accept()
    padded = Kernel(HashAlgorithm.SHA384, ExtendMode.PADDED_SHA1, lines=[*native.lines])
    padded.pcr = native.pcr
    padded.run("/a", "1")
    update(watch, padded)
    assert retried(watch) == [MISMATCH]
