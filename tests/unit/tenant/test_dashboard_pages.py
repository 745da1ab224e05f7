"""What the pages of the dashboard show, before it is HTML."""

import json
from typing import Any

import msgspec
import pytest

from keylime.ima.runtime_policy import EMPTY_POLICY
from keylime.messages.deliveries import Deliveries, DeliveryStatus, TargetSummary
from keylime.messages.history import HistoryEvent
from keylime.messages.verification import PolicyVersion, PolicyVersions
from keylime.messages.verifier import FindingSummary
from keylime.messages.verifiers import VerifierProcess, VerifierProcesses
from keylime_tenant.dashboard.chronicle import SPAN_S, Chronicle
from keylime_tenant.dashboard.fleet_page import ROWS, FleetQuery, fleet_page, read_query
from keylime_tenant.dashboard.growth import MOST_MACHINES, STEP_S, Growth
from keylime_tenant.dashboard.machine_page import ReadCertificate, acceptable, machine_page
from keylime_tenant.dashboard.policy_pages import KINDS, compare, policies_page, policy_page
from keylime_tenant.dashboard.service_pages import ServiceAnswer, revocations_page, services_page
from keylime_tenant.dashboard.sparkline import HEIGHT, WIDTH, sparkline
from keylime_tenant.standing import Standing
from keylime_tenant.told_status import ToldStatus, told_status
from keylime_tenant.why import case_of

NOW = 1_800_000_000
UNKNOWN = FindingSummary(
    event_id="ima.validation.ima-ng.not_in_allowlist",
    severity="high",
    explanation="the file is not in the policy",
    path="/opt/tool",
    log_index=7,
    observed="ab" * 32,
    rule="digests",
    hint="list it",
)


def status(told: str = "PASS", **fields: Any) -> ToldStatus:
    """A verifier's status of an agent."""
    base = {
        "operational_state": 3 if told == "PASS" else 9,
        "attestation_status": told,
        "attestation_count": 5,
        "last_successful_attestation": NOW - 60,
        "ip": "192.0.2.7",
        "port": 9002,
        "runtime_policy_name": "web",
        "verifier_id": "default",
    }
    return told_status(base | fields)


def event(number: int, kind: str = "state", agent_id: str | None = "a", **details: Any) -> HistoryEvent:
    return HistoryEvent(
        id=number,
        at=NOW - SPAN_S // 2 + number * 60,
        kind=kind,
        agent_id=agent_id,
        policy=None,
        actor=None,
        request_id=None,
        details=details,
    )


_TOLD: dict[str, Any] = {"from": "Get Quote", "to": "Invalid Quote", "findings": [{"event_id": "x"}]}
FALL = event(2, **_TOLD)


def test_the_fleet_counts_all_and_lists_the_worst_first() -> None:
    statuses = {"b": status(), "a": status(), "c": status("FAIL", last_findings=[{}])}
    page = fleet_page(statuses, FleetQuery(), "the verifier", {Standing.FAILED: [0, 1]}, NOW)
    assert [row.agent_id for row in page.rows] == ["c", "a", "b"]
    assert {one.standing: one.count for one in page.counts if one.count} == {
        Standing.FAILED: 1,
        Standing.ATTESTED: 2,
    }
    assert [(one.href, one.is_chosen) for one in page.counts if one.count] == [
        ("/?state=failed", False),
        ("/?state=attested", False),
    ]
    assert (page.rows[0].href, page.rows[0].last_pass, page.rows[0].address) == (
        "/machine/c",
        "1 min 0 s ago",
        "192.0.2.7:9002",
    )


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (FleetQuery("WEB-7"), ["web-7"]),
        (FleetQuery("192.0.2.9"), ["odd"]),
        (FleetQuery("runtime policy special"), ["odd"]),
        (FleetQuery("", Standing.FAILED), ["odd"]),
        (FleetQuery("web", Standing.FAILED), []),
    ],
)
def test_machines_are_found_by_id_address_policy_and_state(query: FleetQuery, found: list[str]) -> None:
    statuses = {
        "web-7": status(),
        "odd": status("FAIL", ip="192.0.2.9", runtime_policy_name="special"),
        "other": status(runtime_policy_name=None),
    }
    assert [row.agent_id for row in fleet_page(statuses, query, "", {}, NOW).rows] == found


def test_long_lists_come_in_parts_that_lead_to_each_other() -> None:
    statuses = {f"m{number:04}": status() for number in range(2 * ROWS + 1)}

    def part(number: int) -> tuple[int, int, str | None, str | None]:
        page = fleet_page(statuses, FleetQuery("m", page=number), "", {}, NOW)
        return page.first, len(page.rows), page.before, page.after

    assert part(1) == (1, ROWS, None, "/?q=m&page=2")
    assert part(2) == (ROWS + 1, ROWS, "/?q=m", "/?q=m&page=3")
    assert part(3) == part(99) == (2 * ROWS + 1, 1, "/?q=m&page=2", None)


def test_queries_that_make_no_sense_are_no_errors() -> None:
    assert read_query("  x ", "nonsense", "-1") == FleetQuery("x")
    assert read_query("", "Failed", "3") == FleetQuery("", Standing.FAILED, 3)
    assert read_query("", "", "9" * 30).page == 1
    assert read_query("", "", "0").page == 1
    assert len(read_query("y" * 10_000, "", "").text) == 200


def test_a_line_stays_in_its_picture_and_says_what_it_shows() -> None:
    drawn = sparkline([0, 3, 1], "failed machines")
    points = [tuple(map(float, point.split(","))) for point in drawn.points.split()]
    assert len(points) == 6
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)
    assert min(y for _, y in points) == points[2][1] == points[3][1]
    assert drawn.label == "failed machines: 1 now, at least 0 and at most 3 meanwhile"
    assert len({y for _, y in (point.split(",") for point in sparkline([0, 0], "").points.split())}) == 1
    assert sparkline([], "x").points == ""


def test_how_many_stood_how_is_told_by_the_events_and_set_right_by_the_fleet() -> None:
    chronicle = Chronicle()

    def last(now: float = NOW) -> tuple[int, ...]:
        """How many have failed, are unreachable, are attested."""
        return tuple(values[-1] for values in chronicle.series(now).values())

    assert {value for values in chronicle.series(NOW).values() for value in values} == {0}
    chronicle.take(event(1, "enrolled"))
    assert last() == (0, 0, 0)
    chronicle.take(event(1, to="Get Quote"))
    assert last() == (0, 0, 1)
    chronicle.take(FALL)
    chronicle.take(event(3, agent_id="b", to="Failed"))
    chronicle.take(event(4, "policy_replaced", agent_id=None))
    chronicle.take(event(4, "delivery", outcome="delivered"))
    chronicle.take(event(4, to="a state of a later release"))
    series = chronicle.series(NOW)[Standing.FAILED]
    assert (series[0], series[-1], max(series)) == (0, 1, 1)
    assert last() == (1, 1, 0)
    chronicle.take(event(600, "reactivated"))
    assert last() == (0, 1, 0)
    chronicle.take(event(700, "deleted", agent_id="b"))
    assert last() == (0, 0, 0)
    failed, overdue, unjudged = Standing.FAILED, Standing.OVERDUE, Standing.UNJUDGED
    chronicle.set_right({"c": failed, "d": failed, "e": overdue, "f": unjudged}, NOW)
    assert last() == (2, 1, 1)
    assert chronicle.series(NOW + 3 * SPAN_S)[failed] == [2] * 48
    chronicle.take(event(800, agent_id="d", to="Get Quote"))
    assert last(NOW + 60) == (1, 1, 2)


def test_a_machine_that_attests_by_itself_is_shown_beside_the_others_and_says_when_it_is_overdue() -> None:
    pushing: dict[str, Any] = {"attestation_mode": "push", "ip": None, "port": None, "deadline": NOW + 30}
    statuses = {"polled": status(), "good": status(**pushing), "late": status("TIMEOUT", **pushing)}
    page = fleet_page(statuses, FleetQuery(), "", {}, NOW)
    assert [(row.agent_id, row.standing, row.address) for row in page.rows] == [
        ("late", Standing.OVERDUE, "attests by itself"),
        ("good", Standing.ATTESTED, "attests by itself"),
        ("polled", Standing.ATTESTED, "192.0.2.7:9002"),
    ]
    case = case_of("late", statuses["late"], [])
    shown = machine_page(case, "late", [], [], NOW)
    assert shown.standing is Standing.OVERDUE
    notes = [fact.value for fact in shown.facts if fact.name == "note"]
    assert any(note.startswith("attests by itself, the next time by 2027-01-15") for note in notes)


def test_the_chronicle_forgets_what_is_older_than_it_shows() -> None:
    chronicle = Chronicle()
    for number in range(4_000):
        chronicle.set_right({"a": Standing.FAILED} if number % 2 else {}, NOW + number * 60)
    assert len(chronicle._changes) <= SPAN_S // 60 + 2


def test_a_failed_machine_says_why_and_what_to_type() -> None:
    failed = status("FAIL", last_findings=[json.loads(json.dumps(_plain(UNKNOWN)))])
    events = [event(1, "enrolled"), FALL]
    page = machine_page(case_of("a", failed, events), "a", events, [], NOW)
    assert page.standing is Standing.FAILED
    assert page.since.startswith("20")
    (finding,) = page.findings
    assert (finding.title, finding.hint) == ("ima.validation.ima-ng.not_in_allowlist (high)", "list it")
    assert {fact.name: fact.value for fact in finding.facts} == {
        "path": "/opt/tool",
        "entry of the list": "7",
        "measured": "ab" * 32,
        "rule": "digests",
    }
    assert page.commands == ["keylime_tenant diff -u a", "keylime_tenant approve -u a"]
    assert [act.word for act in page.acts] == ["accept", "reactivate", "stop", "delete"]
    assert [entry.headline for entry in page.timeline] == ["Get Quote -> Invalid Quote", "enrolled"]


def _plain(finding: FindingSummary) -> dict[str, Any]:
    return {name: getattr(finding, name) for name in FindingSummary.__struct_fields__}


def test_what_no_policy_should_list_cannot_be_accepted() -> None:
    signature = _plain(UNKNOWN) | {"event_id": "quote_validation.quote_validation", "path": None}
    failed = status("FAIL", last_findings=[signature])
    page = machine_page(case_of("a", failed, []), "a", [], [], NOW)
    assert [act.word for act in page.acts] == ["reactivate", "stop", "delete"]
    assert page.not_acceptable == ["quote_validation.quote_validation: no digest in a policy would answer it"]
    assert acceptable([UNKNOWN]) == ["/opt/tool"]


def test_of_a_machine_that_is_gone_the_history_is_left() -> None:
    events = [event(number) for number in range(1, 300)]
    read = [ReadCertificate("TLS of the agent", "", "", None)]
    page = machine_page(None, "gone", events, read, NOW)
    assert (page.standing, page.acts, page.facts, len(page.timeline), page.older) == (None, [], [], 200, 99)
    assert [fact.value for fact in page.certificates[0].facts] == ["cannot be read"]


def test_policies_say_how_many_machines_are_held_to_them() -> None:
    parts = [{"name": "web"}, {"name": "next", "until": NOW}, {"name": "old", "has_ended": True}]
    statuses = {
        "a": status(),
        "b": status(runtime_policies=parts),
        "c": status(runtime_policy_name=None, mb_policy_name="boot/1"),
    }
    runtime, boot = policies_page({"runtime": ["web", "next", "old"], "boot": ["boot/1"]}, statuses)
    assert [(one.name, one.machines) for one in runtime.policies] == [("next", 1), ("old", 0), ("web", 2)]
    assert [(one.href, one.machines) for one in boot.policies] == [("/policies/boot/boot%2F1", 1)]


def test_the_two_newest_versions_are_offered_for_comparison() -> None:
    versions = [PolicyVersion(number, "00", NOW, "CN=op", number == 3) for number in (3, 2, 1)]
    found = PolicyVersions(name="web", versions=versions, agents=["a b"], left_off=4)
    page = policy_page(KINDS["runtime"], found, None)
    assert (page.chosen, page.machines, page.left_off) == ((2, 3), [("a b", "/machine/a%20b")], 4)
    assert policy_page(KINDS["runtime"], PolicyVersions(**_none("web")), None).chosen == (0, 0)


def _none(name: str) -> dict[str, Any]:
    return {"name": name, "versions": [], "agents": [], "left_off": 0}


def test_versions_of_runtime_policies_are_compared_by_what_they_allow() -> None:
    document = json.loads(EMPTY_POLICY)
    document["meta"]["generator"] = 3
    former = json.dumps(document | {"digests": {"/a": ["00" * 32]}})
    latter = json.dumps(document | {"digests": {"/b": ["11" * 32]}, "excludes": ["/var/x"]}, indent=1)
    lines = compare(KINDS["runtime"], (1, former), (2, latter)).lines
    assert [(line.text, line.style) for line in lines] == [
        (f"+ digests /b {'11' * 32}", "added"),
        (f"- digests /a {'00' * 32}", "removed"),
        ("+ excludes /var/x", "added"),
    ]
    assert "Nothing" in compare(KINDS["runtime"], (1, former), (2, former)).lines[0].text
    assert "cannot be compared" in compare(KINDS["runtime"], (1, "{"), (2, former)).lines[0].text


def test_other_policies_are_compared_line_by_line() -> None:
    lines = compare(KINDS["boot"], (1, '{"a": 1, "b": 2}'), (2, '{"b": 3, "a": 1}')).lines
    assert {(line.text, line.style) for line in lines} >= {('  "a": 1,', ""), ('- "b": 2', "removed")}
    assert compare(KINDS["boot"], (1, "x"), (2, "y")).lines[1].text == "-x"


def test_who_misses_a_revocation_stands_first() -> None:
    targets = [
        TargetSummary(channel="agent", target="a", pending=0, delivered=3, failed=0, attempts=3),
        TargetSummary(
            channel="webhook",
            target="https://x",
            pending=2,
            delivered=0,
            failed=1,
            attempts=9,
            last_error="refused",
            oldest_pending=NOW - 3600,
        ),
    ]
    way = DeliveryStatus(
        revocation_id="r",
        agent_id="m 1",
        created_at=NOW,
        channel="agent",
        target="a",
        state="wrong_key",
        attempts=1,
        updated_at=NOW,
    )
    page = revocations_page(Deliveries(targets=targets, deliveries=[way], left_off=1), NOW)
    assert [(one.target, one.style, one.waiting) for one in page.targets] == [
        ("https://x", "bad", "1 h 0 min"),
        ("a", "good", ""),
    ]
    assert (page.deliveries[0].state, page.deliveries[0].href) == ("wrong key", "/machine/m%201")


def test_services_say_what_is_wrong_and_who_has_which_machines() -> None:
    answers = [
        ServiceAnswer("registrar", "https://r", "", "refused", {}),
        ServiceAnswer("verifier", "https://v", "2.6", "", {"remarks": {"certificates": "end soon"}}),
        ServiceAnswer("verifier", "https://v", "2.6", "", {"problems": {"database": "away"}}),
        ServiceAnswer("verifier", "https://v", "2.6", "", {"problems": "nonsense"}),
    ]
    process = VerifierProcess(
        name="host-1:7", verifier_id="default", shards=128, agents=5, oldest_pass=NOW - 9
    )
    late = msgspec.structs.replace(process, name="host-2:8", oldest_pass=NOW - 90)
    idle = msgspec.structs.replace(process, name="host-3:9", shards=0, agents=0, oldest_pass=None)
    processes = VerifierProcesses(verifiers=[process, late, idle], now=NOW)
    page = services_page(answers, processes, {})
    assert [(one.verdict, one.style) for one in page.services] == [
        ("cannot be asked", "bad"),
        ("ready", "doubtful"),
        ("not ready", "bad"),
        ("ready", "good"),
    ]
    assert page.services[2].notes == [("database: away", "bad")]
    assert [(one.process, one.shards, one.machines, one.late, one.style) for one in page.shares] == [
        ("host-1:7", "128 of 256", 5, "9 s", ""),
        ("host-2:8", "128 of 256", 5, "1 min 30 s", "doubtful"),
        ("host-3:9", "0 of 256", 0, "", "doubtful"),
    ]
    # An older verifier says whose machines are, and no more.
    older = services_page(answers, None, {"a": status(), "b": status(verifier_id="other"), "c": status()})
    assert [(one.verifier, one.machines) for one in older.shares] == [("default", 2), ("other", 1)]


@pytest.mark.parametrize(
    ("told", "other", "since_s", "style"),
    [
        ("3000s", "3000s", 2999, ""),  # it is asked every ten minutes
        ("3000s", "3000s", 3003, "doubtful"),
        ("3000s", None, 2999, ""),
        ("10s", "3000s", 11, ""),  # nobody knows whose pass it is
        ("10s", "10s", 13, "doubtful"),
        ("1s", "1s", 3, ""),  # passes are written once a second
        (None, None, 60, ""),
        (None, None, 63, "doubtful"),
    ],
)
def test_a_machine_that_is_asked_rarely_is_not_late(
    told: str | None, other: str | None, since_s: int, style: str
) -> None:
    process = VerifierProcess(
        name="host-1:7", verifier_id="default", shards=256, agents=2, oldest_pass=NOW - since_s
    )
    statuses = {
        "a": status(maximum_attestation_interval=told),
        "b": status(maximum_attestation_interval=other),
        "c": status(maximum_attestation_interval="90000s", verifier_id="another"),
    }
    page = services_page([], VerifierProcesses(verifiers=[process], now=NOW), statuses)
    assert page.shares[0].style == style


def test_lists_of_machines_that_were_looked_at_grow_in_a_line() -> None:
    growth = Growth()
    growth.follow("a")
    for number in range(4):
        fleet = {"a": status(ima_entries=100 + number), "b": status(ima_entries=7)}
        growth.take(fleet, NOW + number * STEP_S)
        growth.take({"a": status(ima_entries=105 + number)}, NOW + number * STEP_S + 1)
    growth.take({"a": status()}, NOW + 9 * STEP_S)  # an older verifier does not tell
    assert growth.series("a") == (NOW, [105, 106, 107, 108])
    assert growth.series("b") is None
    shown = machine_page(case_of("a", status(), []), "a", [], [], NOW, growth.series("a"))
    assert shown.growth is not None
    assert shown.growth.label.startswith("entries of its IMA list since 2027-01-15 08:00:00 UTC: 108 now")
    for number in range(MOST_MACHINES):
        growth.follow(f"m{number}")
    assert growth.series("a") is None


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "not judged: no policy for it"),
        ({"has_mb_refstate": 1, "attestation_count": 0}, "not judged yet"),
        (
            {"has_mb_refstate": 1, "reboots": 2},
            "as its policy demands, when it passed last, rebooted 2 times",
        ),
        (
            {
                "has_mb_refstate": 1,
                "last_findings": [
                    {"event_id": "measured_boot.policy", "severity": "high", "explanation": "another shim"}
                ],
            },
            "not as its policy demands, 1 finding",
        ),
    ],
)
def test_how_a_machine_was_started_is_told(fields: dict[str, Any], said: str) -> None:
    told = status("FAIL" if "last_findings" in fields else "PASS", ima_entries=12, **fields)
    shown = {fact.name: fact.value for fact in machine_page(case_of("a", told, []), "a", [], [], NOW).facts}
    assert shown["measured boot"] == said
    assert shown["IMA list"] == "12 entries judged since it was started"
