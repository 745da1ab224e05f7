"""The verifier is killed in the middle of an attestation: nothing is taken twice, believed, or lost.

Where it is killed is no matter of chance: a trigger in the database lets nothing by that comes after that
point, and the process is killed while it tries.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.fakes.eventual import eventually
from tests.fakes.pushing_machine import Answer, PushingMachine
from tests.fakes.verifier_process import Verifiers, verifiers

PATIENT = {"KEYLIME_VERIFIER_QUOTE_INTERVAL": "3600"}
NO_VERDICT = """CREATE TRIGGER no_verdict BEFORE UPDATE OF evaluation ON push_attestations
    WHEN NEW.stage = 'verification_complete' BEGIN SELECT RAISE(ABORT, 'not yet'); END"""
NO_EVIDENCE = """CREATE TRIGGER no_evidence BEFORE UPDATE OF items ON push_attestations
    BEGIN SELECT RAISE(ABORT, 'not yet'); END"""
WAITS = "verdicts about agents that attest by themselves wait"


def scene(directory: Path, act: Callable[[Verifiers, PushingMachine], Awaitable[None]]) -> None:
    """A verifier in a process of its own, and a machine that has passed twice: it is remembered."""

    async def play() -> None:
        async with verifiers(directory, None, PATIENT, {}) as site:
            machine = PushingMachine(await site.api(site.processes[0]))
            await machine.add()
            for count in (1, 2):
                await machine.attest()
                await machine.until_judged("PASS", count)
            await machine.hurry()
            await act(site, machine)

    asyncio.run(play())


async def restarted(site: Verifiers, machine: PushingMachine, *changes: str) -> None:
    """The verifier is killed, finds the database changed, and serves again."""
    process = site.processes[0]
    assert await process.end(signal.SIGKILL) == -signal.SIGKILL
    site.change("DROP TRIGGER IF EXISTS no_verdict", "DROP TRIGGER IF EXISTS no_evidence", *changes)
    process.start()
    machine.verifier = await site.api(process)


def challenge_of(negotiated: Answer) -> str:
    text: str = negotiated.attributes["evidence_requested"][0]["chosen_parameters"]["challenge"]
    return text


def standing(site: Verifiers, number: int) -> tuple[object, ...]:
    (row,) = site.query(
        f"SELECT stage, evaluation FROM push_attestations WHERE number = {number}"  # noqa: S608 - a number
    )
    return row


def test_killed_between_the_question_and_the_evidence_it_takes_that_evidence_once(tmp_path: Path) -> None:
    async def act(site: Verifiers, machine: PushingMachine) -> None:
        negotiated = await machine.negotiate()
        assert negotiated.code == 201
        evidence = machine.evidence(negotiated)
        await restarted(site, machine)
        assert (await machine.submit(negotiated, evidence)).code == 202, (
            "the challenge and the token outlast it"
        )
        await machine.until_judged("PASS", 3)
        again = await machine.submit(negotiated, evidence)
        assert (again.code, again.error["code"]) == (403, "evidence_immutable")
        await machine.hurry()
        following = await machine.negotiate()
        assert challenge_of(following) != challenge_of(negotiated)
        old = await machine.submit(negotiated, evidence)
        assert (old.code, old.error["code"]) == (403, "old_attestation")
        assert (await machine.submit(following, evidence)).code == 202
        status = await machine.until_judged("FAIL")
        assert status["last_event_id"] == "qoute_validation.quote_validation", "another challenge's quote"

    scene(tmp_path, act)


def test_killed_before_it_has_written_the_evidence_it_has_not_promised_anything(tmp_path: Path) -> None:
    async def act(site: Verifiers, machine: PushingMachine) -> None:
        negotiated = await machine.negotiate()
        evidence = machine.evidence(negotiated)
        site.change(NO_EVIDENCE)
        assert (await machine.submit(negotiated, evidence)).code == 503
        assert standing(site, 2) == ("awaiting_evidence", "pending")
        await restarted(site, machine)
        assert (await machine.submit(negotiated, evidence)).code == 202, "the challenge is not used up"
        await machine.until_judged("PASS", 3)

    scene(tmp_path, act)


@pytest.mark.parametrize("is_bad", [False, True], ids=["pass", "failure"])
def test_killed_between_the_receipt_and_the_verdict_it_asks_again(tmp_path: Path, is_bad: bool) -> None:
    async def act(site: Verifiers, machine: PushingMachine) -> None:
        process = site.processes[0]
        if is_bad:
            machine.machine.measure("/usr/bin/evil", b"evil")
        negotiated = await machine.negotiate()
        evidence = machine.evidence(negotiated)
        site.change(NO_VERDICT)
        assert (await machine.submit(negotiated, evidence)).code == 202
        await eventually(lambda: WAITS in process.text)
        await restarted(site, machine, "UPDATE push_attestations SET evidence_at = evidence_at - 360000")
        assert site.query("SELECT count(*) FROM revocations") == [(0,)]
        assert (await machine.status())["attestation_count"] == 2, "nothing was counted"
        await eventually(lambda: standing(site, 2) == ("verification_complete", "pending"))
        again = await machine.submit(negotiated, evidence)
        assert (again.code, again.error["code"]) == (403, "evidence_immutable"), "a quote is judged once"
        following = await machine.negotiate()
        assert challenge_of(following) != challenge_of(negotiated)
        (asked,) = (
            item["chosen_parameters"]["starting_offset"]
            for item in following.attributes["evidence_requested"]
            if item["evidence_type"] == "ima_log"
        )
        assert asked == 1, "what was not judged is asked for again"
        assert (await machine.submit(following)).code == 202
        if is_bad:
            status = await machine.until_judged("FAIL")
            assert status["last_findings"][0]["path"] == "/usr/bin/evil"
            await eventually(lambda: site.query("SELECT count(*) FROM revocations") == [(1,)])
        else:
            await machine.until_judged("PASS", 3)

    scene(tmp_path, act)


def test_killed_while_passes_are_gathered_it_loses_no_failure_that_came_with_them(tmp_path: Path) -> None:
    async def act(site: Verifiers, machine: PushingMachine) -> None:
        others = [PushingMachine(machine.verifier, f"pushing-{number}") for number in range(2, 5)]
        for other in others:
            await other.add()
            await other.attest()
            await other.until_judged("PASS", 1)
        machine.machine.measure("/usr/bin/evil", b"evil")
        await machine.hurry()
        negotiated = [await one.negotiate() for one in (*others, machine)]
        taken = await asyncio.gather(
            *(one.submit(asked) for one, asked in zip((*others, machine), negotiated, strict=True))
        )
        assert [one.code for one in taken] == [202] * 4
        await machine.until_judged("FAIL")
        await restarted(site, machine)
        assert (await machine.status())["attestation_status"] == "FAIL"
        assert site.query("SELECT count(*) FROM revocations") == [(1,)]
        for other in others:
            other.verifier = machine.verifier
            await other.attest()
            await other.until_passed(2)

    scene(tmp_path, act)
