"""What the page of the fleet shows. Pure: statuses and the time come in as values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from keylime.findings.finding import printable
from keylime_tenant.dashboard.sparkline import Sparkline, sparkline
from keylime_tenant.people import policies_in_force
from keylime_tenant.standing import Standing, standing_of
from keylime_tenant.terminal import ago
from keylime_tenant.told_status import ToldStatus

ROWS = 200
"""On one page: a browser shows more only slowly, and nobody reads them."""


@dataclass(frozen=True, slots=True)
class FleetQuery:
    """What a person looks for; pages are counted from 1."""

    text: str = ""
    standing: Standing | None = None
    page: int = 1

    def href(self, **changes: object) -> str:
        """The address of the fleet, looked at so."""
        state = "" if self.standing is None else self.standing.name.lower()
        values = {"q": self.text, "state": state, "page": self.page if self.page > 1 else ""} | changes
        kept = {name: value for name, value in values.items() if value not in ("", None)}
        return f"/?{urlencode(kept)}" if kept else "/"


def read_query(text: str, state: str, page: str) -> FleetQuery:
    """A query as it stands in an address; what makes no sense is left out."""
    standing = Standing[state.upper()] if state.upper() in Standing.__members__ else None
    number = int(page) if page.isascii() and page.isdecimal() and len(page) < 7 else 1
    return FleetQuery(text.strip()[:200], standing, max(1, number))


@dataclass(frozen=True, slots=True)
class Count:
    """How many stand so, and where they are listed."""

    standing: Standing
    count: int
    href: str
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class MachineRow:
    """One machine of the list."""

    agent_id: str
    href: str
    standing: Standing
    last_pass: str
    passes: str
    policies: str
    address: str


@dataclass(frozen=True, slots=True)
class FleetPage:
    """All of it."""

    place: str
    query: FleetQuery
    total: int
    found: int
    first: int  # the number of the first row that is shown, from 1
    counts: Sequence[Count]
    rows: Sequence[MachineRow]
    over_time: Sequence[tuple[Standing, Sparkline]]
    before: str | None
    after: str | None


def machine_href(agent_id: str, *below: str) -> str:
    """The address of a machine's page, or of what is below it."""
    return "/".join(("/machine", quote(agent_id, safe=""), *below))


def fleet_page(
    statuses: Mapping[str, ToldStatus],
    query: FleetQuery,
    place: str,
    over_time: Mapping[Standing, Sequence[int]],
    now: float,
) -> FleetPage:
    """The machines that the query means, the worst first; `over_time` is how many stood how until now."""
    standings = {agent: standing_of(status) for agent, status in statuses.items()}
    counts: dict[Standing, int] = {}
    for standing in standings.values():
        counts[standing] = counts.get(standing, 0) + 1
    found = sorted(
        (standings[agent], agent) for agent, status in statuses.items() if _is_meant(query, agent, status)
    )
    last = max(1, -(-len(found) // ROWS))
    page = min(query.page, last)
    begin = (page - 1) * ROWS
    return FleetPage(
        place=place,
        query=query,
        total=len(statuses),
        found=len(found),
        first=begin + 1,
        counts=[
            Count(
                one,
                counts.get(one, 0),
                query.href(state="" if query.standing is one else one.name.lower(), page=""),
                query.standing is one,
            )
            for one in Standing
        ],
        rows=[_row(agent, statuses[agent], one, now) for one, agent in found[begin : begin + ROWS]],
        over_time=[
            (one, sparkline(values, f"{one.word} machines in the last 48 hours"))
            for one, values in over_time.items()
        ],
        before=query.href(page=page - 1 if page > 2 else "") if page > 1 else None,
        after=query.href(page=page + 1) if page < last else None,
    )


def _is_meant(query: FleetQuery, agent: str, status: ToldStatus) -> bool:
    if query.standing is not None and standing_of(status) is not query.standing:
        return False
    needle = query.text.lower()
    texts = (agent, status.ip or "", *policies_in_force(status))
    return not needle or any(needle in text.lower() for text in texts)


def _row(agent: str, status: ToldStatus, standing: Standing, now: float) -> MachineRow:
    return MachineRow(
        agent_id=printable(agent),
        href=machine_href(agent),
        standing=standing,
        last_pass=ago(status.last_successful_attestation, now),
        passes="?" if status.attestation_count is None else str(status.attestation_count),
        policies=", ".join(policies_in_force(status)),
        address=_address(status),
    )


def _address(status: ToldStatus) -> str:
    if status.attests_by_itself:
        return "attests by itself"
    return f"{printable(status.ip)}:{status.port}" if status.ip else ""
