"""A verifier that has attested thousands of times is as large as one that has attested some (S15).

Bounded, so that it can run with all other tests; `benchmarks/soak.py` does the same for as many as one likes.
"""

import asyncio
import os
import re
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.attesting_agent import AttestingAgent, attestation_key
from tests.fakes.eventual import eventually
from tests.fakes.running_verifier import RunningVerifier, verifier_authority
from tests.fakes.verifier_process import VerifierProcess, verifiers

_AGENTS = 8
_WARM_UP = 1000  # attestations until caches, pools and the allocator have what they need
_MEASURED = 2000
_TOLERANCE = 1.05
_LIMIT_S = 600.0  # a busy machine attests a few dozen times a second


@dataclass(frozen=True)
class Size:
    """What a process takes: private memory in KiB, open files and sockets, threads."""

    memory_kib: int
    descriptors: int
    threads: int

    @classmethod
    def of(cls, process: VerifierProcess) -> "Size":
        status = Path(f"/proc/{process.pid}/status").read_text()
        numbers = {
            name: int(found[1])
            for name in ("RssAnon", "Threads")
            if (found := re.search(rf"^{name}:\s+(\d+)", status, re.MULTILINE))
        }
        return cls(numbers["RssAnon"], len(os.listdir(f"/proc/{process.pid}/fd")), numbers["Threads"])


@pytest.mark.timeout(2 * _LIMIT_S)
def test_s15_memory_and_descriptors_are_flat_over_many_attestations(tmp_path: Path) -> None:
    async def attested(verifier: RunningVerifier, count: int) -> int:
        """How many attestations there have been, as soon as it is at least `count`."""

        async def total() -> int:
            statuses = (await verifier.admin("GET", "/v2.5/agents/?bulk=1")).results.values()
            assert all(status["attestation_status"] != "FAIL" for status in statuses), statuses
            done: int = sum(status["attestation_count"] for status in statuses)
            await asyncio.sleep(0.2)  # between looks, which cost the verifier more than an attestation
            return done if done >= count else 0

        reached: int = await eventually(total, limit_s=_LIMIT_S)
        return reached

    async def play() -> None:
        async with AsyncExitStack() as stack:
            agents = [
                await stack.enter_async_context(
                    AttestingAgent(f"agent-{number}", verifier_authority(), ak=attestation_key())
                )
                for number in range(_AGENTS)
            ]
            fast = {"KEYLIME_VERIFIER_QUOTE_INTERVAL": "0.001"}
            site = await stack.enter_async_context(verifiers(tmp_path, None, fast, {}))
            (process,) = site.processes
            verifier = await site.api(process)
            for agent in agents:
                await verifier.add(agent)
            begun = await attested(verifier, _WARM_UP)
            before = Size.of(process)
            done = await attested(verifier, begun + _MEASURED) - begun
            after = Size.of(process)
            print(f"{done} attestations: {before} to {after}")
            assert after.memory_kib <= before.memory_kib * _TOLERANCE
            assert after.descriptors <= before.descriptors + 2, "one connection to each agent, kept"
            assert after.threads <= before.threads + 1

    asyncio.run(play())
