"""The processes that judge strangers' evidence: real ones, with real limits, and a parent that may die.

Rows N7 and N8 of the attack catalogue: what costs most is bounded, and the verifier goes on without a pause.
"""

import asyncio
import contextlib
import io
import json
import os
import resource
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from keylime.http.exchange import Caller, Response, Role
from keylime_verifier.verification.evidence_worker import WorkerRules
from keylime_verifier.verification.evidence_workers import EvidenceWorkers
from keylime_verifier.verification.refusals import NotJudged
from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.child_process import ChildProcess, children_of
from tests.fakes.client_session import client_session
from tests.fakes.eventual import eventually
from tests.fakes.running_verifier import install_certificates, running_verifier, verifier_authority
from tests.fakes.tls_material import client_context
from tests.fakes.verifier_process import VerifierProcess
from tests.unit.verifier.test_evidence_check import genuine

STRANGER = Caller(Role.ANONYMOUS, None, "192.0.2.1")
OTHER = Caller(Role.ANONYMOUS, None, "198.51.100.1")


def body(**changes: object) -> bytes:
    return json.dumps({"type": "tpm", "data": {**msgspec.to_builtins(genuine()), **changes}}).encode()


def long_list(mebibytes: int) -> bytes:
    log = genuine().ima_measurement_list or ""
    return body(ima_measurement_list=log * (mebibytes * 2**20 // len(log)))


def rules(**changes: Any) -> WorkerRules:
    plain: dict[str, Any] = {
        "parent": os.getpid(),
        "boot_policy_name": "accept-all",
        "boot_policy_imports": (),
        "ignore_tomtou": False,
        "memory": 256 << 20,
        "cpu_time_s": 60,
    }
    return WorkerRules(**{**plain, **changes})


def scene(act: Callable[[EvidenceWorkers], Awaitable[None]], count: int = 1, **changes: Any) -> None:
    async def play() -> None:
        workers = EvidenceWorkers(count, rules(**changes))
        try:
            await act(workers)
        finally:
            await workers.close()
        assert children() == []

    asyncio.run(play())


def children(parent: int | None = None) -> list[ChildProcess]:
    return children_of(parent or os.getpid(), "keylime_verifier.verification.evidence_worker")


def results(response: Response) -> Any:
    return json.loads(response.encode())["results"]


def test_n7_a_worker_is_there_only_while_it_is_needed_and_serves_one_after_the_other() -> None:
    async def act(workers: EvidenceWorkers) -> None:
        assert children() == []
        for _ in range(2):
            response = await workers.answer(STRANGER, body(), is_typed=True)
            assert (response.code, results(response)["valid"]) == (200, True)
        (worker,) = children()
        bad = await workers.answer(STRANGER, body(nonce="another"), is_typed=True)
        assert results(bad)["valid"] is False
        assert children() == [worker]
        workers._retire()
        await eventually(lambda: children() == [])
        response = await workers.answer(STRANGER, body(), is_typed=True)
        assert results(response)["valid"] is True

    scene(act)


def test_n7_a_worker_has_nothing_of_the_verifier_and_cannot_take_more_than_its_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYLIME_VERIFIER_SERVER_KEY_PASSWORD", "canary")

    async def act(workers: EvidenceWorkers) -> None:
        with (tmp_path / "secret").open("w") as file:
            os.set_inheritable(file.fileno(), True)
            await workers.answer(STRANGER, body(), is_typed=True)
        (worker,) = children()
        assert "canary" not in str(worker.environment)
        assert not [name for name in worker.environment if name.startswith("KEYLIME")]
        opened = worker.opened
        assert not [name for name in opened if name.startswith(str(tmp_path))]
        assert len([name for name in opened if name.startswith("socket:")]) == 1
        assert len(opened) <= 4
        assert worker.threads == 1
        assert worker.niceness > os.getpriority(os.PRIO_PROCESS, 0)
        assert 256 << 20 < worker.limit(resource.RLIMIT_AS) < 2 << 30
        assert worker.limit(resource.RLIMIT_FSIZE) == worker.limit(resource.RLIMIT_CORE) == 0
        assert 60 <= worker.limit(resource.RLIMIT_CPU) < 120

    scene(act)


GREEDY = """
from keylime.measured_boot.policies import AcceptAllPolicy

class Greedy(AcceptAllPolicy):
    def refstate_to_test(self, refstate):
        kept = []
        while refstate.get("loop"):
            kept.append(bytes(refstate["bytes"]))
            if not refstate["bytes"]:
                kept.clear()
        return super().refstate_to_test(refstate)

def register_policies(registry):
    registry.register("greedy", Greedy())
"""


@pytest.mark.parametrize(
    ("costly", "reason"),
    [
        (long_list(40), "more memory"),
        (body(mb_policy='{"loop": true, "bytes": 100000}'), "more memory"),
        (body(mb_policy='{"loop": true, "bytes": 100000000000}'), "more memory"),
        (body(mb_policy='{"loop": true, "bytes": 0}'), "more CPU time"),
    ],
    ids=["length", "many small", "one large", "endless"],
)
def test_n8_evidence_that_costs_too_much_has_no_verdict_and_costs_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, costly: bytes, reason: str
) -> None:
    (tmp_path / "greedy.py").write_text(GREEDY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    async def act(workers: EvidenceWorkers) -> None:
        with pytest.raises(NotJudged, match=reason):
            await workers.answer(STRANGER, costly, is_typed=True)
        assert results(await workers.answer(OTHER, body(), is_typed=True))["valid"] is True

    scene(act, memory=64 << 20, cpu_time_s=2, boot_policy_name="greedy", boot_policy_imports=("greedy",))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_n8_a_worker_that_dies_is_replaced_and_its_request_has_no_verdict(number: signal.Signals) -> None:
    async def act(workers: EvidenceWorkers) -> None:
        await workers.answer(STRANGER, body(), is_typed=True)
        (worker,) = children()
        worker.send(signal.SIGSTOP)
        request = asyncio.create_task(workers.answer(STRANGER, body(), is_typed=True))
        await asyncio.sleep(0.05)
        worker.send(number)
        worker.send(signal.SIGCONT)
        with pytest.raises(NotJudged):
            await request
        assert results(await workers.answer(STRANGER, body(), is_typed=True))["valid"] is True
        assert children() != [worker]

    scene(act)


def test_n8_a_worker_that_died_while_idle_costs_one_try_at_most() -> None:
    async def act(workers: EvidenceWorkers) -> None:
        await workers.answer(STRANGER, body(), is_typed=True)
        children()[0].send(signal.SIGKILL)
        with contextlib.suppress(NotJudged):
            await workers.answer(STRANGER, body(), is_typed=True)
        assert results(await workers.answer(STRANGER, body(), is_typed=True))["valid"] is True

    scene(act)


def test_n7_a_worker_that_cannot_start_is_no_verdict() -> None:
    async def act(workers: EvidenceWorkers) -> None:
        with pytest.raises(NotJudged):
            await workers.answer(STRANGER, body(), is_typed=True)

    scene(act, boot_policy_imports=("there_is_no_such_module",))


def test_n7_signals_that_end_the_verifier_are_not_the_workers_business() -> None:
    async def act(workers: EvidenceWorkers) -> None:
        await workers.answer(STRANGER, body(), is_typed=True)
        (worker,) = children()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            worker.send(number)
        assert results(await workers.answer(STRANGER, body(), is_typed=True))["valid"] is True
        assert children() == [worker]

    scene(act)


def test_n7_those_that_wait_are_bounded_shared_out_and_told_when_to_come_back() -> None:
    async def act(workers: EvidenceWorkers) -> None:
        await workers.answer(STRANGER, body(), is_typed=True)
        (worker,) = children()
        worker.send(signal.SIGSTOP)
        crowd = [asyncio.create_task(workers.answer(STRANGER, body(), is_typed=True)) for _ in range(9)]
        await eventually(lambda: sum(task.done() for task in crowd) == 5)
        for task in crowd:
            if task.done():
                with pytest.raises(NotJudged):
                    task.result()
        crowd.append(asyncio.create_task(workers.answer(STRANGER, body(), is_typed=True)))
        await asyncio.sleep(0)
        with pytest.raises(NotJudged):
            workers.admit(STRANGER)
        workers.admit(OTHER)
        honest = asyncio.create_task(workers.answer(OTHER, body(), is_typed=True))
        await asyncio.sleep(0)
        worker.send(signal.SIGCONT)
        assert results(await honest)["valid"] is True
        assert not all(task.done() for task in crowd), "who has cost less goes first"
        await asyncio.gather(*crowd, return_exceptions=True)

    scene(act)


def test_n7_several_workers_judge_at_the_same_time() -> None:
    async def act(workers: EvidenceWorkers) -> None:
        answers = [
            workers.answer(caller, body(), is_typed=True) for caller in (STRANGER, OTHER) for _ in "12"
        ]
        assert all(results(answer)["valid"] for answer in await asyncio.gather(*answers))
        assert len(children()) == 2

    scene(act, count=2)


def test_n7_a_stop_waits_for_no_evidence() -> None:
    async def act(workers: EvidenceWorkers) -> None:
        tasks = [
            asyncio.create_task(workers.answer(caller, long_list(20), is_typed=True))
            for caller in (STRANGER, OTHER)
        ]
        await eventually(children)
        await workers.close()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, NotJudged) for end in ends)

    scene(act)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_n7_a_worker_ends_with_the_verifier_whatever_it_is_doing(
    tmp_path: Path, number: signal.Signals
) -> None:
    install_certificates(tmp_path)
    (tmp_path / "greedy.py").write_text(GREEDY)
    options = {
        "PYTHONPATH": str(tmp_path),
        "KEYLIME_VERIFIER_MEASURED_BOOT_IMPORTS": '["greedy"]',
        "KEYLIME_VERIFIER_MEASURED_BOOT_POLICY_NAME": "greedy",
        "KEYLIME_VERIFIER_EVIDENCE_CPU_TIME": "1000",
    }
    process = VerifierProcess(tmp_path, "v", options)
    endless = body(mb_policy='{"loop": true, "bytes": 0}')

    async def act() -> None:
        process.start()
        port = await process.listening()
        context = client_context(verifier_authority())
        async with client_session() as session:
            url = f"https://127.0.0.1:{port}/v2.5/verify/evidence"
            asked = asyncio.ensure_future(session.post(url, data=endless, ssl=context))
            (worker,) = await eventually(lambda: children(process.pid), limit_s=60)
            await eventually(lambda: worker.cpu_s > 1.5, limit_s=60)
            await process.end(number)
            await eventually(lambda: not worker.is_there, limit_s=60)
            await asyncio.gather(asked, return_exceptions=True)

    try:
        asyncio.run(act())
    finally:
        process.kill()


def test_n7_agents_are_polled_while_strangers_have_their_evidence_judged(tmp_path: Path) -> None:
    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as agent,
            running_verifier(tmp_path) as verifier,
        ):
            await verifier.add(agent)
            await verifier.until_passing(agent)
            context = client_context(verifier_authority())
            asked = [
                asyncio.create_task(
                    verifier.call("POST", "/v2.5/verify/evidence", context, io.BytesIO(long_list(3)))
                )
                for _ in range(8)
            ]
            began = time.monotonic()
            await verifier.until_passing(agent, rounds=10)
            assert not all(task.done() for task in asked) or time.monotonic() - began < 60
            answers = await asyncio.gather(*asked)
            assert {answer.code for answer in answers} == {200, 503}
            assert all(answer.results["valid"] for answer in answers if answer.code == 200)

    asyncio.run(play())
