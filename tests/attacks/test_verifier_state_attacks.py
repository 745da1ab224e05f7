"""Attacks on the verifier's state: what an agent, a crash or a defect may do to the trust that is shown.

By the ids of the attack catalogue; end to end, against the running verifier, judged by what operators see.
"""

import asyncio
import base64
import json
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from keylime.http.server import Response
from tests.fakes.attesting_agent import AttestingAgent, attestation_key, payload_key
from tests.fakes.eventual import eventually
from tests.fakes.running_verifier import (
    V_SHARE,
    RunningVerifier,
    enrolment,
    query_database,
    revocation_key_pem,
    running_verifier,
    verifier_authority,
)

GET_QUOTE, FAILED, INVALID_QUOTE = 3, 7, 9
PATIENT = {"KEYLIME_VERIFIER_MAX_RETRIES": "100000"}
IMA_IS_MILD = json.dumps([{"event_id": r"ima\..*", "severity_label": "warning"}])


def scene(
    directory: Path, act: Callable[[RunningVerifier, AttestingAgent], Awaitable[None]], **environ: str
) -> None:
    """A verifier and an agent that passes."""

    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as agent,
            running_verifier(directory, environ) as verifier,
        ):
            await verifier.add(agent)
            await verifier.until_passing(agent, rounds=2)
            await act(verifier, agent)

    asyncio.run(play())


def once(agent: AttestingAgent, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The agent's next answer is what `change` makes of it; later ones are genuine again."""

    def answer(results: dict[str, Any]) -> Response:
        agent.answer_quote = None
        return Response(results=change(results))

    agent.answer_quote = answer


def test_q8_an_old_quote_is_refused(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        old: list[dict[str, Any]] = []

        def keep(results: dict[str, Any]) -> dict[str, Any]:
            old.append(results)
            return results

        once(agent, keep)
        await eventually(lambda: old)
        await verifier.until_passing(agent)
        once(agent, lambda _: old[0])
        status = await verifier.until_state(agent, INVALID_QUOTE)
        assert status["last_event_id"] == "qoute_validation.quote_validation"

    scene(tmp_path, act)


def test_q10_an_answer_for_another_agent_is_refused(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        async with AttestingAgent("agent-2", verifier_authority(), ak=attestation_key(2)) as other:
            await verifier.add(other)
            await verifier.until_passing(other)
            taken: list[dict[str, Any]] = []

            def keep(results: dict[str, Any]) -> dict[str, Any]:
                taken.append(results)
                return results

            once(agent, keep)
            await eventually(lambda: taken)
            once(other, lambda _: taken[0])
            await verifier.until_state(other, INVALID_QUOTE)
            await verifier.until_passing(agent)

    scene(tmp_path, act)


def test_q12_no_nonce_is_asked_twice(tmp_path: Path) -> None:
    async def play() -> None:
        async with AttestingAgent("agent-1", verifier_authority()) as agent:
            for _ in range(2):
                async with running_verifier(tmp_path) as verifier:
                    if (await verifier.admin("GET", "/v2.5/agents/agent-1")).code == 404:
                        await verifier.add(agent)
                    asked = len(agent.questions)
                    await eventually(lambda asked=asked: len(agent.questions) >= asked + 20)  # type: ignore[misc]
            nonces = [question.nonce for question in agent.questions]
            assert len(set(nonces)) == len(nonces) >= 40
            assert all(len(nonce) == 20 and nonce.isalnum() for nonce in nonces)

    asyncio.run(play())


@pytest.mark.parametrize("ending", ["x", "\x00", ""])
def test_q14_a_nonce_that_is_longer_or_shorter_is_refused(tmp_path: Path, ending: str) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        def requote(results: dict[str, Any]) -> dict[str, Any]:
            nonce = agent.questions[-1].nonce
            wrong = nonce + ending if ending else nonce[:-1]
            return {**results, "quote": agent.machine.quote(wrong, 1 << 10, agent.pubkey)}

        once(agent, requote)
        await verifier.until_state(agent, INVALID_QUOTE)

    scene(tmp_path, act)


@pytest.mark.parametrize("counter", ["reset_count", "restart_count"])
def test_q25_a_new_boot_never_passes_on_the_old_offset(tmp_path: Path, counter: str) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        machine = agent.machine
        asked = len(agent.questions)
        before = (await verifier.status(agent))["attestation_count"]
        setattr(machine, counter, getattr(machine, counter) + 1)
        # The log goes on as if nothing had happened: offered from the old offset, it is no verdict.
        await eventually(lambda: 0 in [question.entry for question in agent.questions[asked:]])
        full = next(index for index, q in enumerate(agent.questions) if index >= asked and q.entry == 0)
        assert agent.questions[full].partial == "0"
        status = await verifier.until(agent, lambda status: status["attestation_count"] > before)
        assert status["operational_state"] == GET_QUOTE
        assert status["reboots"] == (1 if counter == "reset_count" else 0)

    scene(tmp_path, act)


@pytest.mark.parametrize("counter", ["reset_count", "restart_count", "clock"])
def test_q24_a_counter_that_falls_is_refused(tmp_path: Path, counter: str) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await agent.stop()
        setattr(agent.machine, counter, 0)
        if counter == "restart_count":  # it was 0: let it rise before it falls
            agent.machine.restart_count = 3
        agent.start()
        if counter == "restart_count":
            await verifier.until_passing(agent, rounds=2)
            agent.machine.restart_count = 2
        status = await verifier.until_state(agent, INVALID_QUOTE)
        assert status["last_event_id"] == "qoute_validation.quote_validation"

    scene(tmp_path, act, **PATIENT)


def test_q26_a_clock_that_no_database_holds_is_refused(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        agent.machine.clock = 1 << 63
        status = await verifier.until_state(agent, INVALID_QUOTE)
        assert status["last_event_id"] == "qoute_validation.quote_validation"

    scene(tmp_path, act)


def test_q29_a_pcr_16_that_was_not_reset_is_refused(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        def requote(results: dict[str, Any]) -> dict[str, Any]:
            nonce = agent.questions[-1].nonce
            return {**results, "quote": agent.machine.quote(nonce, 1 << 10, "extended once more")}

        agent.answer_quote = lambda results: Response(results=requote(results))
        status = await verifier.until_state(agent, INVALID_QUOTE)
        asked = [question.partial for question in agent.questions]
        assert asked[-2:] == ["1", "0"], "asked for its key once, then judged"
        assert status["last_event_id"] == "pcr_validation.invalid_pcr_16"

    scene(tmp_path, act)


def test_q30_an_agent_with_a_new_key_is_asked_for_it_and_gets_v_again(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        (first,) = await eventually(lambda: agent.shares)
        agent.payload_key = payload_key(1)  # as after a restart between two polls
        shares = await eventually(lambda: agent.shares if len(agent.shares) == 2 else None)
        assert shares == [first, first], "the same V, encrypted to the new key"
        status = await verifier.until_passing(agent, rounds=2)
        assert (status["operational_state"], status["severity_level"]) == (3, None)
        assert verifier.rows("SELECT * FROM revocations") == []

    scene(tmp_path, act)


def test_q30_v_never_goes_to_a_key_that_no_quote_vouches_for(tmp_path: Path) -> None:
    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as agent,
            running_verifier(tmp_path) as verifier,
        ):
            genuine = agent.pubkey
            agent.payload_key = payload_key(1)
            attackers = agent.pubkey
            agent.payload_key = payload_key(0)
            agent.answer_quote = lambda results: Response(results={**results, "pubkey": attackers})
            await verifier.add(agent)
            status = await verifier.until_state(agent, INVALID_QUOTE)
            assert status["last_event_id"] == "pcr_validation.invalid_pcr_16"
            assert genuine != attackers
            assert agent.shares == []

    asyncio.run(play())


@pytest.mark.parametrize(
    ("field", "value", "event"),
    [
        ("hash_alg", "sha1", "qoute_validation.invalid_hash_alg"),
        ("hash_alg", "md5", "qoute_validation.invalid_hash_alg"),
        ("enc_alg", "rsa", "qoute_validation.invalid_enc_alg"),
        ("enc_alg", "ecc521", "qoute_validation.invalid_enc_alg"),
        ("sign_alg", "rsassa", "qoute_validation.invalid_sign_alg"),
        ("sign_alg", "none", "qoute_validation.invalid_sign_alg"),
    ],
)
def test_q31_what_the_agent_says_must_be_what_the_structures_say(
    tmp_path: Path, field: str, value: str, event: str
) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        once(agent, lambda results: {**results, field: value})
        status = await verifier.until_state(agent, INVALID_QUOTE)
        assert status["last_event_id"] == event

    scene(tmp_path, act)


@pytest.mark.parametrize("left_out", ["ima_measurement_list", "ima_measurement_list_entry"])
def test_p1_what_is_left_out_switches_no_check_off(tmp_path: Path, left_out: str) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        agent.machine.measure("/usr/bin/backdoor", b"evil")
        agent.answer_quote = lambda results: Response(
            results={name: value for name, value in results.items() if name != left_out}
        )
        status = await verifier.until_failed(agent)
        assert status["attestation_status"] == "FAIL"

    scene(tmp_path, act)


@pytest.mark.parametrize(
    "shown", [None, b"10 " + b"a" * 40 + b" ima-ng sha256:" + b"b" * 64 + b" /usr/bin/evil"]
)
def test_i19_a_machine_that_reboots_into_a_kernel_without_ima_falls(
    tmp_path: Path, shown: bytes | None
) -> None:
    """PCR 10 is zero, and the list is empty, or one that no quote will ever cover."""

    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        agent.machine.boot()
        if shown is not None:
            agent.machine.lines.append(shown)
        status = await verifier.until_failed(agent)
        assert (status["attestation_status"], status["last_event_id"]) == ("FAIL", "ima.nothing_measured")
        (finding,) = status["last_findings"]
        assert "kernel" in finding["hint"]

    scene(tmp_path, act)


def test_i19_a_machine_that_measures_nothing_never_passes(tmp_path: Path) -> None:
    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as agent,
            running_verifier(tmp_path) as verifier,
        ):
            agent.machine.boot()
            await verifier.add(agent)
            status = await verifier.until_state(agent, INVALID_QUOTE)
            assert (status["attestation_count"], status["last_event_id"]) == (0, "ima.nothing_measured")

    asyncio.run(play())


def test_i33_a_boot_time_that_changes_hides_nothing(tmp_path: Path) -> None:
    """T10: no verdict once, then the whole list; a second round without a verdict is a failure."""

    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        asked = len(agent.questions)
        agent.machine.boottime += 1
        await eventually(lambda: 0 in [question.entry for question in agent.questions[asked:]])
        await verifier.until_passing(agent, rounds=2)

        def always_another(results: dict[str, Any]) -> Response:
            agent.machine.boottime += 1
            return Response(results={**results, "boottime": agent.machine.boottime})

        def and_never_from_the_start(results: dict[str, Any]) -> Response:
            shown = always_another(results).results
            assert isinstance(shown, dict)
            return Response(results={**shown, "ima_measurement_list": "", "ima_measurement_list_entry": 1})

        agent.tamper()
        agent.answer_quote = and_never_from_the_start
        status = await verifier.until_failed(agent)
        assert status["attestation_status"] == "FAIL"

    scene(tmp_path, act)


def test_i33_a_boot_time_that_always_changes_cannot_keep_a_bad_file_from_being_seen(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        def answer(results: dict[str, Any]) -> Response:
            agent.machine.boottime += 1
            return Response(results={**results, "boottime": agent.machine.boottime})

        agent.answer_quote = answer
        agent.tamper()
        status = await verifier.until_state(agent, INVALID_QUOTE)
        assert status["last_event_id"] == "ima.validation.ima-ng.not_in_allowlist"

    scene(tmp_path, act)


def test_p7_a_pass_is_shown_only_while_it_is_recent(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        assert (await verifier.status(agent))["attestation_status"] == "PASS"
        agent.gate = asyncio.Event()
        status = await verifier.until(agent, lambda status: status["attestation_status"] != "PASS")
        assert (status["attestation_status"], status["operational_state"]) == ("PENDING", GET_QUOTE)
        agent.gate.set()
        await verifier.until_passing(agent)

    scene(tmp_path, act)


def test_s8_a_restart_does_not_make_an_old_pass_young(tmp_path: Path) -> None:
    async def play() -> None:
        async with AttestingAgent("agent-1", verifier_authority()) as agent:
            async with running_verifier(tmp_path) as verifier:
                await verifier.add(agent)
                await verifier.until_passing(agent, rounds=2)
            query_database(
                tmp_path,
                "UPDATE progress SET last_successful_attestation = last_successful_attestation - 3600",
            )
            await agent.stop()
            async with running_verifier(tmp_path, PATIENT) as verifier:
                assert (await verifier.status(agent))["attestation_status"] == "PENDING"

    asyncio.run(play())


def test_s7_a_failure_outlives_silence_and_a_restart(tmp_path: Path) -> None:
    async def play() -> None:
        async with AttestingAgent("agent-1", verifier_authority()) as agent:
            mild = {**PATIENT, "KEYLIME_VERIFIER_SEVERITY_POLICY": IMA_IS_MILD}
            async with running_verifier(tmp_path, mild) as verifier:
                await verifier.add(agent)
                await verifier.until_passing(agent)
                agent.tamper()
                await verifier.until_state(agent, INVALID_QUOTE)
                await agent.stop()
                status = await verifier.until(agent, lambda status: status["unreachable_since"] is not None)
                assert (status["operational_state"], status["attestation_status"]) == (INVALID_QUOTE, "FAIL")
            async with running_verifier(tmp_path, mild) as verifier:
                assert (await verifier.status(agent))["attestation_status"] == "FAIL"
                # A failure that the operator calls mild heals, but only by a round that passes.
                agent.reboot()
                agent.start()
                await verifier.until_passing(agent)

    asyncio.run(play())


def test_p14_secrets_are_in_no_log_and_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """V and the revocation key, in the forms they could leak in, through a life with everything in it."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, "sqlalchemy.engine")
    answers: list[str] = []

    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as agent,
            running_verifier(tmp_path, PATIENT) as verifier,
        ):
            agent.answer_vkey = Response(503, status="busy")
            for changes in ({"tpm_policy": "{"}, {"v": "*"}, {"cloudagent_port": 0}, {}, {}):
                answer = await verifier.admin("POST", "/v2.5/agents/agent-1", enrolment(agent, **changes))
                answers.append(json.dumps(answer.body))
            await eventually(lambda: "POST /v2.5/keys/vkey" in agent.paths)
            agent.answer_vkey = None
            await eventually(lambda: agent.shares)
            await verifier.change("ALTER TABLE revocations RENAME TO away")
            agent.tamper()
            await verifier.until_state(agent, INVALID_QUOTE)
            await eventually(lambda: "trying again" in caplog.text)
            await verifier.change("ALTER TABLE away RENAME TO revocations")
            await eventually(lambda: agent.revocations)
            for path in ("/v2.5/agents/agent-1", "/v2.5/agents/", "/v2.5/agents/?bulk=True"):
                answers.append(json.dumps((await verifier.admin("GET", path)).body))
            await verifier.admin("PUT", "/v2.5/agents/agent-1/stop")
            await verifier.admin("DELETE", "/v2.5/agents/agent-1")

    asyncio.run(play())
    shown = caplog.text + "".join(answers)
    assert "agent-1" in shown
    key_line = revocation_key_pem().splitlines()[5]
    for secret in (base64.b64encode(V_SHARE).decode(), V_SHARE.hex(), repr(V_SHARE), key_line, "PRIVATE KEY"):
        assert secret not in shown


@pytest.mark.parametrize("jump_s", [86_400, -86_400])
def test_s9_a_clock_that_jumps_by_a_day_fails_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: int
) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        before = await verifier.until_passing(agent)
        true_time = time.time
        monkeypatch.setattr(time, "time", lambda: true_time() + jump_s)
        asked = len(agent.questions)
        await eventually(lambda: len(agent.questions) >= asked + 5)
        after = await verifier.until(agent, lambda status: status["attestation_status"] == "PASS")
        assert after["attestation_count"] > before["attestation_count"]
        assert abs(after["last_successful_attestation"] - true_time()) < 60, (
            "the clock that counts is the database's"
        )
        assert agent.revocations == []

    scene(tmp_path, act)


def told_about(agent: AttestingAgent) -> set[str]:
    """Whose revocations `agent` was sent."""
    return {json.loads(signed.msg)["agent_id"] for signed in agent.revocations}


def test_s13_agents_that_fail_together_are_all_told_about_and_delay_nobody(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        falling = [AttestingAgent(f"falling-{number}", verifier_authority()) for number in range(15)]
        for one in falling:
            one.start()
            await verifier.add(one)
        for one in falling:
            await verifier.until_passing(one)
        for one in falling:
            one.tamper()
        for one in falling:
            await verifier.until_state(one, INVALID_QUOTE)
        await verifier.until_passing(agent, rounds=3)
        await eventually(lambda: told_about(agent) == {one.agent_id for one in falling})
        assert len(agent.revocations) == len(falling), "each of them once"
        for one in falling:
            await one.stop()

    scene(tmp_path, act)


def fell_together(directory: Path, count: int) -> None:
    """The database right after this many further agents, which are switched off, failed at once."""
    columns = [
        name for (_, name, *_) in query_database(directory, "SELECT * FROM pragma_table_info('agents')")
    ]
    changed = {"agent_id": "'fallen-' || i", "port": "1", "operational_state": "9", "is_polled": "0"}
    agents = ", ".join(changed.get(name, name) for name in columns)
    message = """'{"agent_id": "fallen-' || i || '"}'"""
    revocations = f"'r' || i, 'fallen-' || i, {int(time.time())}, {message}, '', 0, 'default', i, i"
    for table, values, source in (
        ("agents", agents, "agents, numbers"),
        ("recipients", "'fallen-' || i, 0, 0, 0, NULL", "numbers"),
        ("revocations", revocations, "numbers"),
    ):
        query_database(
            directory,
            "WITH RECURSIVE numbers(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < ?) "  # noqa: S608 - constants
            f"INSERT INTO {table} SELECT {values} FROM {source}",
            count,
        )
    query_database(directory, "UPDATE change_counters SET changes = ? WHERE topic = 'revocations'", count)


def test_s13_a_fleet_that_falls_and_is_silent_costs_a_row_for_each_and_delays_nobody(
    tmp_path: Path,
) -> None:
    count = 300
    patient = {**PATIENT, "KEYLIME_VERIFIER_RETRY_INTERVAL": "2"}  # with those that are silent

    async def play() -> None:
        async with AttestingAgent("agent-1", verifier_authority()) as agent:
            async with running_verifier(tmp_path, PATIENT) as verifier:
                await verifier.add(agent)
                await verifier.until_passing(agent)
            fell_together(tmp_path, count)
            async with running_verifier(tmp_path, patient) as verifier:
                await verifier.until_passing(agent, rounds=5)
                await eventually(lambda: len(agent.revocations) == count, limit_s=60)
                arrived = [json.loads(signed.msg)["agent_id"] for signed in agent.revocations]
                assert arrived == [f"fallen-{number}" for number in range(1, count + 1)], "in order"
                tried = "SELECT target, count(*) FROM deliveries WHERE state = 'pending' GROUP BY target"
                await eventually(lambda: len(verifier.rows(tried)) == count, limit_s=60)
                assert {rows for _, rows in verifier.rows(tried)} == {1}
                await verifier.until_passing(agent, rounds=2)
                shown = (await verifier.admin("GET", "/v2.5/revocations?limit=1")).results
                waiting = sum(target["pending"] for target in shown["targets"])
                assert waiting == count * count

    asyncio.run(play())


def test_s13_an_agent_that_was_busy_is_told_everything_after_a_restart(tmp_path: Path) -> None:
    count = 60

    async def play() -> None:
        async with AttestingAgent("agent-1", verifier_authority()) as agent:
            async with running_verifier(tmp_path, PATIENT) as verifier:
                await verifier.add(agent)
                await verifier.until_passing(agent)
            fell_together(tmp_path, count)
            query_database(tmp_path, "DELETE FROM agents WHERE agent_id <> 'agent-1'")
            agent.answer_revocation = Response(503, status="busy")
            tried = "SELECT count(*) FROM deliveries WHERE attempts > 0 AND state = 'pending'"
            async with running_verifier(tmp_path, PATIENT) as verifier:
                await eventually(lambda: verifier.rows(tried) != [(0,)])
            agent.answer_revocation = None
            async with running_verifier(tmp_path, PATIENT) as verifier:
                await eventually(lambda: len(agent.revocations) >= count)
                assert told_about(agent) == {f"fallen-{number}" for number in range(1, count + 1)}
                await eventually(lambda: verifier.rows(tried) == [(0,)])

    asyncio.run(play())
