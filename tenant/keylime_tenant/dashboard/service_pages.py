"""What the pages of revocations and of services show. Pure: what services said comes in as values."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keylime.findings.finding import printable
from keylime.messages.deliveries import Deliveries, DeliveryStatus, TargetSummary
from keylime.messages.verifiers import SHARDS, VerifierProcess, VerifierProcesses
from keylime_tenant.dashboard.fleet_page import machine_href
from keylime_tenant.terminal import age, moment
from keylime_tenant.told_status import ToldStatus

JsonObject = Mapping[str, Any]
_LATE_S = 60  # without a pass, where nobody tells how long that may take
_SLACK_S = 2  # passes are written once a second, and told in whole ones


@dataclass(frozen=True, slots=True)
class ReceiverRow:
    """How far one receiver of revocations is."""

    target: str
    channel: str
    pending: int
    failed: int
    delivered: int
    waiting: str
    last_error: str
    style: str


@dataclass(frozen=True, slots=True)
class DeliveryRow:
    """One revocation on its way to one receiver."""

    agent_id: str
    href: str
    made: str
    target: str
    state: str
    style: str
    attempts: int
    last_error: str


@dataclass(frozen=True, slots=True)
class RevocationsPage:
    """All of it; `left_off` deliveries are not shown."""

    targets: Sequence[ReceiverRow]
    deliveries: Sequence[DeliveryRow]
    left_off: int


def revocations_page(found: Deliveries, now: float) -> RevocationsPage:
    """What is missing stands first."""
    targets = [_target(one, now) for one in found.targets]
    return RevocationsPage(
        sorted(targets, key=lambda one: (one.style == "good", one.target)),
        [_delivery(one) for one in found.deliveries],
        found.left_off,
    )


def _target(one: TargetSummary, now: float) -> ReceiverRow:
    waits = one.pending + one.wrong_key
    return ReceiverRow(
        target=printable(one.target),
        channel=printable(one.channel),
        pending=waits,
        failed=one.failed,
        delivered=one.delivered,
        waiting=age(one.oldest_pending, now) if waits else "",
        last_error=printable(one.last_error or ""),
        style="bad" if one.failed else "doubtful" if waits else "good",
    )


_STYLES = {"delivered": "good", "failed": "bad", "pending": "doubtful", "wrong_key": "doubtful"}


def _delivery(one: DeliveryStatus) -> DeliveryRow:
    return DeliveryRow(
        agent_id=printable(one.agent_id),
        href=machine_href(one.agent_id),
        made=moment(one.created_at),
        target=f"{printable(one.channel)} {printable(one.target)}",
        state=printable(one.state.replace("_", " ")),
        style=_STYLES.get(one.state, ""),
        attempts=one.attempts,
        last_error=printable(one.last_error or ""),
    )


@dataclass(frozen=True, slots=True)
class ServiceAnswer:
    """What became of asking one service how it is; `results` is empty when it did not say."""

    name: str
    place: str
    version: str
    trouble: str  # why it could not be asked
    results: JsonObject


@dataclass(frozen=True, slots=True)
class ServiceView:
    """One service."""

    name: str
    place: str
    version: str
    verdict: str
    style: str
    notes: Sequence[tuple[str, str]]  # what is wrong or will be, each with its style


@dataclass(frozen=True, slots=True)
class Share:
    """A verifier that looks after machines; texts are empty where a release does not tell."""

    verifier: str
    process: str
    shards: str
    machines: int
    late: str
    style: str


@dataclass(frozen=True, slots=True)
class ServicesPage:
    """All of it."""

    services: Sequence[ServiceView]
    shares: Sequence[Share]


def services_page(
    answers: Sequence[ServiceAnswer],
    processes: VerifierProcesses | None,
    statuses: Mapping[str, ToldStatus],
) -> ServicesPage:
    """How services are, and who looks after how many machines.

    The statuses say how long a pass may take, and, where an older verifier tells no processes (None), whose
    the machines are.
    """
    if processes is None:
        shares = _of_statuses(statuses)
    else:
        longest_s = _longest_intervals_s(statuses.values())
        shares = [
            _share(one, processes.now, longest_s.get(one.verifier_id, _LATE_S)) for one in processes.verifiers
        ]
    return ServicesPage([_service(one) for one in answers], shares)


def _longest_intervals_s(statuses: Iterable[ToldStatus]) -> dict[str, int]:
    """Of the machines of each verifier the one that may be without a pass for longest.

    A process tells when the oldest pass was, and not which machine's: it is late where any would be.
    """
    found: dict[str, int] = {}
    for status in statuses:
        name, interval_s = status.verifier_id or "", status.longest_interval_s
        if interval_s is not None:
            found[name] = max(interval_s, found.get(name, 0))
    return found


def _share(one: VerifierProcess, now: int, longest_s: int) -> Share:
    late = age(one.oldest_pass, now)
    is_late = one.oldest_pass is not None and now - one.oldest_pass > longest_s + _SLACK_S
    return Share(
        printable(one.verifier_id),
        printable(one.name),
        f"{one.shards} of {SHARDS}",
        one.agents,
        late,
        "doubtful" if is_late or not one.shards else "",
    )


def _of_statuses(statuses: Mapping[str, ToldStatus]) -> list[Share]:
    counts = Counter(status.verifier_id or "" for status in statuses.values())
    return [Share(printable(name), "", "", count, "", "") for name, count in sorted(counts.items())]


def _service(answer: ServiceAnswer) -> ServiceView:
    if answer.trouble:
        notes = [(printable(answer.trouble), "bad")]
        return ServiceView(answer.name, answer.place, "", "cannot be asked", "bad", notes)
    problems, remarks = _texts(answer.results, "problems"), _texts(answer.results, "remarks")
    notes = [*((text, "bad") for text in problems), *((text, "doubtful") for text in remarks)]
    verdict, style = (
        ("not ready", "bad") if problems else ("ready", "doubtful") if remarks else ("ready", "good")
    )
    return ServiceView(answer.name, answer.place, printable(answer.version), verdict, style, notes)


def _texts(results: JsonObject, name: str) -> list[str]:
    found = results.get(name)
    return (
        [f"{printable(str(key))}: {printable(str(text))}" for key, text in sorted(found.items())]
        if isinstance(found, Mapping)
        else []
    )
