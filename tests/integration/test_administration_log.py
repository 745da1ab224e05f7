"""Each act of an administrator is one line of the log: whose certificate, and what has changed."""

import asyncio
import logging
import re
from base64 import b64encode
from pathlib import Path

import pytest

from keylime.ima.runtime_policy import EMPTY_POLICY
from tests.fakes.attesting_agent import AttestingAgent, policy_of
from tests.fakes.running_registrar import running_registrar
from tests.fakes.running_verifier import RunningVerifier
from tests.fakes.software_identity import SoftwareIdentity
from tests.integration.test_verifier_policies import scene

AGENT = "/v2.5/agents/agent-1"
WHO = re.compile(r"'CN=[^']+' \(serial number \d+\)")


def acts(caplog: pytest.LogCaptureFixture, verb: str) -> list[str]:
    """The lines that say who did something, with WHO in place of the certificate."""
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    return [WHO.sub("WHO", line) for line in lines if verb in line and WHO.search(line)]


def encoded(text: str) -> dict[str, str]:
    return {"runtime_policy": b64encode(text.encode()).decode()}


def test_what_administrators_do_at_the_verifier_is_told_with_their_certificate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def act(verifier: RunningVerifier, agent: AttestingAgent) -> None:
        policy = "/v2.5/allowlists/fleet"
        assert (await verifier.admin("POST", policy, encoded(EMPTY_POLICY))).code == 201
        assert (await verifier.admin("PUT", policy, encoded(policy_of(agent.files)))).code == 201
        await verifier.add(agent)
        change = {
            "runtime_policy_name": "fleet",
            "payload": {"v": b64encode(bytes(32)).decode()},
            "cloudagent_port": agent.port,
        }
        assert (await verifier.admin("PUT", AGENT, change)).code == 200
        for method, path in (("PUT", "/stop"), ("PUT", "/reactivate"), ("DELETE", "")):
            assert (await verifier.admin(method, AGENT + path)).code == 200
        assert (await verifier.admin("DELETE", AGENT)).code == 404
        assert (await verifier.admin("DELETE", policy)).code == 204

    scene(tmp_path, act)
    (added,), (updated,) = acts(caplog, "added by"), acts(caplog, "updated by")
    assert re.fullmatch(
        r"agent agent-1: added by WHO: at '127.0.0.1' port \d+, a runtime policy of its own, a payload", added
    )
    assert (
        updated == "agent agent-1: updated by WHO: tpm_policy, runtime_policy 'agent-1' -> 'fleet', payload"
    )
    assert acts(caplog, "stopped by") == ["agent agent-1: stopped by WHO: it is not polled"]
    assert acts(caplog, "reactivated") == ["agent agent-1: reactivated by WHO: it is attested from the start"]
    assert acts(caplog, "deleted by") == [
        "agent agent-1: deleted by WHO",
        "Runtime policy 'fleet': deleted by WHO",
    ]
    (created,), (replaced,) = acts(caplog, "created by"), acts(caplog, "replaced, ")
    digest = created.rpartition(" ")[2]
    assert re.fullmatch(r"Runtime policy 'fleet': created by WHO, sha256 [0-9a-f]{64}", created)
    assert re.fullmatch(
        rf"Runtime policy 'fleet': replaced, for 0 agents, by WHO, sha256 {digest} -> [0-9a-f]{{64}}",
        replaced,
    )


def test_a_deletion_at_the_registrar_is_told_with_the_certificate(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def play() -> None:
        async with running_registrar(tmp_path) as registrar:
            await registrar.enrol("agent-1", SoftwareIdentity())
            assert (await registrar.admin("DELETE", AGENT)).code == 200

    asyncio.run(play())
    assert acts(caplog, "deleted by") == ["agent agent-1: deleted by WHO"]
