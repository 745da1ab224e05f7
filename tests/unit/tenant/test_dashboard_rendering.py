"""HTML of the dashboard: whatever machines, policies and services call themselves, it stays text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keylime.ima.runtime_policy import PolicyDifference
from keylime.messages.deliveries import Deliveries, DeliveryStatus, TargetSummary
from keylime.messages.history import HistoryEvent
from keylime.messages.verification import PolicyVersion, PolicyVersions
from keylime.messages.verifiers import VerifierProcess, VerifierProcesses
from keylime_tenant.approval import Proposal
from keylime_tenant.dashboard.acting import ORDERS, Acceptance
from keylime_tenant.dashboard.fleet_page import FleetQuery, fleet_page
from keylime_tenant.dashboard.following import BrowserNews
from keylime_tenant.dashboard.machine_page import ReadCertificate, machine_page
from keylime_tenant.dashboard.policy_pages import KINDS, compare, policies_page, policy_page
from keylime_tenant.dashboard.rendering import STATIC, Renderer, static_file
from keylime_tenant.dashboard.service_pages import ServiceAnswer, revocations_page, services_page
from keylime_tenant.standing import Standing
from keylime_tenant.told_status import told_status
from keylime_tenant.why import case_of

NOW = 1_800_000_000
RENDERER = Renderer("f0")
_ELEMENTS = re.compile(
    "a|body|button|caption|d[dlt]|details|div|figcaption|figure|form|h[1-3]|head|header|html|input|label|li|"
    "link|main|meta|nav|ol|option|p|polyline|pre|script|section|select|span|strong|summary|svg|table|tbody|"
    "t[dhr]|thead|time|title|ul"
)
_VOID = frozenset({"input", "link", "meta"})
EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "</textarea></title></style>",
    "{{ 7*7 }}{% raw x %}",
    "a\u202eb\x00\x1b[31m",
    "&lt;b&gt;",
    "../../etc",
    "é" * 3,
)


@dataclass
class Seen(HTMLParser):
    """What a browser makes of a page."""

    text: list[str] = field(default_factory=list)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(page: bytes) -> Seen:
    seen = Seen()
    seen.feed(page.decode())
    seen.close()
    assert seen.open == []
    return seen


def pages(evil: str) -> Iterator[bytes]:
    """Every page, with `evil` wherever something comes from others."""
    finding = {
        **dict.fromkeys(("event_id", "severity", "explanation", "path", "observed", "rule", "hint"), evil),
        "expected": [evil],
        "policy": evil,
    }
    texts = ("ip", "runtime_policy_name", "mb_policy_name", "verifier_id", "verifier_ip", "last_event_id")
    told: dict[str, Any] = {
        **dict.fromkeys((*texts, "attestation_text", "port", "attestation_count"), evil),
        **{"attestation_status": "FAIL", "last_findings": [finding], "runtime_policies": [{"name": evil}]},
    }
    status = told_status(told)
    statuses = {evil: status}
    events = [
        HistoryEvent(
            id=1,
            at=NOW,
            kind=kind,
            agent_id=evil,
            policy=policy,
            actor=evil,
            request_id=evil,
            details=details,
        )
        for kind, policy, details in (
            ("state", None, {"from": evil, "to": evil, "findings": [finding], "revocation": evil}),
            ("enrolled", None, {"ip": evil, "port": evil, "runtime_policy": evil}),
            ("policy_stored", f"runtime/{evil}", {"sha256": evil, "was": evil}),
            (evil, None, {}),
        )
    ]
    certificates = [ReadCertificate("TLS", evil, evil, None)]
    fleet = fleet_page(statuses, FleetQuery(evil), evil, {Standing.FAILED: [1]}, NOW)
    yield RENDERER.page("fleet", "Fleet", page=fleet, section="fleet", problem=evil)
    machine = machine_page(case_of(evil, status, events), evil, events, certificates, NOW)
    yield RENDERER.page("machine", evil, page=machine)
    yield RENDERER.page("machine", evil, page=machine_page(None, evil, events, [], NOW))
    yield RENDERER.page("confirm", evil, back="/", word="stop", means=ORDERS["stop"].means)
    difference = PolicyDifference({evil: {evil: (evil,)}}, {}, (), (), ())
    asked = Acceptance(evil, Proposal(evil, difference, "00", False), 2, [evil], 3)
    yield RENDERER.page("accept", evil, back="/", asked=asked)
    names = {"runtime": [evil], "boot": [evil]}
    yield RENDERER.page("policies", "Policies", groups=policies_page(names, statuses))
    versions = [PolicyVersion(number, evil, NOW, evil, False) for number in (2, 1)]
    found = PolicyVersions(name=evil, versions=versions, agents=[evil], left_off=1)
    comparison = compare(KINDS["boot"], (1, ""), (2, evil))
    yield RENDERER.page("policy", evil, page=policy_page(KINDS["boot"], found, comparison))
    target = TargetSummary(
        channel=evil, target=evil, pending=1, delivered=0, failed=0, attempts=1, last_error=evil
    )
    names_of_way = dict.fromkeys(
        ("revocation_id", "agent_id", "channel", "target", "state", "last_error"), evil
    )
    numbers = dict.fromkeys(("created_at", "attempts", "updated_at"), 1)
    way = msgspec.convert({**names_of_way, **numbers}, DeliveryStatus)
    revocations = revocations_page(Deliveries(targets=[target], deliveries=[way], left_off=1), NOW)
    yield RENDERER.page("revocations", "Revocations", page=revocations)
    answers = [
        ServiceAnswer("verifier", "https://v", evil, "", {"problems": {evil: evil}}),
        ServiceAnswer("registrar", "https://r", "", evil, {}),
    ]
    process = VerifierProcess(name=evil, verifier_id=evil, shards=1, agents=1, oldest_pass=NOW)
    processes = VerifierProcesses(verifiers=[process], now=NOW)
    yield RENDERER.page("services", "Services", page=services_page(answers, processes, statuses))
    yield RENDERER.page("error", "Not possible", text=evil, is_inside=False)
    yield RENDERER.page("login", "Welcome")


def check(page: bytes) -> None:
    """Nothing but our own elements, which load and run nothing but our own files."""
    seen = read(page)
    for tag, attributes in seen.tags:
        assert _ELEMENTS.fullmatch(tag), tag
        assert not [name for name in attributes if name.startswith("on") or name == "style"], attributes
        for name in ("href", "src", "action"):
            target = attributes.get(name)
            assert target is None or re.fullmatch(r"#main|/(?!/)[\x21-\x7e]*", target), (tag, target)
    assert [one.get("src") for one in seen.all("script")] in ([], ["/static/dashboard.js"])
    assert [one.get("href") for one in seen.all("link")] == ["/static/dashboard.css"]
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202a-\u202e]", page.decode())


@pytest.mark.parametrize("evil", EVIL)
def test_n28_what_comes_from_others_stays_text(evil: str) -> None:
    for page in pages(evil):
        check(page)


@settings(max_examples=15, deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_n28_any_text_stays_text(evil: str) -> None:
    for page in pages(evil):
        check(page)


def test_what_is_shown_is_what_was_said() -> None:
    for page in pages("<b>&amp;\"'"):
        text = "".join(read(page).text)
        assert "<b>&amp;\"'" in text or "To the fleet" in text or "Machines held to it" in text


def test_pages_are_read_by_ear_and_by_keyboard() -> None:
    for page in pages("agent-1"):
        seen = read(page)
        assert seen.all("html") == [{"lang": "en"}]
        assert len(seen.all("main")) == len(seen.all("title")) == 1
        labels = {one.get("for") for one in seen.all("label")}
        for one in (*seen.all("select"), *seen.all("input")):
            assert one.get("type") == "hidden" or one.get("id") in labels
        assert len(seen.all("caption")) == len(seen.all("table"))
        assert all(one.get("scope") in ("col", "row") for one in seen.all("th"))
        for one in seen.all("svg"):
            assert one.get("role") == "img"
            assert one.get("aria-label")
        ids = [attributes["id"] for _, attributes in seen.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        for _, attributes in seen.tags:
            assert attributes.get("aria-labelledby", ids[0] if ids else None) in (*ids, None)
        assert all(attributes.get("id") for _, attributes in seen.tags if "data-live" in attributes)


def test_n27_every_form_that_changes_something_has_the_secret() -> None:
    found = [page for page in pages("x") if b'method="post"' in page]
    assert len(found) == 2
    assert all(b'<input type="hidden" name="form_token" value="f0">' in page for page in found)


def test_news_are_one_line_whatever_they_say() -> None:
    assert (
        BrowserNews("a\nb", "x\r\n\r\ndata: y").encode()
        == b'{"agent_id":"a\\nb","text":"x\\r\\n\\r\\ndata: y"}'
    )


def test_style_and_script_are_there_and_load_nothing() -> None:
    for name in STATIC:
        text = static_file(name).decode()
        assert not re.search(r"https?:|url\(|@import|innerHTML|eval\(|document\.write", text), name
