"""Revocation messages at an agent, true and forged, over REST and over ZeroMQ."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import zmq
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from keylime.messages.revocation import RevocationMessage, SignedRevocation
from keylime.messages.verifier import OperationalState
from keylime.revocation.signing import sign_revocation
from tests.lab.installation import Machine
from tests.lab.interposer import Interposer, interposed
from tests.lab.rest import Rest
from tests.lab.site import Site, errors_of, script

_ACTION = """\
#!/bin/sh
cat "$1" >> actions-run
echo >> actions-run
"""


class Repeater:
    """Somebody on the way between the verifier's ZeroMQ broker and the agents, who also talks himself."""

    def __init__(self, broker: str, own: str) -> None:
        self._context = zmq.Context()
        self._broker = broker
        self._publisher = self._context.socket(zmq.XPUB)
        self._publisher.bind(own)
        self._to_say: list[bytes] = []
        self._stop = threading.Event()
        self._subscribed = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Repeater":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._publisher.close(0)
        self._context.term()

    def say(self, data: bytes) -> None:
        """Publishes one frame once the agent listens."""
        assert self._subscribed.wait(100)
        self._to_say.append(data)

    def _run(self) -> None:
        subscriber = self._context.socket(zmq.SUB)
        subscriber.setsockopt(zmq.SUBSCRIBE, b"")
        subscriber.connect(self._broker)
        poller = zmq.Poller()
        poller.register(subscriber, zmq.POLLIN)
        poller.register(self._publisher, zmq.POLLIN)
        while not self._stop.is_set():
            ready = dict(poller.poll(20))
            if self._publisher in ready:
                self._publisher.recv()
                self._subscribed.set()
            if subscriber in ready:
                self._publisher.send(subscriber.recv())
            while self._to_say:
                self._publisher.send(self._to_say.pop(0))
        subscriber.close(0)


@dataclass(frozen=True)
class Listener:
    """An agent that has a payload with an action, and both ways to it."""

    site: Site
    machine: Machine
    repeater: Repeater
    front: Interposer

    @property
    def api(self) -> Rest:
        return self.machine.api(self.site.control.administrator)

    def post(self, signed: SignedRevocation) -> int:
        body = {"msg": signed.msg, "signature": signed.signature}
        return self.api.request("POST", "/v2.5/notifications/revocation", body).code

    def publish(self, signed: SignedRevocation) -> None:
        self.repeater.say(msgspec.json.encode(signed))

    @property
    def actions_run(self) -> list[dict[str, object]]:
        file = self.machine.node.work_dir / "actions-run"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def genuine_key(self) -> str:
        """The key that only tenant and verifier have."""
        return (self.site.control.node.work_dir / "ca/RevocationNotifier-private.pem").read_text()


@contextmanager
def listening(site: Site, directory: Path) -> Iterator[Listener]:
    place = site.node("repeater")
    broker, own = f"tcp://{site.control.node.ip}:8992", f"tcp://{place.ip}:8992"
    with Repeater(broker, own) as repeater:
        machine = site.running_machine(revocation_notification_ip=f'"{place.ip}"')
        payload = directory / "payload"
        script(payload / "local_action_note.sh", _ACTION)
        (payload / "action_list").write_text("local_action_note.sh\n")
        with interposed(machine, site.control, site.node("front")) as front:
            site.add(
                machine,
                *("--cv_targethost", front.node.ip, "--cert", "default", "--include", payload),
            )
            machine.agent.wait_for("payload installed")
            yield Listener(site, machine, repeater, front)


@pytest.fixture(scope="module")
def listener(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listener]:
    with listening(site, tmp_path_factory.mktemp("operator")) as opened:
        yield opened


def a_message(listener: Listener) -> RevocationMessage:
    return RevocationMessage(
        type="revocation",
        ip=listener.machine.node.ip,
        agent_id=listener.machine.agent_id,
        port=9002,
        tpm_policy="{}",
        meta_data="{}",
        event_time="Sun Nov 22 18:05:08 2026",
        event_id="qoute_validation.quote_validation",
        severity_label="emergency",
        context="{}",
    )


def with_another_key(listener: Listener) -> SignedRevocation:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return sign_revocation(a_message(listener), pem.decode())


def unsigned(listener: Listener) -> SignedRevocation:
    return sign_revocation(a_message(listener), "")


def altered(listener: Listener) -> SignedRevocation:
    """Genuinely signed once, then pointed at somebody else."""
    signed = sign_revocation(a_message(listener), listener.genuine_key())
    return SignedRevocation(signed.msg.replace(listener.machine.agent_id, "someone-else"), signed.signature)


@pytest.mark.parametrize("forge", [with_another_key, unsigned, altered], ids=lambda forge: forge.__name__)
@pytest.mark.parametrize("channel", ["REST", "ZeroMQ"])
def test_a_forged_message_is_ignored_and_logged(
    listener: Listener, forge: Callable[[Listener], SignedRevocation], channel: str
) -> None:
    forged = forge(listener)
    agent = listener.machine.agent
    since = agent.mark()
    if channel == "REST":
        assert listener.post(forged) == 200  # which only says that it is queued
    else:
        listener.publish(forged)
    agent.wait_for(rf"WARNING - revocation message ignored \(over {channel}\)", since=since)
    assert "Executing" not in agent.text()
    assert listener.actions_run == []


@pytest.mark.parametrize("garbage", [b"", b"\x00\xff", b"[]", b'{"msg": 1}', b"{" * 100_000])
def test_garbage_is_refused_and_harms_nobody(listener: Listener, garbage: bytes) -> None:
    listener.repeater.say(garbage)
    headers = {"Content-Type": "application/json"}
    code, _ = listener.api.exchange("POST", "/v2.5/notifications/revocation", garbage, headers)
    assert code == 400
    assert listener.actions_run == []
    assert errors_of(listener.machine.agent.text()) == []


def test_the_genuine_message_is_acted_on_once_although_it_comes_twice(listener: Listener) -> None:
    site, agent = listener.site, listener.machine.agent
    site.await_passes(listener.machine)
    listener.front.lie = lambda _seen, results: {**results, "quote": "r::"}
    site.await_state(listener.machine, OperationalState.INVALID_QUOTE)
    for channel in ("REST", "ZeroMQ"):
        agent.wait_for(rf"revocation message about agent \S+ .*over {channel}")
    agent.wait_for("was handled before")
    # The handler takes one message after the other: when the next one has been looked at, this one is done.
    since = agent.mark()
    assert listener.post(unsigned(listener)) == 200
    agent.wait_for("revocation message ignored", since=since)
    (action,) = listener.actions_run
    assert action["agent_id"] == listener.machine.agent_id
    assert action["event_id"] == site.record(listener.machine)["last_event_id"]
    assert agent.text().count("Executing revocation action local_action_note.sh") == 1


def test_a_message_is_not_taken_from_a_client_without_certificate(listener: Listener) -> None:
    stranger = listener.machine.api(None)
    with pytest.raises(OSError, match=r"(?i)alert|reset|closed|EOF"):
        stranger.request("POST", "/v2.5/notifications/revocation", {"msg": "{}", "signature": ""})
