"""Attacks on revocations and payloads, each under its id of the attack catalogue (V1-V8, Y1-Y13)."""

import asyncio
import functools
import io
import json
import logging
import os
import threading
import time
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path, PosixPath

import msgspec
import pytest

from keylime.messages.revocation import RevocationMessage, SignedRevocation
from keylime.payload.archive import PayloadRefused, pack_archive
from keylime.payload.encryption import encrypt_payload
from keylime.payload.keys import DerivedKey, split_key
from keylime.revocation.message import delivery_key
from keylime.revocation.publication import REPLAY_S
from keylime.revocation.signing import sign_revocation
from keylime_agent.actions import ActionOptions, ActionRunner
from keylime_agent.handled_revocations import HandledRevocations
from keylime_agent.payload import PayloadOptions, PayloadWorker, install_payload
from keylime_agent.processes import child_environment
from keylime_agent.revocation import RevocationHandler, incarnation
from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.eventual import eventually
from tests.fakes.revocation_certificate import notifier_certificate
from tests.fakes.running_verifier import (
    revocation_key,
    revocation_key_pem,
    running_verifier,
    verifier_authority,
)

AGENT_ID = "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"
PAYLOAD = PayloadOptions(
    "derived_tci_key", "decrypted_payload", True, "autorun.sh", None, is_allowed=True, script_limit_s=10
)


class Listener:
    """The part of an agent that takes messages and runs actions, with a payload of one action."""

    agent_id = "node0"

    def __init__(
        self, home: Path, listed: str = "local_action_note", *, configured: Sequence[str] = ()
    ) -> None:
        self.home, self.unzipped, self.installed = home, home / "unzipped", home / "installed"
        for directory in (self.unzipped, self.installed):
            directory.mkdir(parents=True)
        (home / "notifier.crt").write_bytes(notifier_certificate(revocation_key()))
        (self.unzipped / "action_list").write_text(listed)
        self.action(self.unzipped / "local_action_note")
        options = ActionOptions(tuple(configured), self.installed, True)
        runner = ActionRunner({"PATH": os.environ["PATH"]}, home, self.unzipped, options)
        self._act = runner.run_all

    def action(self, path: Path) -> None:
        """A program at `path` that notes its name and what it is told."""
        path.parent.mkdir(parents=True, exist_ok=True)
        log = self.home / "log"
        path.write_text(f'#!/bin/sh\nprintf "%s " {path.name} >> {log}; cat "$1" >> {log}; echo >> {log}\n')
        path.chmod(0o700)

    def receive(self, messages: Sequence[SignedRevocation], *, boot: int = 1) -> list[str]:
        """What the actions noted of all messages so far, after these; as a new process each time."""

        async def play() -> None:
            handler = self.start(boot)
            task = asyncio.create_task(handler.run())
            for signed in messages:
                handler.receive(signed)
            await handler.settled()
            task.cancel()

        asyncio.run(play())
        return self.noted()

    def start(self, boot: int = 1, certificate: Path | None = None) -> RevocationHandler:
        """The agent's handler, with what it remembers of former ones."""
        me = functools.partial(incarnation, self.agent_id, self.unzipped, bytes([boot] * 16))
        handled = HandledRevocations(self.home / "handled_revocations")
        return RevocationHandler(certificate or self.home / "notifier.crt", self._act, me, handled)

    def noted(self) -> list[str]:
        """What the actions noted so far."""
        log = self.home / "log"
        return log.read_text().splitlines() if log.exists() else []

    def enrol(self, serial: int) -> None:
        """A payload with a certificate of this serial number for the agent."""
        certificate = notifier_certificate(revocation_key(), serial)
        (self.unzipped / f"{self.agent_id}-cert.crt").write_bytes(certificate)


def message(
    agent_id: str = "node1", event_time: str = "Sun Nov 22 18:05:08 2026", **changes: str
) -> SignedRevocation:
    unsigned = RevocationMessage(
        type="revocation",
        meta_data="{}",
        event_id="ima.validation",
        ip="192.0.2.7",
        agent_id=agent_id,
        port=9002,
        tpm_policy="{}",
        event_time=event_time,
        severity_label="emergency",
        context="{}",
    )
    return sign_revocation(msgspec.structs.replace(unsigned, **changes), revocation_key_pem())


def test_v1_forged_messages_are_ignored_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    genuine = message()
    forged = [
        SignedRevocation(genuine.msg, ""),
        SignedRevocation(genuine.msg.replace("node1", "node2"), genuine.signature),
        SignedRevocation(genuine.msg + " ", genuine.signature),
        SignedRevocation(genuine.msg, message("node2").signature),
    ]
    assert Listener(tmp_path).receive(forged) == []
    assert caplog.text.count("revocation message ignored") == len(forged)


def test_v2_a_replayed_message_is_no_news_and_a_second_event_is(tmp_path: Path) -> None:
    first, later = message(), message(event_time="Sun Nov 22 19:00:00 2026")
    assert len(Listener(tmp_path).receive([first, first, later, first, later])) == 2


def own(serial: int, **changes: str) -> SignedRevocation:
    """A message about the listener itself, enrolled with the certificate `serial`."""
    meta_data = json.dumps({"cert_serial": serial, "subject": "CN=node0"})
    return message(Listener.agent_id, meta_data=meta_data, **changes)


def test_v2_a_message_about_a_former_incarnation_does_not_touch_the_new_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The agent was rejected while it was away, repaired and added anew; then the old message comes."""
    caplog.set_level(logging.INFO)
    listener = Listener(tmp_path)
    listener.enrol(serial=5)
    assert listener.receive([own(4)]) == []
    assert "is about the certificate of a former payload of this agent" in caplog.text
    assert len(listener.receive([own(5)])) == 1, "the same about the certificate it has now"


@pytest.mark.parametrize("meta_data", ["{}", "no JSON", '{"cert_serial": "5"}', '{"cert_serial": null}'])
def test_v2_a_message_that_names_no_certificate_is_meant_for_the_agent(
    tmp_path: Path, meta_data: str
) -> None:
    listener = Listener(tmp_path)
    listener.enrol(serial=5)
    assert len(listener.receive([message(Listener.agent_id, meta_data=meta_data)])) == 1


def test_v2_a_reboot_does_not_make_an_own_message_news(tmp_path: Path) -> None:
    """An action that reboots the machine does so once, although the broker repeats the message."""
    listener = Listener(tmp_path)
    listener.enrol(serial=5)
    assert [len(listener.receive([own(5)], boot=boot)) for boot in (1, 2, 3)] == [1, 1, 1]


def test_v2_what_a_reboot_undid_is_done_again_while_the_broker_repeats_the_message(tmp_path: Path) -> None:
    """A rule of a packet filter against another machine is lost with the boot, a repeated message is not."""
    listener, about_another = Listener(tmp_path), message("node1")
    assert [len(listener.receive([about_another] * 2, boot=boot)) for boot in (1, 2, 2, 3)] == [1, 2, 2, 3]


def test_v2_an_old_recording_is_no_news_after_a_reboot(tmp_path: Path) -> None:
    listener, about_another = Listener(tmp_path), message("node1")
    long_ago = int(time.time() - REPLAY_S - 3600)
    handled = HandledRevocations(tmp_path / "handled_revocations")
    handled.add(delivery_key(about_another), long_ago, bytes([1] * 16))
    assert listener.receive([about_another], boot=2) == []


def test_v4_what_comes_before_the_payload_waits_for_it(tmp_path: Path) -> None:
    """After a restart the broker repeats its messages at once, and the payload takes its time."""
    listener = Listener(tmp_path)
    certificate = tmp_path / "notifier.crt"
    pem = certificate.read_bytes()
    certificate.unlink()

    async def play() -> None:
        handler = listener.start()
        task = asyncio.create_task(handler.run())
        garbage = [SignedRevocation(f"{number}", "AAAA") for number in range(200)]
        for channel, signed in [("REST", message("node1")), *(("ZeroMQ", junk) for junk in garbage)]:
            handler.receive(signed, channel)
            handler.receive(signed, channel)
            await handler.settled()
        handler.receive(message("node2"), "REST")
        await handler.settled()
        handler.certificate_arrived()  # a payload without one
        await handler.settled()
        assert listener.noted() == []
        certificate.write_bytes(pem)
        handler.certificate_arrived()
        await handler.settled()
        task.cancel()

    asyncio.run(play())
    about = [json.loads(line.partition(" ")[2])["agent_id"] for line in listener.noted()]
    assert about == ["node1", "node2"], "each once, whatever a flood on the other channel"


class _MissedPath(PosixPath):
    """A file that was not there when it was looked for, which takes until `told` is set."""

    told = threading.Event()
    looks = 0

    def read_bytes(self) -> bytes:
        type(self).looks += 1
        if self.looks == 1:
            assert self.told.wait(10)
            raise FileNotFoundError(2, "No such file or directory")
        return super().read_bytes()


def test_v4_a_payload_that_comes_while_its_certificate_is_looked_for_is_not_missed(tmp_path: Path) -> None:
    listener = Listener(tmp_path)

    async def play() -> None:
        handler = listener.start(certificate=_MissedPath(tmp_path / "notifier.crt"))
        task = asyncio.create_task(handler.run())
        handler.receive(message("node1"))
        await eventually(lambda: _MissedPath.looks)
        handler.certificate_arrived()
        _MissedPath.told.set()
        await handler.settled()
        task.cancel()

    asyncio.run(play())
    assert len(listener.noted()) == 1


def test_v3_an_action_learns_whom_a_message_is_about(tmp_path: Path) -> None:
    (noted,) = Listener(tmp_path).receive([message("another-node")])
    name, _, document = noted.partition(" ")
    assert name == "local_action_note"
    assert json.loads(document)["agent_id"] == "another-node"
    assert '"type":"revocation"' in document


def test_v4_an_agent_that_was_down_is_told_when_it_is_back(tmp_path: Path) -> None:
    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as failed,
            AttestingAgent("agent-2", verifier_authority()) as other,
            running_verifier(tmp_path, {"KEYLIME_VERIFIER_MAX_RETRIES": "100000"}) as verifier,
        ):
            for agent in (failed, other):
                await verifier.add(agent)
                await verifier.until_passing(agent)
            await other.stop()
            failed.tamper()
            tries = "SELECT attempts FROM deliveries WHERE target = 'agent-2' AND attempts >= 2"
            await eventually(lambda: verifier.rows(tries))
            other.start()
            (signed,) = await eventually(lambda: other.revocations)
            assert json.loads(signed.msg)["agent_id"] == "agent-1"

    asyncio.run(play())


@pytest.mark.parametrize(
    "name",
    [
        "../escaped",
        "/bin/sh",
        "./local_action_note",
        "sub/local_action_x",
        "..",
        "-rf",
        ".hidden",
        "a\0b",
        "",
    ],
)
def test_v7_an_action_with_a_path_is_none(tmp_path: Path, name: str) -> None:
    listener = Listener(tmp_path, f"{name}\nlocal_action_note\n", configured=(name,))
    listener.action(tmp_path / "escaped")
    listener.action(listener.unzipped / "sub" / "local_action_x")
    listener.action(listener.unzipped / ".hidden")
    noted = listener.receive([message()])
    assert [line.split()[0] for line in noted] == ["local_action_note"]


def test_v7_only_what_is_listed_runs_and_modules_only_under_their_prefix(tmp_path: Path) -> None:
    listener = Listener(tmp_path, "evil\nlocal_action_note")
    listener.action(listener.unzipped / "not_listed")
    (listener.unzipped / "evil.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    assert len(listener.receive([message()])) == 1
    assert not (tmp_path / "imported").exists()


def test_v8_a_flood_of_garbage_is_bounded_and_leaves_the_agent_working(tmp_path: Path) -> None:
    listener = Listener(tmp_path)
    garbage = [SignedRevocation("x" * 1000, f"{number:04d}") for number in range(50_000)]
    assert listener.receive(garbage) == []
    assert len(listener.receive([*garbage[:200], message()])) == 1


# Payloads: what no other module tests


def payload(archive: bytes) -> DerivedKey:
    k = split_key().k
    return DerivedKey(k, encrypt_payload(k, archive))


def test_y7_an_archive_with_a_name_twice_is_refused_whole(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        file.writestr("autorun.sh", "true")
        file.writestr("autorun.sh", "evil")
    with pytest.raises(PayloadRefused):
        install_payload(payload(buffer.getvalue()), tmp_path / "unzipped", PAYLOAD)
    assert list((tmp_path / "unzipped").iterdir()) == []


def test_y8_an_archive_in_an_archive_stays_packed(tmp_path: Path) -> None:
    inner = pack_archive({"autorun.sh": b"evil"})
    installed = install_payload(payload(pack_archive({"inner.zip": inner})), tmp_path / "unzipped", PAYLOAD)
    assert installed.script is None
    found = {path.name for path in (tmp_path / "unzipped").rglob("*")}
    assert "inner.zip" in found
    assert "autorun.sh" not in found


def test_y9_a_directory_with_blanks_does_not_split_the_command(tmp_path: Path) -> None:
    home = tmp_path / "a b; touch c"
    home.mkdir()

    async def measure(_pcr: int, _data: bytes) -> None:
        raise AssertionError("nobody asked to measure")

    async def play() -> None:
        environment = child_environment(AGENT_ID, home)
        worker = PayloadWorker(environment, home, PAYLOAD, measure, lambda: None)
        task = asyncio.create_task(worker.run())
        worker.deliver(payload(pack_archive({"autorun.sh": b"#!/bin/sh\npwd > ../where\n"})))
        await worker.settled()
        task.cancel()

    asyncio.run(play())
    assert Path((home / "where").read_text().strip()).parent == home
    assert [path.name for path in tmp_path.iterdir()] == [home.name]


def test_y11_no_v_before_a_whole_round_has_passed(tmp_path: Path) -> None:
    async def play() -> None:
        async with AttestingAgent("agent-1", verifier_authority()) as agent, running_verifier(tmp_path) as v:
            agent.gate = asyncio.Event()
            await v.add(agent)
            await eventually(lambda: agent.held)
            assert agent.shares == [], "a quote was asked for, and not yet answered"
            agent.tamper()
            agent.gate.set()
            await v.until_state(agent, 9)
            assert agent.shares == [], "the first round failed"
            assert not [path for path in agent.paths if "vkey" in path]
            agent.reboot()
            await v.admin("PUT", "/v2.5/agents/agent-1/reactivate")
            await v.until_passing(agent)
            await eventually(lambda: agent.shares)

    asyncio.run(play())
