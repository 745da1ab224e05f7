"""What a history of verifiers must not contain. A pure function; its own tests are histories that are wrong.

Bounds are computed from lease and interval. A fault costs two leases more, and the time for which no verifier
can write. After a loss of what the database took last, what was shown since the last copy is open again.
"""

import bisect
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from keylime.messages.verifier import OperationalState
from tests.truth.history import Answered, Fault, History, Judged, Shown, Starved, Truth, Written

REJECTED = int(OperationalState.INVALID_QUOTE)
_FAILED = frozenset({int(OperationalState.FAILED), REJECTED, int(OperationalState.TENANT_FAILED)})
_OfAgent = TypeVar("_OfAgent", Answered, Judged, Shown)
_Between = tuple[float, float]  # something happened between these times; nobody knows when
_BATCH_S = 1.0  # routine passes are written once a second


class Rule(Enum):
    """What verifiers promise."""

    REJECTED = "a bad machine is rejected"
    IN_TIME = "a bad machine is rejected within the bound"
    FOR_EVER = "what was shown as failed stays so"
    NEVER_ACCUSED = "a good machine is never accused"
    TOLD = "each revocation is told at least once"
    ONE_OWNER = "only the owner's passes count"
    FINAL = "nothing is written after a rejection"
    COUNTS_ON = "counts of passes never go back"
    NEVER_BACK = "states never go back at one verifier"
    PENDING = "a verdict that waits is shown as pending, never as a pass"
    RECENT = "a pass that is shown is recent"
    WATCHED = "no machine is left alone"
    SOUND = "verifiers have no defects and end when they are asked to"


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken, about a machine or a run."""

    rule: Rule
    subject: str
    what: str

    def __str__(self) -> str:
        return f"{self.rule.value}, but {self.subject}: {self.what}"


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long things may take. `grace_s` is for a machine that is busy with other things."""

    lease_s: float
    interval_s: float
    grace_s: float = 100.0

    @property
    def takeover_s(self) -> float:
        """Until somebody else looks after the machines of a verifier that ended."""
        return 2 * self.lease_s

    @property
    def rejection_s(self) -> float:
        """Until a machine that turned bad is shown as such, wherever its verifier is."""
        return self.takeover_s + self.interval_s + _BATCH_S + self.grace_s

    @property
    def shown_as_recent_s(self) -> float:
        """How old a pass may be that is shown; times on the wire are whole seconds."""
        return max(5 * self.interval_s, 1.0) + 3.0 + self.grace_s / 20


def violations(history: History, bounds: Bounds) -> list[Violation]:
    """Everything in a history that must not be there."""
    found = [
        *_unrejected(history, bounds),
        *_accused(history),
        *_untold(history),
        *wrong_writes(history.written),
        *_wrong_answers(history, bounds),
        *_early_failures(history),
        *_old_passes(history, bounds),
        *_left_alone(history, bounds),
        *_unsound(history),
    ]
    return list(dict.fromkeys(found))


def must_be_rejected(history: History) -> set[str]:
    """The machines that must stand rejected at the end."""
    judged, failed = _by_agent(history.judged), _failed(history)
    return {
        agent_id
        for agent_id, truth in history.truths.items()
        if _known_bad_since(truth, judged[agent_id], failed[agent_id], history) is not None
    }


def deadline(
    since: float,
    faults: Iterable[Fault],
    bounds: Bounds,
    allowed_s: float,
    starved: Iterable[Starved] = (),
) -> float:
    """When something that began at `since` must have happened; who has no processor has no time either."""
    limit = since + allowed_s
    costly: list[Fault | Starved] = [*faults, *starved]
    for one in sorted(costly, key=lambda one: one.began):
        if one.ended <= since or one.began >= limit:
            continue
        if isinstance(one, Starved):
            limit += min(one.for_s, one.ended - since)
            continue
        limit += bounds.takeover_s
        if one.blinds:
            limit += one.ended - max(one.began, since)
    return limit


def eras(history: History) -> list[tuple[float, float]]:
    """The times between losses, each from its beginning to its end."""
    starts = [float("-inf"), *(loss.ended for loss in history.losses)]
    ends = [*(loss.began for loss in history.losses), history.ended]
    return list(zip(starts, ends, strict=True))


def _in_eras(history: History) -> Iterator[list[Shown]]:
    """What was shown, in the order of the answers, without what a loss came in between of."""
    for began, ended in eras(history):
        shown = [one for one in history.shown if one.asked_at >= began and one.at <= ended]
        yield sorted(shown, key=lambda one: one.at)


def _known_bad_since(
    truth: Truth, judged: Sequence[Judged], failed: Sequence[_Between], history: History
) -> float | None:
    """Since when a machine must be rejected: it is bad yet, or somebody who lives knows that it was."""
    if truth.bad_since is None:
        return None
    if truth.good_again is None:
        return truth.bad_since
    alive = {run.name for run in history.runs if run.ended is None}
    known = [(one.not_before, one.at) for one in judged if one.run in alive]
    return min((at for since, at in (*known, *failed) if not _is_forgotten(since, at, history)), default=None)


def _failed(history: History) -> defaultdict[str, list[_Between]]:
    """When each machine was shown as failed."""
    failed: defaultdict[str, list[_Between]] = defaultdict(list)
    for shown in history.shown:
        if shown.status == "FAIL":
            failed[shown.agent_id].append((shown.asked_at, shown.at))
    return failed


def _is_forgotten(since: float, at: float, history: History) -> bool:
    """Whether what happened between `since` and `at` may be among what was lost."""
    return any(loss.forgets_since <= at and since <= loss.ended for loss in history.losses)


def _unrejected(history: History, bounds: Bounds) -> Iterator[Violation]:
    judged, failed = _by_agent(history.judged), _failed(history)
    for agent_id, truth in history.truths.items():
        since = _known_bad_since(truth, judged[agent_id], failed[agent_id], history)
        if since is None:
            continue
        row = history.rows.get(agent_id)
        is_rejected = row is not None and row.state == REJECTED
        if not is_rejected:
            state = "not there" if row is None else f"in state {row.state}"
            yield Violation(Rule.REJECTED, agent_id, f"it is {state} in the database at the end")
        for began, ended in eras(history):
            start = max(since, began)
            limit = deadline(start, history.faults, bounds, bounds.rejection_s, history.starved)
            times = [at for _, at in failed[agent_id] if start <= at <= ended]
            first = min(times, default=ended)
            is_known = any(
                at < began and not _is_forgotten(since, at, history) for since, at in failed[agent_id]
            )
            if start < ended and limit < first and not is_known:
                yield Violation(
                    Rule.IN_TIME, agent_id, f"after {first - start:.1f} s of {limit - start:.1f} s"
                )


def _accused(history: History) -> Iterator[Violation]:
    def is_good(agent_id: str, at: float | None = None) -> bool:
        truth = history.truths.get(agent_id, Truth())
        return truth.bad_since is None or (at is not None and at < truth.bad_since)

    for judged in history.judged:
        if is_good(judged.agent_id, judged.at):
            yield Violation(Rule.NEVER_ACCUSED, judged.agent_id, f"rejected by {judged.run}")
    for shown in history.shown:
        if is_good(shown.agent_id, shown.at) and (shown.status == "FAIL" or shown.state in _FAILED):
            yield Violation(Rule.NEVER_ACCUSED, shown.agent_id, f"shown in state {shown.state}")
    for told in history.told:
        if is_good(told.agent_id):
            yield Violation(Rule.NEVER_ACCUSED, told.agent_id, f"{told.whom} was told that it is revoked")
    for agent_id, row in history.rows.items():
        if is_good(agent_id) and (row.state in _FAILED or row.revocations):
            yield Violation(Rule.NEVER_ACCUSED, agent_id, f"{row} in the database")


def _untold(history: History) -> Iterator[Violation]:
    heard = {(told.whom, told.agent_id) for told in history.told}
    for agent_id, row in history.rows.items():
        if row.state != REJECTED:
            continue
        if row.revocations != 1:
            yield Violation(Rule.TOLD, agent_id, f"{row.revocations} revocations are kept")
        bad_since = history.truths[agent_id].bad_since or 0.0
        for whom in sorted(history.listeners - {agent_id}):
            is_there = whom not in history.truths or history.truths[whom].watched_since < bad_since
            if is_there and (whom, agent_id) not in heard:
                yield Violation(Rule.TOLD, agent_id, f"{whom} was not told")


def wrong_writes(written: Iterable[Written]) -> Iterator[Violation]:
    """What the database should not have taken."""
    last: dict[tuple[str, str], tuple[int, int]] = {}
    for write in written:
        is_rejection = write.state == REJECTED  # which counts whoever owns the shard
        if write.writer is not None and not is_rejection and _pid_of(write.writer) != _pid_of(write.owner):
            yield Violation(Rule.ONE_OWNER, write.agent_id, f"{write.writer} wrote, {write.owner} owns it")
        of = write.agent_id, write.incarnation
        if of in last:
            state, count = last[of]
            if write.count < count:
                yield Violation(
                    Rule.COUNTS_ON, write.agent_id, f"from {count} to {write.count} in the database"
                )
            if state == REJECTED:
                yield Violation(
                    Rule.FINAL, write.agent_id, f"written by {write.writer} in state {write.state}"
                )
        last[of] = write.state, write.count


def _pid_of(name: str | None) -> str:
    """Both the owner's name and the writer's end in the process id."""
    return str(name).rpartition(":")[2]


def _is_troubled(shown: Shown, history: History, bounds: Bounds) -> bool:
    """Whether passes of that time may not count: another owner's overtook them, or a call to judge again."""
    before, after = shown.at + bounds.rejection_s, shown.asked_at - bounds.rejection_s
    return any(fault.began <= before and fault.ended >= after for fault in history.faults)


def _wrong_answers(history: History, bounds: Bounds) -> Iterator[Violation]:
    workers = {run.name: run.workers for run in history.runs}
    refused = {(one.run, one.agent_id) for one in history.refused}  # who says that its passes do not count
    failed_at: dict[str, _Between] = {}
    for era, (began, _) in zip(_in_eras(history), eras(history), strict=True):
        failed_at = {
            agent: (since, at)
            for agent, (since, at) in failed_at.items()
            if not _is_forgotten(since, at, history)
        }
        judged: dict[tuple[str, str], float] = {}
        for one in history.judged:
            if one.not_before >= began and workers.get(one.run) == 1:
                judged.setdefault((one.run, one.agent_id), one.at)
        seen: dict[tuple[str, str], Shown] = {}
        for shown in era:
            agent_id = shown.agent_id
            if shown.status == "PASS" and shown.state in _FAILED:
                yield Violation(Rule.PENDING, agent_id, f"{shown.viewer} shows a pass in state {shown.state}")
            _, last_failed_at = failed_at.get(agent_id, (0.0, shown.asked_at))
            if last_failed_at < shown.asked_at and shown.status != "FAIL":
                yield Violation(
                    Rule.FOR_EVER, agent_id, f"{shown.viewer} shows {shown.status} after a failure"
                )
            if shown.status == "FAIL":
                failed_at.setdefault(agent_id, (shown.asked_at, shown.at))
            knows = judged.get((shown.run, agent_id), shown.asked_at) < shown.asked_at
            if knows and (shown.status == "PASS" or shown.state != REJECTED):
                what = f"{shown.viewer} shows {shown.status} in state {shown.state} after its own verdict"
                yield Violation(Rule.PENDING, agent_id, what)
            before = seen.get((shown.viewer, agent_id))
            if before is not None and before.at <= shown.asked_at:
                if before.state == REJECTED != shown.state:
                    what = f"{shown.viewer}: from {before.state} to {shown.state}"
                    yield Violation(Rule.NEVER_BACK, agent_id, what)
                is_overtaken = (shown.run, agent_id) in refused or _is_troubled(before, history, bounds)
                if shown.count < before.count and not is_overtaken:
                    what = f"{shown.viewer}: from {before.count} to {shown.count}"
                    yield Violation(Rule.COUNTS_ON, agent_id, what)
            seen[shown.viewer, agent_id] = shown


def _early_failures(history: History) -> Iterator[Violation]:
    """A verdict that no database can have is shown as pending, not as written."""
    kept = [fault.keeps_verdicts for fault in history.faults if fault.keeps_verdicts is not None]
    for shown in history.shown:
        bad_since = history.truths[shown.agent_id].bad_since
        if shown.status != "FAIL" or bad_since is None:
            continue
        if any(began <= bad_since and shown.at < ended for began, ended in kept):
            yield Violation(Rule.PENDING, shown.agent_id, f"{shown.viewer} shows as written what is not")


def _old_passes(history: History, bounds: Bounds) -> Iterator[Violation]:
    if any(fault.kind == "clock" for fault in history.faults):
        return  # ages are told by the database's clock
    answered = _by_agent(history.answered)
    for agent_id, shown in _by_agent(history.shown).items():
        good = sorted(one.at for one in answered[agent_id] if not one.is_bad)
        for one in shown:
            until_then = bisect.bisect_right(good, one.at)
            latest = good[until_then - 1] if until_then else float("-inf")
            if one.status == "PASS" and one.asked_at - latest > bounds.shown_as_recent_s:
                yield Violation(Rule.RECENT, agent_id, f"{one.viewer}: {one.asked_at - latest:.1f} s old")
                break


def _left_alone(history: History, bounds: Bounds) -> Iterator[Violation]:
    answered = _by_agent(history.answered)
    for agent_id, truth in history.truths.items():
        if truth.bad_since is not None:
            continue
        times = [truth.watched_since, *(one.at for one in answered[agent_id]), history.ended]
        for earlier, later in itertools.pairwise(times):
            limit = deadline(earlier, history.faults, bounds, bounds.rejection_s, history.starved)
            if earlier >= truth.watched_since and later > limit:
                what = f"for {later - earlier:.1f} s of {limit - earlier:.1f} s"
                yield Violation(Rule.WATCHED, agent_id, what)


def _unsound(history: History) -> Iterator[Violation]:
    for run in history.runs:
        for line in run.said:
            yield Violation(Rule.SOUND, run.name, line)
        if run.was_asked_to_end and run.status != 0:
            yield Violation(Rule.SOUND, run.name, f"it ended with status {run.status} after SIGTERM")


def _by_agent(events: Iterable[_OfAgent]) -> defaultdict[str, list[_OfAgent]]:
    sorted_out: defaultdict[str, list[_OfAgent]] = defaultdict(list)
    for one in events:
        sorted_out[one.agent_id].append(one)
    return sorted_out
