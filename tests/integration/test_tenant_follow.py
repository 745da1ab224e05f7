"""`--follow`: programs that show what happens to an agent, while it happens."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.running_verifier import RunningVerifier
from tests.fakes.tenant_program import tenant
from tests.integration.test_verifier_policies import scene

_LIMIT_S = 100.0


class Following:
    """A program that prints a line of JSON for each change."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def line(self) -> dict[str, Any]:
        """The next one."""
        assert self._process.stdout is not None
        async with asyncio.timeout(_LIMIT_S):
            text = await self._process.stdout.readline()
        assert text, "it has ended"
        found: dict[str, Any] = json.loads(text)
        return found

    async def until(self, kind: str) -> dict[str, Any]:
        """The next event of this kind."""
        while (event := await self.line())["kind"] != kind:
            pass
        return event

    async def ended(self) -> tuple[int, list[dict[str, Any]], str]:
        """Its exit status, the lines that were left, and what it said beside them."""
        async with asyncio.timeout(_LIMIT_S):
            out, said = await self._process.communicate()
        assert self._process.returncode is not None
        assert b"Traceback" not in said
        return self._process.returncode, [json.loads(line) for line in out.splitlines()], said.decode()


@asynccontextmanager
async def following(verifier: RunningVerifier, *arguments: str) -> AsyncIterator[Following]:
    """The program, ended at last."""
    place = ("-v", "127.0.0.1", "-vp", str(verifier.port))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "keylime_tenant.main",
        *arguments,
        "--follow",
        "-o",
        "jsonl",
        *place,
        env={"PATH": os.environ["PATH"], "KEYLIME_DIR": str(verifier.config.work_dir)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Following(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def test_what_happens_is_shown_as_it_happens(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        await verifier.add(agent)
        await verifier.until_passing(agent)
        me = ("-u", agent.agent_id)
        async with (
            following(verifier, "history", *me) as history,
            following(verifier, "cvstatus", *me, "--exit-code") as status,
            following(verifier, "why", *me) as why,
        ):
            first = await history.line()
            assert (first["kind"], first["agent_id"]) == ("enrolled", agent.agent_id)
            assert (await status.line())["attestation_status"] == "PASS"
            assert (await why.line())["findings"] == []
            agent.tamper("/usr/bin/backdoor")
            fell = await history.until("state")
            while not fell["details"].get("findings"):
                fell = await history.until("state")
            code, rows, said = await status.ended()
            assert code == 1
            assert rows[0]["attestation_status"] == "FAIL"
            assert "/usr/bin/backdoor" in said
            reasons = await why.line()
            assert [one["path"] for one in reasons["findings"]] == ["/usr/bin/backdoor"]
            assert reasons["since"] == fell["at"]
            assert (await verifier.admin("DELETE", f"/v2.6/agents/{agent.agent_id}")).code == 200
            code, rows, _ = await history.ended()
            assert (code, rows[-1]["kind"]) == (0, "deleted")
            code, rows, said = await why.ended()
            assert code == 1
            assert "does not have agent" in said
            assert "does not have agent" in rows[-1]["error"]
        wrong = await tenant(verifier, "history", *me, "--follow", "--json", code=2)
        assert "use -o jsonl" in wrong.stderr
        wrong = await tenant(verifier, "audit", "--follow", code=2)
        assert "--follow is for status, cvstatus, why, history" in wrong.stderr

    scene(tmp_path, act)
