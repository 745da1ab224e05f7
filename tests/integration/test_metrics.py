"""Metrics of a verifier and a registrar at work, and that dashboard and alerts ask for what there is."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.metrics_page import Scraped, free_port, scrape
from tests.fakes.pushing_machine import PushingMachine
from tests.fakes.running_registrar import running_registrar
from tests.fakes.running_verifier import RunningVerifier, running_verifier, verifier_authority
from tests.fakes.software_identity import SoftwareIdentity, b64
from tests.fakes.tls_material import Authority

MONITORING = Path(__file__).parents[2] / "config" / "monitoring"
ALERTS = MONITORING / "keylime-alerts.yml"
ALERT_TESTS = Path(__file__).parents[1] / "data" / "keylime-alerts-test.yml"
OUTCOMES = {
    "accepted",
    "rejected",
    "incomplete",
    "cannot_prove",
    "unreachable",
    "wrong_key",
    "refused",
    "defect",
}


async def of_a_verifier(directory: Path) -> Scraped:
    port = free_port()
    environ = {"KEYLIME_VERIFIER_METRICS_PORT": str(port)}
    authority = verifier_authority()
    async with (
        AttestingAgent("agent-1", authority) as good,
        AttestingAgent("agent-2", authority) as bad,
        running_verifier(directory, environ) as verifier,
    ):
        await verifier.add(good)
        await verifier.until_passing(good, 2)
        await verifier.add(bad)
        await verifier.until_passing(bad)
        bad.tamper("/usr/bin/backdoor")
        await verifier.until_failed(bad)
        await _pushes(verifier)
        refused = await verifier.session.get(f"http://127.0.0.1:{port}/v2.6/agents")
        assert refused.status == 404
        refused.close()
        open_metrics = await scrape(port, "application/openmetrics-text; version=1.0.0")
        assert open_metrics.content_type.startswith("application/openmetrics-text")
        assert open_metrics.text.endswith("# EOF\n")
        return await scrape(port)


async def _pushes(verifier: RunningVerifier) -> None:
    """A machine attests by itself: it passes, falls silent, fails; a stranger gets no token."""
    stranger, machine = PushingMachine(verifier, "agent-4"), PushingMachine(verifier, "agent-3")
    assert (await stranger.prove(await stranger.begin())).attributes["evaluation"] == "fail"
    await machine.add()
    await machine.attest()
    await machine.until_passed(1)
    await machine.until_judged("TIMEOUT")
    machine.machine.measure("/usr/bin/backdoor", b"evil")
    await machine.attest()
    await machine.until_judged("FAIL")
    codes = [(await stranger.begin()).code for _ in range(16)]
    assert codes == [200] * 14 + [429] * 2


async def of_a_registrar(directory: Path) -> Scraped:
    port, store, maker = free_port(), directory / "makers", Authority("A maker of TPMs")
    store.mkdir(parents=True)
    Authority("Another one").write(store / "other.pem")
    environ = {
        "KEYLIME_REGISTRAR_METRICS_PORT": str(port),
        "KEYLIME_TENANT_TPM_CERT_STORE": str(store),
    }
    async with running_registrar(directory, environ) as registrar:
        identity = SoftwareIdentity()
        await registrar.enrol("agent-1", identity, ekcert=b64(identity.ek_certificate(maker)))
        # Said before somebody wants to add it.
        remark = (await registrar.plain("GET", "/readyz")).results["remarks"]["TPM certificate store"]
        assert remark == "it lacks 1 makers of TPMs that have registered, see the log"
        about = {"about": "TPM certificate store"}
        assert (await scrape(port)).value("keylime_registrar_warning", **about) == 1
        maker.write(store / "maker.pem")
        wrong = {"auth_tag": "0" * 96}
        assert (await registrar.plain("PUT", "/v2.6/agents/agent-1/activate", wrong)).code != 200
        assert (await registrar.plain("PUT", "/v2.6/agents/agent-9/activate", wrong)).code == 404
        return await scrape(port)


def expressions() -> Iterable[str]:
    """All that is asked of Prometheus."""
    dashboard = json.loads((MONITORING / "keylime-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    alerts: dict[str, Any] = yaml.safe_load(ALERTS.read_text())
    for group in alerts["groups"]:
        for rule in group["rules"]:
            assert rule["annotations"].keys() == {"summary", "description"}
            yield rule["expr"]


def test_what_is_measured_and_what_is_asked_for(tmp_path: Path) -> None:
    async def play() -> tuple[Scraped, Scraped]:
        return await of_a_verifier(tmp_path / "verifier"), await of_a_registrar(tmp_path / "registrar")

    verifier, registrar = asyncio.run(play())
    value = verifier.value
    rounds = "keylime_verifier_attestations_total"
    outcomes = set(re.findall(r'verifier_attestations_total\{outcome="(\w+)"\}', verifier.text))
    assert outcomes == OUTCOMES
    assert value(rounds, outcome="accepted") >= 3
    assert value(rounds, outcome="rejected") == 1
    assert value("keylime_verifier_findings_total", event_id="ima.validation.ima-ng.not_in_allowlist") == 2
    assert value("keylime_verifier_agents") == 3
    assert value("keylime_verifier_agents", state="invalid_quote") == 2
    pushed = "keylime_verifier_pushed_attestations_total"
    outcomes = set(re.findall(r'pushed_attestations_total\{outcome="(\w+)"\}', verifier.text))
    assert outcomes == {"accepted", "rejected", "incomplete", "silent", "defect"}
    assert {name: value(pushed, outcome=name) for name in outcomes - {"silent"}} == {
        "accepted": 1,
        "rejected": 1,
        "incomplete": 0,
        "defect": 0,
    }
    begun = {
        name: value("keylime_verifier_push_sessions_total", result=name)
        for name in ("begun", "proven", "failed", "limited")
    }
    assert begun == {"begun": 16, "proven": 1, "failed": 1, "limited": 2}
    assert value("keylime_verifier_push_tokens") == 1
    assert value("keylime_verifier_ima_entries_judged_total") > 0
    assert value("keylime_verifier_shards_moved_total", direction="taken") == 256
    assert value("keylime_verifier_round_lag_seconds_count") >= value(rounds)
    assert value("keylime_verifier_quote_seconds_count") >= value(rounds, outcome="accepted")
    assert value("keylime_verifier_database_seconds_count", kind="write") > 0
    assert value("keylime_verifier_database_reachable") == 1
    assert value("keylime_verifier_certificate_expiry_timestamp_seconds", file="server-cert.crt") > 1.7e9
    assert registrar.value("keylime_registrar_registrations_total", result="challenged") == 1
    assert registrar.value("keylime_registrar_activations_total", result="proven") == 1
    assert registrar.value("keylime_registrar_activations_total", result="unknown_agent") == 1
    assert registrar.value("keylime_registrar_agents", state="active") == 1
    assert registrar.value("keylime_registrar_agent_certificate_expiry_timestamp_seconds") == 0
    assert registrar.value("keylime_build_info") == 1
    assert registrar.value("keylime_registrar_warning", about="TPM certificate store") == 0
    assert {"disk", "clock", "certificates"} <= set(
        re.findall(r'verifier_warning\{about="(\w+)"', verifier.text)
    )
    assert "agent-1" not in verifier.text + registrar.text
    assert verifier.without_help + registrar.without_help == []
    served = verifier.names | registrar.names
    asked = {name for text in expressions() for name in re.findall(r"\bkeylime_\w+", text)}
    assert asked - served == set()
    # And nothing is measured that nobody looks at.
    looked_at = {re.sub("_(total|bucket|count|sum|created|info)$", "", name) for name in asked}
    assert {
        re.sub("_(total|bucket|count|sum|created|info)$", "", name) for name in served
    } - looked_at == set()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool of Prometheus")
def test_the_alerts_are_rules_of_prometheus_and_fire_when_they_should() -> None:
    promtool = shutil.which("promtool") or ""
    for what in (("check", str(ALERTS)), ("test", str(ALERT_TESTS))):
        command = [promtool, what[0], "rules", what[1]]
        done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_test() -> None:
    rules = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
    tested = {
        case["alertname"]
        for test in yaml.safe_load(ALERT_TESTS.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert tested == {rule["alert"] for rule in rules}
