"""Appraising a measurement list: replay it to the quoted PCR 10, then judge what the quote covers.

The list may be ahead of the quote (it was read a moment later): the covered prefix is accepted, the lines
after it are neither trusted nor judged, and are asked for again.

Lists come from machines that may be hostile, and may be huge. They are gone through slice by slice: once to
find where they reach the quote, and once more, as far as needed, to judge what was met on the way.
"""

from array import array
from collections.abc import Generator, Iterator

import msgspec

from keylime.errors import MalformedEvidence
from keylime.findings.finding import Finding
from keylime.hashes import HashAlgorithm
from keylime.ima import findings
from keylime.ima.boot_aggregate import BootAggregates, is_boot_aggregate
from keylime.ima.checkpoint import ImaCheckpoint
from keylime.ima.keyrings import Keyring
from keylime.ima.list_text import Buffer, ListText
from keylime.ima.measurement_list import (
    BOOT_AGGREGATE,
    CommonFields,
    Entry,
    common_fields,
    parse_line_by_fields,
)
from keylime.ima.memo import LINE_OVERHEAD, MAX_LINE_BYTES, EntryMemo, MemoView, ViewKey
from keylime.ima.replay import ExtendMode, data_value, hasher, modes_of
from keylime.ima.rules import Judge, PendingEntry, starting_judge
from keylime.ima.runtime_policy import RuntimePolicy
from keylime.ima.whole_entries import whole_entries

MAX_NOISE = 1000  # lines that no kernel writes: where there are so many of them, more tell nothing new
_JUDGED_SLICE = 100  # entries judged between two yields: each may need a signature check


class ImaResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one round showed about the measurement list.

    `findings` speak against the machine; `failures` is their number when it exceeds what is kept. With
    `pcr_matched` false no prefix of the list replays to the quoted PCR 10: nothing was judged but the
    entries' own consistency, `replayed` is where the replay ended, `late_start` names the first entry of a
    list from entry 0 that does not begin with boot_aggregate, and the caller decides between another try and
    rejection. `checkpoint` is to be kept: advanced after success, unchanged without a match, fresh
    after a match with findings.

    Counts are of this round: `entries` covered by the quote, `uncovered` lines after them, `violations` and
    `excluded` (accepted only because of an exclude expression) among the covered ones.
    """

    findings: tuple[Finding, ...]
    checkpoint: ImaCheckpoint
    pcr_matched: bool
    failures: int = 0
    entries: int = 0
    uncovered: int = 0
    violations: int = 0
    excluded: int = 0
    replayed: bytes | None = None
    late_start: str | None = None
    extend_mode: ExtendMode | None = None

    @property
    def reached_end(self) -> bool:
        """Whether the quote covers the whole list."""
        return self.pcr_matched and self.uncovered == 0


def appraise_list(
    lines: Buffer | ListText,
    *,
    bank: HashAlgorithm,
    quoted: bytes,
    stated_entry: int,
    policy: RuntimePolicy,
    tenant_keys: Keyring | None,
    boot_aggregates: BootAggregates,
    checkpoint: ImaCheckpoint,
    ignore_tomtou: bool,
    memo: EntryMemo,
) -> Generator[None, None, ImaResult]:
    """Appraise an ASCII list against `quoted`, PCR 10 of `bank`; yields now and then so that others can run.

    `stated_entry` is the index that the agent states for the first line; the index asked for is
    `checkpoint.next_entry`. `tenant_keys` (None: the policy's) and keys learned from the list verify file
    signatures. A list that starts at entry 0 begins with boot_aggregate: nothing measured is nothing proven.
    `boot_aggregates` are the values that it may have in addition to the policy's.
    """
    start = _starting_point(checkpoint, stated_entry, bank)
    if isinstance(start, Finding):
        return ImaResult(findings=(start,), checkpoint=checkpoint, pcr_matched=False, failures=1)
    keys = policy.verification_keys if tenant_keys is None else tenant_keys
    text = lines if isinstance(lines, ListText) else ListText(lines)
    walk = yield from _find_match(text, start, bank, quoted, policy, keys, memo)
    if not start.anchored and walk.matched == 0 and walk.length:
        walk.matched = None  # the quote covers no entry yet, not even boot_aggregate
    judge = starting_judge(
        start,
        policy,
        keys,
        boot_aggregates,
        ignore_tomtou=ignore_tomtou,
        view=walk.view,
        memo=memo,
    )
    if walk.matched is None:
        yield from _check_consistency(walk, text, judge)
        result = _mismatch(walk, judge, checkpoint, None if start.anchored else _late_start(text))
    else:
        if not start.anchored:
            _demand_boot_aggregate(walk, text, judge)
        yield from _judge_covered(walk, text, judge)
        if start.anchored or walk.matched == walk.length:  # else it may come in the very next lines
            judge.demand_devices()
        _demand_progress(checkpoint, start.next_entry + walk.matched, judge)
        result = _match(walk, walk.matched, judge, start)
    memo.trim()
    return result


def _starting_point(checkpoint: ImaCheckpoint, stated: int, bank: HashAlgorithm) -> ImaCheckpoint | Finding:
    """Where to go on from: an agent may continue as asked or start over, and nothing else."""
    if stated == checkpoint.next_entry and checkpoint.continues(bank):
        return checkpoint
    if stated == 0:
        return ImaCheckpoint.fresh()
    return findings.unexpected_start(checkpoint.next_entry, stated)


class _Walk:
    """One replay of a list in one extend mode, up to the line at which the quoted value is reached."""

    def __init__(
        self,
        bank: HashAlgorithm,
        mode: ExtendMode,
        first_index: int,
        policy: RuntimePolicy,
        view: MemoView,
        memo: EntryMemo,
    ) -> None:
        self.bank = bank
        self.mode = mode
        self.view = view
        self._memo = memo
        self.matched: int | None = None  # lines covered, None while there is no match
        self.length = 0  # lines in all, known when there is a match
        self.value = b""
        self.pending = array("Q")  # positions of lines that must be judged
        self.excluded = 0  # lines known to be excluded
        self._noise = 0
        self._first_index = first_index
        self._digests = policy.digests
        self._column = policy.log_hash_alg

    def run(self, text: ListText, start: bytes, quoted: bytes) -> Generator[None, None, None]:
        """Replay `text` from `start` until the value is `quoted`."""
        slices = whole_entries(text.slices())
        begin, value = 0, start
        if value == quoted:
            self.matched = 0
        while self.matched is None and (lines := next(slices, None)) is not None:
            value, reached = self._replay(lines, begin, value, quoted)
            begin += len(lines)
            if reached is not None:
                self.matched = reached
            elif self._noise > MAX_NOISE:
                break
            yield
        self.value, self.length = value, begin
        if self.matched is not None:
            for lines in slices:
                self.length += len(lines)
                yield

    def _replay(
        self, lines: list[bytes], begin: int, start: bytes, quoted: bytes
    ) -> tuple[bytes, int | None]:
        """The value after `lines`, the first of which is number `begin`; how many lines reach `quoted`.

        The hottest loop of the verifier, hence its local names and its one large body.
        """
        value, view = start, self.view
        accepted, room = view.accepted, self._memo.capacity - view.size
        known, known_excluded, digests_of = accepted.get, view.excluded.get, self._digests.get
        pcr_hash, column_hash = hasher(self.bank), hasher(self._column)
        column_extends = self.mode is ExtendMode.NATIVE and self.bank is self._column
        native = self.mode is ExtendMode.NATIVE
        for position, line in enumerate(lines, begin):
            extended = known(line)
            if extended is None:
                extended = known_excluded(line)
                if extended is not None:
                    self.excluded += 1
                elif (fields := common_fields(line)) is None:
                    extended = self._meet_uncommon(position, line)
                    if not extended:
                        continue
                else:
                    template_hash, _, data, _, digest, name, signature = fields
                    column = column_hash(data).digest()
                    if (
                        column != template_hash
                        or signature
                        or digest not in digests_of(name, ())
                        or name == BOOT_AGGREGATE
                    ):
                        self.pending.append(position)
                        extended = self._entry(position, line, fields, column).extended
                    else:
                        if column_extends:
                            extended = column  # once checked, the column is what was extended
                        elif native:
                            extended = pcr_hash(data).digest()
                        else:
                            extended = data_value(data, self.bank, self.mode)
                        cost = len(line) + LINE_OVERHEAD
                        if cost <= room and len(line) <= MAX_LINE_BYTES:
                            accepted[line] = extended
                            room -= cost
                            view.size += cost
            value = pcr_hash(value + extended).digest()
            if value == quoted:
                return value, position + 1
        return value, None

    def met(self, text: ListText) -> Iterator[PendingEntry | None]:
        """The entries that must be judged, in their order, from the list once more; None between slices."""
        begin = number = 0
        for lines in whole_entries(text.slices()):
            if number == len(self.pending):
                return
            while number < len(self.pending) and self.pending[number] < begin + len(lines):
                position = self.pending[number]
                line = lines[position - begin]
                fields = common_fields(line)
                column = None if fields is None else hasher(self._column)(fields[2]).digest()
                yield self._entry(position, line, fields, column)
                number += 1
            begin += len(lines)
            yield None

    def _meet_uncommon(self, position: int, line: bytes) -> bytes:
        if not line:
            self._noise += 1
            return b""
        self.pending.append(position)
        entry = self._entry(position, line, None, None)
        if isinstance(entry.entry, MalformedEvidence):
            self._noise += 1
        return entry.extended

    def _entry(
        self, position: int, line: bytes, fields: CommonFields | None, column: bytes | None
    ) -> PendingEntry:
        """A line for the judge; `column` is what its fields hash to, where that is known already."""
        index = self._first_index + position
        if fields is None:
            try:
                entry = parse_line_by_fields(line)
            except MalformedEvidence as error:
                return PendingEntry(index, line, error, b"", b"")
        else:
            entry = Entry(10, *fields)
        if column is None:
            column = hasher(self._column)(entry.template_data).digest()
        is_violation = entry.is_violation and len(entry.template_hash) == self._column.size
        if is_violation:
            extended = b"\xff" * self.bank.size
        else:
            extended = data_value(entry.template_data, self.bank, self.mode)
        return PendingEntry(index, line, entry, extended, column)


def _find_match(
    text: ListText,
    start: ImaCheckpoint,
    bank: HashAlgorithm,
    quoted: bytes,
    policy: RuntimePolicy,
    keys: Keyring,
    memo: EntryMemo,
) -> Generator[None, None, _Walk]:
    """The walk that reaches `quoted`; the first one tried if none does."""
    modes = modes_of(bank) if start.extend_mode is None else (ExtendMode(start.extend_mode),)
    value = bytes(bank.size) if start.pcr is None else start.pcr
    fingerprint = keys.fingerprint
    walks = []
    for mode in modes:
        view = memo.view(ViewKey(policy.content_hash, fingerprint, bank, mode))
        walk = _Walk(bank, mode, start.next_entry, policy, view, memo)
        yield from walk.run(text, value, quoted)
        if walk.matched is not None:
            return walk
        walks.append(walk)
    return walks[0]


def _check_consistency(walk: _Walk, text: ListText, judge: Judge) -> Generator[None, None, None]:
    """Without a match: name the lines that cannot be what a kernel wrote, for they may be the reason."""
    number = 0
    for pending in walk.met(text):
        if pending is not None:
            number += 1
            if isinstance(pending.entry, MalformedEvidence) or not pending.entry.is_violation:
                judge.check_integrity(pending)
        if pending is None or number % _JUDGED_SLICE == 0:
            yield


def _demand_boot_aggregate(walk: _Walk, text: ListText, judge: Judge) -> None:
    """The kernel measures it before anything else, so that a list without it is not a whole one."""
    if not walk.matched:
        judge.fail(findings.nothing_measured(0))
    elif not _begins_with_boot_aggregate(walk, text):
        judge.fail(findings.missing_boot_aggregate(judge.boot_aggregates.digests))


def _begins_with_boot_aggregate(walk: _Walk, text: ListText) -> bool:
    if not walk.pending or walk.pending[0] != 0:
        return False  # every boot_aggregate is among the entries that must be judged
    first = next((pending.entry for pending in walk.met(text) if pending is not None), None)
    return first is not None and is_boot_aggregate(first)


def _judge_covered(walk: _Walk, text: ListText, judge: Judge) -> Generator[None, None, None]:
    """Judge the pending entries, all of which the quote covers."""
    judge.excluded += walk.excluded
    number = 0
    for pending in walk.met(text):
        if pending is not None:
            number += 1
            judge.judge(pending)
        if pending is None or number % _JUDGED_SLICE == 0:
            yield


def _demand_progress(checkpoint: ImaCheckpoint, covered: int, judge: Judge) -> None:
    """Lines that were ahead of the last quote must be covered by this one.

    Also when the list starts over, and also when it shows them no more: a kernel's list never gets shorter.
    """
    demanded = checkpoint.next_entry + checkpoint.lag
    if covered < demanded:
        judge.fail(findings.no_progress(covered, demanded))


def _late_start(text: ListText) -> str | None:
    """The name in the first line, where that is an entry and not what each kernel measures first."""
    line = next((lines[0] for lines in text.slices() if lines), b"")
    try:
        entry = parse_line_by_fields(line)
    except MalformedEvidence:
        return None
    return None if is_boot_aggregate(entry) else entry.name


def _mismatch(walk: _Walk, judge: Judge, checkpoint: ImaCheckpoint, late_start: str | None) -> ImaResult:
    return ImaResult(
        findings=tuple(judge.findings),
        checkpoint=checkpoint,
        pcr_matched=False,
        failures=judge.failures,
        uncovered=walk.length,
        replayed=walk.value,
        late_start=late_start,
    )


def _match(walk: _Walk, matched: int, judge: Judge, start: ImaCheckpoint) -> ImaResult:
    # Violations extend the same in every mode, so they alone do not tell which it is.
    told = matched > judge.violations
    advanced = msgspec.structs.replace(
        start,
        next_entry=start.next_entry + matched,
        anchored=True,
        pcr=walk.value,
        bank=walk.bank.label,
        extend_mode=walk.mode.value if told else start.extend_mode,
        matched=matched,
        length=walk.length,
        keyrings=judge.learned_keyrings(),
        device_mapper=judge.device_mapper,
        kexec=judge.kexec,
    )
    return ImaResult(
        findings=tuple(judge.findings),
        checkpoint=ImaCheckpoint.fresh() if judge.findings else advanced,
        pcr_matched=True,
        failures=judge.failures,
        entries=matched,
        uncovered=walk.length - matched,
        violations=judge.violations,
        excluded=judge.excluded,
        replayed=walk.value,
        extend_mode=walk.mode if told else None,
    )
