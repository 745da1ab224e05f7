"""Appraising a measurement list: replay it to the quoted PCR 10, then judge what the quote covers.

The list may be ahead of the quote (it was read a moment later): the covered prefix is accepted, the lines
after it are neither trusted nor judged, and are asked for again.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import msgspec

from keylime.appraisal.findings import Finding
from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.ima import findings
from keylime.ima.checkpoint import ImaCheckpoint
from keylime.ima.keyrings import Keyring
from keylime.ima.measurement_list import (
    BOOT_AGGREGATE,
    Entry,
    common_fields,
    parse_line_by_fields,
    split_lines,
)
from keylime.ima.memo import MAX_LINE_BYTES, EntryMemo, MemoView, ViewKey
from keylime.ima.replay import ExtendMode, data_value, hasher, modes_of
from keylime.ima.rules import Judge, PendingEntry, starting_judge
from keylime.policy.runtime import RuntimePolicy

_SLICE = 1000  # lines replayed between two yields: some milliseconds
_JUDGED_SLICE = 100  # entries judged between two yields: each may need a signature check


@dataclass(frozen=True, slots=True, kw_only=True)
class ImaResult:
    """What one round showed about the measurement list.

    `findings` speak against the machine; `failures` is their number when it exceeds what is kept. With
    `pcr_matched` false no prefix of the list replays to the quoted PCR 10: nothing was judged but the
    entries' own consistency, `replayed` is where the replay ended, and the caller decides between another
    try and rejection. `checkpoint` is to be kept: advanced after success, unchanged without a match, fresh
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
    extend_mode: ExtendMode | None = None

    @property
    def reached_end(self) -> bool:
        """Whether the quote covers the whole list."""
        return self.pcr_matched and self.uncovered == 0


def appraise_list(
    lines: bytes,
    *,
    bank: HashAlgorithm,
    quoted: bytes,
    stated_entry: int,
    policy: RuntimePolicy,
    tenant_keys: Keyring | None,
    boot_aggregates: frozenset[str],
    checkpoint: ImaCheckpoint,
    ignore_tomtou: bool,
    memo: EntryMemo,
) -> Generator[None, None, ImaResult]:
    """Appraise an ASCII list against `quoted`, PCR 10 of `bank`; yields now and then so that others can run.

    `stated_entry` is the index that the agent states for the first line; the index asked for is
    `checkpoint.next_entry`. `tenant_keys` (None: the policy's) and keys learned from the list verify file
    signatures. `boot_aggregates` are hex digests that the first entry may have in addition to the policy's.
    """
    start = _starting_point(checkpoint, stated_entry, bank)
    if isinstance(start, Finding):
        return ImaResult(findings=(start,), checkpoint=checkpoint, pcr_matched=False, failures=1)
    keys = policy.verification_keys if tenant_keys is None else tenant_keys
    texts = split_lines(lines)
    walk = yield from _find_match(texts, start, bank, quoted, policy, keys, memo)
    judge = starting_judge(
        start,
        policy,
        keys,
        boot_aggregates,
        ignore_tomtou=ignore_tomtou,
        view=walk.view,
        memo_limit=memo.capacity,
    )
    if walk.matched is None:
        yield from _check_consistency(walk, judge)
        result = _mismatch(walk, judge, checkpoint)
    else:
        yield from _judge_covered(walk, walk.matched, judge, at_start=start.next_entry == 0)
        if walk.matched < len(texts):
            _demand_progress(checkpoint, start.next_entry + walk.matched, judge)
        result = _match(walk, walk.matched, judge, start, len(texts))
    memo.trim()
    return result


def _starting_point(checkpoint: ImaCheckpoint, stated: int, bank: HashAlgorithm) -> ImaCheckpoint | Finding:
    """Where to go on from: an agent may continue as asked or start over, and nothing else."""
    if stated == 0:
        return ImaCheckpoint.fresh()
    if stated == checkpoint.next_entry and checkpoint.continues(bank):
        return checkpoint
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
        memo_limit: int,
    ) -> None:
        self.bank = bank
        self.mode = mode
        self.view = view
        self._memo_limit = memo_limit
        self.matched: int | None = None  # lines covered, None while there is no match
        self.value = b""
        self.pending: list[PendingEntry] = []
        self.excluded: list[int] = []  # positions of lines known to be excluded
        self._first_index = first_index
        self._digests = policy.digests
        self._column = policy.log_hash_alg

    def run(self, texts: Sequence[bytes], start: bytes, quoted: bytes) -> Generator[None, None, None]:
        """Replay `texts` from `start` until the value is `quoted`.

        The inner loop is the hottest of the verifier, hence its local names and its one large body.
        """
        value = start
        accepted, memo_limit = self.view.accepted, self._memo_limit
        known, known_excluded, digests_of = accepted.get, self.view.excluded.get, self._digests.get
        pcr_hash, column_hash = hasher(self.bank), hasher(self._column)
        column_extends = self.mode is ExtendMode.NATIVE and self.bank is self._column
        native = self.mode is ExtendMode.NATIVE
        if value == quoted:
            self.matched = 0
        for begin in range(0, len(texts) if self.matched is None else 0, _SLICE):
            for position, line in enumerate(texts[begin : begin + _SLICE], begin):
                extended = known(line)
                if extended is None:
                    extended = known_excluded(line)
                    if extended is not None:
                        self.excluded.append(position)
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
                            extended = self._defer(position, line, Entry(10, *fields), column)
                        else:
                            if column_extends:
                                extended = column  # once checked, the column is what was extended
                            elif native:
                                extended = pcr_hash(data).digest()
                            else:
                                extended = data_value(data, self.bank, self.mode)
                            if len(line) <= MAX_LINE_BYTES and len(accepted) < memo_limit:
                                accepted[line] = extended
                value = pcr_hash(value + extended).digest()
                if value == quoted:
                    self.matched = position + 1
                    self.value = value
                    return
            yield
        self.value = value

    def _meet_uncommon(self, position: int, line: bytes) -> bytes:
        if not line:
            return b""
        try:
            entry = parse_line_by_fields(line)
        except MalformedEvidence as error:
            self.pending.append(PendingEntry(self._first_index + position, line, error, b"", b""))
            return b""
        return self._defer(position, line, entry, hasher(self._column)(entry.template_data).digest())

    def _defer(self, position: int, line: bytes, entry: Entry, column: bytes) -> bytes:
        """Keep an entry for the judge, whose fields hash to `column`."""
        is_violation = entry.is_violation and len(entry.template_hash) == self._column.size
        if is_violation:
            extended = b"\xff" * self.bank.size
        else:
            extended = data_value(entry.template_data, self.bank, self.mode)
        self.pending.append(PendingEntry(self._first_index + position, line, entry, extended, column))
        return extended


def _find_match(
    texts: Sequence[bytes],
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
        walk = _Walk(bank, mode, start.next_entry, policy, view, memo.capacity)
        yield from walk.run(texts, value, quoted)
        if walk.matched is not None:
            return walk
        walks.append(walk)
    return walks[0]


def _check_consistency(walk: _Walk, judge: Judge) -> Generator[None, None, None]:
    """Without a match: name the lines that cannot be what a kernel wrote, for they may be the reason."""
    for number, pending in enumerate(walk.pending, 1):
        if isinstance(pending.entry, MalformedEvidence) or not pending.entry.is_violation:
            judge.check_integrity(pending)
        if number % _SLICE == 0:
            yield


def _judge_covered(walk: _Walk, matched: int, judge: Judge, *, at_start: bool) -> Generator[None, None, None]:
    """Judge the pending entries among the first `matched` lines."""
    first = walk.pending[0].entry if walk.pending and walk.pending[0].index == 0 else None
    has_aggregate = isinstance(first, Entry) and first.name == BOOT_AGGREGATE and first.buffer is None
    if at_start and matched and judge.boot_aggregates and not has_aggregate:
        judge.fail(findings.missing_boot_aggregate(judge.boot_aggregates))
    judge.excluded += len(walk.excluded)
    for number, pending in enumerate(walk.pending, 1):
        judge.judge(pending)
        if number % _JUDGED_SLICE == 0:
            yield


def _demand_progress(checkpoint: ImaCheckpoint, covered: int, judge: Judge) -> None:
    """Lines that were ahead of the last quote must be covered by this one, also when the list starts over."""
    demanded = checkpoint.next_entry + checkpoint.lag
    if covered < demanded:
        judge.fail(findings.no_progress(covered, demanded))


def _mismatch(walk: _Walk, judge: Judge, checkpoint: ImaCheckpoint) -> ImaResult:
    return ImaResult(
        findings=tuple(judge.findings),
        checkpoint=checkpoint,
        pcr_matched=False,
        failures=judge.failures,
        replayed=walk.value,
    )


def _match(walk: _Walk, matched: int, judge: Judge, start: ImaCheckpoint, length: int) -> ImaResult:
    # Violations extend the same in every mode, so they alone do not tell which it is.
    told = matched > judge.violations
    advanced = msgspec.structs.replace(
        start,
        next_entry=start.next_entry + matched,
        pcr=walk.value,
        bank=walk.bank.label,
        extend_mode=walk.mode.value if told else start.extend_mode,
        matched=matched,
        length=length,
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
        uncovered=length - matched,
        violations=judge.violations,
        excluded=judge.excluded,
        replayed=walk.value,
        extend_mode=walk.mode if told else None,
    )
