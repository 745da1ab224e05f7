"""What must hold after each step of a simulated year, decided from what was seen."""

import re
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from benchmarks.rig.year_machines import Notice
from benchmarks.rig.year_plan import Kind, Step
from keylime.messages.verifier import OperationalState

MAX_AGE_S = 60.0  # of the last pass: sixty intervals
_SERIOUS = re.compile(r" - (?:ERROR|CRITICAL) - |Traceback|because of a defect")
_RESTARTED = "a worker that was killed is replaced"
_EXPECTED = {Kind.WORKER_KILL: (re.compile(r"worker .*(?:ended|killed|signal)", re.IGNORECASE), _RESTARTED)}


@dataclass(frozen=True, slots=True)
class Shown:
    """What the verifier shows of one machine."""

    state: OperationalState
    status: str  # PASS, FAIL or PENDING
    age_s: float  # since the last pass
    event_id: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """All that could be seen at the end of a step."""

    shown: Mapping[str, Shown]
    notices: AbstractSet[Notice]  # of all times
    log: Sequence[str]  # lines since the step before


@dataclass(frozen=True, slots=True)
class Truth:
    """What has been done to machines so far."""

    machines: AbstractSet[str]
    bad: AbstractSet[str]
    silenced: AbstractSet[str]


@dataclass(frozen=True, slots=True)
class Judgement:
    """Problems, and what would be one if it had not a good reason."""

    problems: tuple[str, ...]
    exceptions: tuple[tuple[str, str], ...]  # what was seen, and the reason


def judge(step: Step, seen: Seen, truth: Truth, known: AbstractSet[Notice]) -> Judgement:
    """The judgement of a step; notices that are `known` were judged before."""
    problems = list(_wrong_states(seen.shown, truth))
    exceptions = []
    for notice in sorted(seen.notices - known):
        text, reason = f"{notice.kind} about {notice.agent_id}", _reason_of_notice(notice, truth)
        if reason:
            exceptions.append((text, reason))
        else:
            problems.append(f"wrong alarm: {text}")
    for line in filter(_SERIOUS.search, seen.log):
        reason = _reason_of_line(line, step, truth)
        if reason:
            exceptions.append((line, reason))
        else:
            problems.append(f"in the log: {line}")
    return Judgement(tuple(problems), tuple(exceptions))


def _wrong_states(shown: Mapping[str, Shown], truth: Truth) -> Iterator[str]:
    for agent_id in sorted(truth.machines):
        one = shown.get(agent_id)
        if one is None:
            yield f"{agent_id} is not watched any more"
        elif agent_id in truth.bad:
            if one.status != "FAIL" or one.state is not OperationalState.INVALID_QUOTE:
                yield f"{agent_id} was tampered with, and is shown as {one.state.name}, {one.status}"
        elif one.state is not OperationalState.GET_QUOTE:
            yield f"{agent_id} is well, and is shown as {one.state.name}, {one.status}: {one.event_id}"
        elif abs(one.age_s) > MAX_AGE_S:
            yield f"{agent_id} passed {one.age_s:.0f} s ago for the last time"


def _reason_of_notice(notice: Notice, truth: Truth) -> str:
    if notice.kind == "revocation" and notice.agent_id in truth.bad:
        return "it was tampered with"
    if notice.kind == "comm_error" and notice.agent_id in truth.silenced:
        return "it was silent for two days"
    if notice.kind == "cleared" and notice.agent_id in truth.silenced:
        return "it is back"
    return ""


def _reason_of_line(line: str, step: Step, truth: Truth) -> str:
    if any(agent_id in line for agent_id in truth.bad):
        return "it was tampered with"
    if any(agent_id in line for agent_id in truth.silenced):
        return "it was silent for two days"
    for event in step.events:
        pattern, reason = _EXPECTED.get(event.kind, (None, ""))
        if pattern is not None and pattern.search(line):
            return reason
    return ""
