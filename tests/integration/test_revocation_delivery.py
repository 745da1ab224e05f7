"""Revocations under faults: receivers that are away, slow, false or gone, and a verifier that dies."""

import asyncio
import json
import os
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from keylime.errors import ConfigError, PeerUnreachable
from keylime.http.server import Response
from keylime.messages.revocation import SignedRevocation
from keylime.pki.roles import NODE
from keylime.revocation.channel import RevocationSubscriber
from keylime.revocation.publication import endpoint
from keylime_agent.actions import ActionOptions, ActionRunner
from keylime_agent.revocation import RevocationHandler
from keylime_agent.revocation_rules import Incarnation
from keylime_verifier.revocations.webhook import Webhook
from keylime_verifier.revocations.webhook_url import parse_webhook_url
from tests.fakes.attesting_agent import AttestingAgent
from tests.fakes.eventual import LIMIT_S, eventually
from tests.fakes.forked_programs import Order, run
from tests.fakes.loopback import served_by
from tests.fakes.revocation_certificate import notifier_certificate
from tests.fakes.running_verifier import (
    TOLD,
    RunningVerifier,
    query_database,
    revocation_key,
    running_verifier,
    verifier_authority,
    verifier_config,
)
from tests.fakes.tls_material import CLIENT_AUTH, SERVER_AUTH, Authority, client_context, server_context
from tests.fakes.webhook_receiver import WebhookReceiver

INVALID_QUOTE = 9
BACKDOOR = "ima.validation.ima-ng.not_in_allowlist"
Act = Callable[[RunningVerifier, AttestingAgent, AttestingAgent], Awaitable[None]]


def channels(*names: str, **more: str) -> dict[str, str]:
    """The environment that enables `names` and sets options of [revocations]."""
    prefix = "KEYLIME_VERIFIER_REVOCATIONS_"
    enabled = {f"{prefix}ENABLED_REVOCATION_NOTIFICATIONS": str(list(names))}
    return {**enabled, **{f"{prefix}{option.upper()}": value for option, value in more.items()}}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def scene(directory: Path, environ: dict[str, str], act: Act) -> None:
    """A verifier with two agents that pass."""
    async with (
        AttestingAgent("agent-1", verifier_authority()) as first,
        AttestingAgent("agent-2", verifier_authority()) as second,
        running_verifier(directory, environ) as verifier,
    ):
        for agent in (first, second):
            await verifier.add(agent)
            await verifier.until_passing(agent)
        await act(verifier, first, second)


async def overview(verifier: RunningVerifier, query: str = "") -> dict[str, Any]:
    answer = await verifier.admin("GET", f"/v2.5/revocations{query}")
    assert answer.code == 200, answer
    results: dict[str, Any] = answer.results
    return results


async def until_target(
    verifier: RunningVerifier, channel: str, condition: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """The first summary of `channel` that fulfils `condition`."""

    async def look() -> dict[str, Any]:
        targets = (await overview(verifier))["targets"]
        found = [target for target in targets if target["channel"] == channel and condition(target)]
        return found[0] if found else {}

    return dict(await eventually(look))


# Webhook


@pytest.mark.parametrize("code", [200, 202])
def test_the_webhook_gets_the_signed_envelope_whatever_it_answers_in_the_body(
    tmp_path: Path, code: int
) -> None:
    async def play() -> None:
        receiver = WebhookReceiver(server_context(verifier_authority(), clients=ssl.CERT_REQUIRED))
        receiver.code, receiver.body = code, b"\x00 no JSON" * 1000
        async with receiver:

            async def act(verifier: RunningVerifier, failed: AttestingAgent, _: AttestingAgent) -> None:
                failed.tamper()
                summary = await until_target(verifier, "webhook", lambda target: target["delivered"] == 1)
                (signed,) = receiver.received
                message = json.loads(signed.msg)
                assert (message["agent_id"], message["event_id"]) == ("agent-1", BACKDOOR)
                assert signed.signature
                assert receiver.client_names == ["client"]
                assert summary["target"] == f"https://127.0.0.1:{receiver.port}", "without the secret path"
                assert (summary["attempts"], summary["failed"], summary["last_error"]) == (1, 0, None)

            await scene(tmp_path, channels("webhook", webhook_url=receiver.url), act)

    asyncio.run(play())


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    ],
)
def test_p14_what_is_said_of_a_receiver_that_speaks_no_http_leaves_out_its_secret_path(answer: bytes) -> None:
    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    async def play() -> None:
        async with served_by(answering) as port:
            url = f"http://127.0.0.1:{port.number}/hooks/SECRET?token=SECRET"
            webhook = Webhook(parse_webhook_url(url, allow_http=True), None, LIMIT_S)
            try:
                with pytest.raises(PeerUnreachable) as raised:
                    await webhook.post(SignedRevocation("{}", "signature"))
            finally:
                await webhook.close()
            assert "SECRET" not in str(raised.value)
            assert str(raised.value).startswith(f"webhook http://127.0.0.1:{port.number}: ")

    asyncio.run(play())


@pytest.mark.parametrize("code", [204, 301, 307, 400, 500, 503])
def test_another_answer_is_no_delivery_and_a_redirect_leads_nowhere(tmp_path: Path, code: int) -> None:
    async def play() -> None:
        tls = server_context(verifier_authority())
        async with WebhookReceiver(tls) as receiver, WebhookReceiver(tls) as elsewhere:
            receiver.code, receiver.headers = code, {"Location": elsewhere.url}

            async def act(verifier: RunningVerifier, failed: AttestingAgent, _: AttestingAgent) -> None:
                failed.tamper()
                summary = await until_target(verifier, "webhook", lambda target: target["attempts"] >= 2)
                assert (summary["pending"], summary["delivered"]) == (1, 0)
                assert summary["last_error"].startswith(f"{code} from webhook https://127.0.0.1:")
                assert "SECRET" not in json.dumps(await overview(verifier))
                assert elsewhere.received == []
                receiver.code = 200
                await until_target(verifier, "webhook", lambda target: target["delivered"] == 1)

            await scene(tmp_path, channels("webhook", webhook_url=receiver.url), act)

    asyncio.run(play())


def test_a_receiver_with_a_certificate_of_another_authority_learns_nothing(tmp_path: Path) -> None:
    async def play() -> None:
        async with WebhookReceiver(server_context(Authority("Somebody else"))) as receiver:

            async def act(verifier: RunningVerifier, failed: AttestingAgent, _: AttestingAgent) -> None:
                failed.tamper()
                summary = await until_target(verifier, "webhook", lambda target: target["attempts"] >= 2)
                assert summary["pending"] == 1
                assert "certificate" in summary["last_error"].lower()
                assert receiver.received == []

            await scene(tmp_path, channels("webhook", webhook_url=receiver.url), act)

    asyncio.run(play())


@pytest.mark.parametrize("reason", ["not for 127.0.0.1", "made for a machine"])
def test_n3_n4_a_receiver_with_another_name_or_a_machines_certificate_learns_nothing(
    tmp_path: Path, reason: str
) -> None:
    if "machine" in reason:
        leaf = verifier_authority().issue("web01", usages=(SERVER_AUTH, CLIENT_AUTH, NODE))
        check = "off"
    else:
        names = [x509.DNSName("elsewhere.example.com")]
        leaf = verifier_authority().issue("x", usages=(SERVER_AUTH,), names=names)
        check = "strict"
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.load_into(tls)

    async def play() -> None:
        async with WebhookReceiver(tls) as receiver:

            async def act(verifier: RunningVerifier, failed: AttestingAgent, _: AttestingAgent) -> None:
                failed.tamper()
                summary = await until_target(verifier, "webhook", lambda target: target["attempts"] >= 2)
                assert (summary["pending"], receiver.received) == (1, [])
                assert reason in summary["last_error"]

            environ = channels("webhook", webhook_url=receiver.url)
            await scene(tmp_path, {**environ, "KEYLIME_VERIFIER_CHECK_SERVER_NAMES": check}, act)

    asyncio.run(play())


def test_a_slow_receiver_delays_neither_agents_nor_rounds(tmp_path: Path) -> None:
    async def play() -> None:
        receiver = WebhookReceiver(server_context(verifier_authority()))
        receiver.gate = asyncio.Event()  # never opens: every attempt ends by its time limit
        async with receiver:

            async def act(verifier: RunningVerifier, failed: AttestingAgent, other: AttestingAgent) -> None:
                failed.tamper()
                await eventually(lambda: failed.revocations and other.revocations)
                await verifier.until_passing(other, rounds=5)
                await eventually(lambda: len(receiver.received) >= 2)
                summary = await until_target(verifier, "webhook", lambda target: target["attempts"] >= 1)
                assert "within 0.5 s" in summary["last_error"]  # of the attempt or of the request
                await verifier.until_passing(other, rounds=2)

            environ = {
                **channels("agent", "webhook", webhook_url=receiver.url),
                "KEYLIME_VERIFIER_REQUEST_TIMEOUT": "0.5",
            }
            await scene(tmp_path, environ, act)

    asyncio.run(play())


def test_plain_http_works_only_when_it_is_allowed(tmp_path: Path) -> None:
    async def play() -> None:
        async with WebhookReceiver(None) as receiver:
            with pytest.raises(ConfigError, match="webhook_url is plain HTTP: use https, or set"):
                verifier_config(tmp_path, channels("webhook", webhook_url=receiver.url))

            async def act(_v: RunningVerifier, failed: AttestingAgent, _: AttestingAgent) -> None:
                failed.tamper()
                await eventually(lambda: receiver.received)

            allowed = channels("webhook", webhook_url=receiver.url, webhook_allow_http="True")
            await scene(tmp_path, allowed, act)

    asyncio.run(play())


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "webhook_url is empty, but webhook is among"),
        ("hooks.example.com/x", "must be like https://host/path"),
        ("ftp://hooks.example.com/x", "must be like https://host/path"),
        ("https:///x", "must be like https://host/path"),
        ("https://[::1/x", "is not a URL"),
        ("https://host:99999/x", "is not a URL"),
    ],
)
def test_a_url_that_cannot_be_used_is_told_before_anything_starts(
    tmp_path: Path, url: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        verifier_config(tmp_path, channels("webhook", webhook_url=url))
    assert verifier_config(tmp_path, channels("agent", webhook_url=url)).webhook is None


def test_without_a_ca_there_is_no_webhook(tmp_path: Path) -> None:
    environ = channels("webhook", webhook_url="https://host/x")
    with pytest.raises(ConfigError, match="trusted_server_ca = all would let anybody"):
        verifier_config(tmp_path, {**environ, "KEYLIME_VERIFIER_TRUSTED_SERVER_CA": "all"})


def test_the_refusal_is_one_line_and_status_1(tmp_path: Path) -> None:
    environ = {
        "PATH": os.environ["PATH"],
        "KEYLIME_DIR": str(tmp_path),
        **channels("webhook", webhook_url="http://host/x"),
    }
    done = run(Order("keylime_verifier", (), environ))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    option = "environment variable KEYLIME_VERIFIER_REVOCATIONS_WEBHOOK_URL: [revocations] webhook_url"
    assert line.startswith(f"keylime_verifier: error: {option} is plain HTTP")


# Receivers that are away


def test_every_receiver_that_comes_back_gets_what_it_missed(tmp_path: Path) -> None:
    async def play() -> None:
        async with WebhookReceiver(server_context(verifier_authority())) as receiver:

            async def act(verifier: RunningVerifier, failed: AttestingAgent, other: AttestingAgent) -> None:
                await receiver.stop()
                other.answer_revocation = Response(503, status="going down")
                failed.tamper()
                await until_target(verifier, "webhook", lambda target: target["attempts"] >= 2)
                pending = await overview(verifier, "?state=pending")
                assert {(row["channel"], row["agent_id"]) for row in pending["deliveries"]} == {
                    ("agent", "agent-1"),
                    ("webhook", "agent-1"),
                }
                await receiver.start()
                other.answer_revocation = None
                await until_target(verifier, "webhook", lambda target: target["delivered"] == 1)
                await eventually(lambda: other.revocations)
                assert receiver.received[0] == other.revocations[0] == failed.revocations[0]

            await scene(tmp_path, channels("agent", "webhook", webhook_url=receiver.url), act)

    asyncio.run(play())


async def first_message(port: int) -> SignedRevocation:
    """What somebody gets who subscribes now."""
    subscriber = RevocationSubscriber([endpoint("127.0.0.1", port)])
    try:
        async with asyncio.timeout(LIMIT_S):
            return await anext(subscriber)
    finally:
        subscriber.close()


def test_a_subscriber_that_comes_late_gets_what_was_published_before(tmp_path: Path) -> None:
    port = free_port()

    async def act(verifier: RunningVerifier, failed: AttestingAgent, _: AttestingAgent) -> None:
        failed.tamper()
        await until_target(verifier, "zeromq", lambda target: target["delivered"] == 1)
        assert json.loads((await first_message(port)).msg)["agent_id"] == "agent-1"

    asyncio.run(scene(tmp_path, channels("zeromq", zmq_port=str(port)), act))


def test_a_subscriber_that_comes_after_a_restart_gets_what_was_published_before(tmp_path: Path) -> None:
    port = free_port()
    environ = channels("zeromq", zmq_port=str(port))

    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as deleted,
            AttestingAgent("agent-2", verifier_authority()) as failed,
        ):
            async with running_verifier(tmp_path, environ) as verifier:
                for agent in (deleted, failed):
                    await verifier.add(agent)
                    await verifier.until_passing(agent)
                    agent.tamper()
                    await verifier.until_state(agent, INVALID_QUOTE)
                await until_target(verifier, "zeromq", lambda target: target["delivered"] == 2)
                await verifier.admin("DELETE", "/v2.5/agents/agent-1")
            for _ in range(2):
                async with running_verifier(tmp_path, environ):
                    about = json.loads((await first_message(port)).msg)["agent_id"]
                    assert about == "agent-2", "and nothing of the one that was deleted"

    asyncio.run(play())


def test_a_fleet_beyond_the_limit_is_told_over_the_other_channels_only(tmp_path: Path) -> None:
    port = free_port()
    environ = channels("agent", "zeromq", zmq_port=str(port), max_agents_notified="1")

    async def play() -> None:
        async with (
            AttestingAgent("agent-1", verifier_authority()) as failed,
            AttestingAgent("agent-2", verifier_authority()) as other,
        ):
            async with running_verifier(tmp_path, environ) as verifier:
                for agent in (failed, other):
                    await verifier.add(agent)
                    await verifier.until_passing(agent)
            async with running_verifier(tmp_path, environ) as verifier:
                failed.tamper()
                await until_target(verifier, "zeromq", lambda target: target["delivered"] == 1)
                assert json.loads((await first_message(port)).msg)["agent_id"] == "agent-1"
                shown = await overview(verifier)
                assert [target["channel"] for target in shown["targets"]] == ["zeromq"]
                assert (failed.revocations, other.revocations) == ([], [])

    asyncio.run(play())


def test_what_a_killed_verifier_had_not_sent_reaches_every_channel_after_its_start(tmp_path: Path) -> None:
    """The state of the disk after a kill between verdict and sending; the broker was gone too."""
    port = free_port()

    async def play() -> None:
        tls = server_context(verifier_authority())
        async with AttestingAgent("agent-1", verifier_authority()) as agent, WebhookReceiver(tls) as receiver:
            environ = channels("agent", "zeromq", "webhook", zmq_port=str(port), webhook_url=receiver.url)
            async with running_verifier(tmp_path, environ) as verifier:
                await verifier.add(agent)
                await verifier.until_passing(agent)
            now = int(time.time())
            query_database(
                tmp_path,
                "INSERT INTO revocations VALUES ('r1', 'agent-1', ?, '{}', 's', 0, 'default', 0, 0)",
                now,
            )
            for channel, target in (("agent", "agent-1"), ("zeromq", "tcp://x"), ("webhook", "https://x")):
                query_database(
                    tmp_path,
                    "INSERT INTO deliveries VALUES ('r1', ?, ?, 'pending', 0, NULL, ?)",
                    channel,
                    target,
                    now,
                )
            waiting = asyncio.create_task(first_message(port))
            async with running_verifier(tmp_path, environ) as verifier:
                assert await waiting == SignedRevocation("{}", "s")
                await eventually(lambda: receiver.received and agent.revocations)
                states = "SELECT state FROM deliveries"
                await eventually(lambda: verifier.rows(states) == [("delivered",)] * 3)

    asyncio.run(play())


def test_a_broker_that_restarts_is_found_again_and_nothing_is_lost(tmp_path: Path) -> None:
    port = free_port()
    environ = channels("zeromq", zmq_port=str(port))

    async def play() -> None:
        async with AttestingAgent("agent-1", verifier_authority()) as agent:
            async with running_verifier(tmp_path, environ) as verifier:
                await verifier.add(agent)
                await verifier.until_passing(agent)
                subscriber = RevocationSubscriber([endpoint("127.0.0.1", port)])
            try:
                async with running_verifier(tmp_path, environ) as verifier:
                    await verifier.until_passing(agent)
                    agent.tamper()
                    await verifier.until_state(agent, INVALID_QUOTE)
                    async with asyncio.timeout(LIMIT_S):
                        signed = await anext(subscriber)
                    assert json.loads(signed.msg)["agent_id"] == "agent-1"
            finally:
                subscriber.close()

    asyncio.run(play())


# What operators see


def test_deliveries_are_shown_to_administrators_and_can_be_filtered(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, failed: AttestingAgent, other: AttestingAgent) -> None:
        other.answer_revocation = Response(400, status="no")
        failed.tamper()
        await eventually(lambda: failed.revocations)
        await eventually(
            lambda: (
                verifier.rows("SELECT target, state FROM deliveries") == [("agent-2", "pending")]
                and verifier.rows(TOLD) == [("agent-1",)]
            )
        )
        results = await overview(verifier)
        numbers = [(row["target"], row["delivered"], row["pending"]) for row in results["targets"]]
        assert numbers == [("agent-1", 1, 0), ("agent-2", 0, 1)]
        assert results["targets"][1]["last_error"] == "400 no"
        assert results["targets"][1]["oldest_pending"] > 0
        assert results["left_off"] == 0
        (delivered,) = (await overview(verifier, "?state=delivered"))["deliveries"]
        assert (delivered["agent_id"], delivered["target"]) == ("agent-1", "agent-1")
        assert (await overview(verifier, "?agent=agent-2"))["targets"] == []
        one = await overview(verifier, "?agent=agent-1&limit=1")
        assert (len(one["deliveries"]), one["left_off"], len(one["targets"])) == (1, 1, 2)
        for wrong in ("?state=lost", "?limit=0", "?limit=x", "?limit=99999", "?agent=a/b"):
            assert (await verifier.admin("GET", f"/v2.5/revocations{wrong}")).code == 400, wrong
        stranger = client_context(verifier_authority())
        assert (await verifier.call("GET", "/v2.5/revocations", stranger)).code == 403
        await _check_tenant(verifier)

    asyncio.run(scene(tmp_path, channels("agent"), act))


async def _check_tenant(verifier: RunningVerifier) -> None:
    words = ("-c", "revocations", "--json", "-v", "127.0.0.1", "-vp", str(verifier.port))
    environ = {"PATH": os.environ["PATH"], "KEYLIME_DIR": str(verifier.config.work_dir)}
    done = await asyncio.to_thread(run, Order("keylime_tenant", words, environ))
    assert done.returncode == 0, done.stderr
    assert [target["target"] for target in json.loads(done.stdout)["targets"]] == ["agent-1", "agent-2"]
    assert "WARNING - agent agent-2: 1 pending (the oldest for " in done.stderr
    assert "0 given up: 400 no" in done.stderr


def test_a_delivery_beyond_retention_is_given_up_and_old_ones_are_forgotten(tmp_path: Path) -> None:
    async def play() -> None:
        environ = channels("agent", retention="3600", history="7200")
        async with AttestingAgent("agent-1", verifier_authority()) as agent:
            agent.answer_revocation = Response(400, status="no")
            async with running_verifier(tmp_path, environ) as verifier:
                await verifier.add(agent)
                await verifier.until_passing(agent)
            now = int(time.time())
            rows = (("young", "pending", 60, 60), ("late", "pending", 4000, 4000))
            ended = (("told", "delivered", 4000, 4000), ("old", "failed", 9000, 9000))
            for name, state, made, updated in (*rows, *ended, ("ended-late", "delivered", 9000, 100)):
                query_database(
                    tmp_path,
                    "INSERT INTO revocations VALUES (?, 'agent-1', ?, '{}', '', 0, 'default', 0, 0)",
                    name,
                    now - made,
                )
                query_database(
                    tmp_path,
                    "INSERT INTO deliveries VALUES (?, 'agent', 'agent-1', ?, 0, NULL, ?)",
                    name,
                    state,
                    now - updated,
                )
            async with running_verifier(tmp_path, environ) as verifier:
                found = "SELECT revocation_id, state FROM deliveries ORDER BY revocation_id"
                await eventually(lambda: ("late", "failed") in verifier.rows(found))
                assert ("young", "pending") in verifier.rows(found)
                await eventually(lambda: len(verifier.rows(found)) == 4)
                left = {name for (name,) in verifier.rows("SELECT revocation_id FROM revocations")}
                assert left == {"young", "late", "told", "ended-late"}
                attempts = "SELECT attempts FROM deliveries WHERE revocation_id = 'late'"
                assert verifier.rows(attempts) == [(3,)], "tried in spite of its age"

    asyncio.run(play())


def test_a_channel_that_was_disabled_gives_up_at_once(tmp_path: Path) -> None:
    async def play() -> None:
        async with running_verifier(tmp_path, channels("zeromq", zmq_port=str(free_port()))):
            pass
        now = int(time.time())
        query_database(
            tmp_path, "INSERT INTO revocations VALUES ('r', 'a', ?, '{}', '', 0, 'default', 0, 0)", now
        )
        query_database(
            tmp_path, "INSERT INTO deliveries VALUES ('r', 'zeromq', 't', 'pending', 0, NULL, ?)", now
        )
        async with running_verifier(tmp_path, channels("agent")) as verifier:
            summary = await until_target(verifier, "zeromq", lambda target: target["failed"] == 1)
            assert summary["last_error"] == "the channel zeromq is not enabled any more"

    asyncio.run(play())


# From the verdict to the action


class _Forwarding(list[SignedRevocation]):
    """Hands what arrives to the real handler of an agent."""

    def __init__(self, handler: RevocationHandler) -> None:
        super().__init__()
        self._handler = handler

    def append(self, signed: SignedRevocation) -> None:
        super().append(signed)
        self._handler.receive(signed)


SHELL = '#!/bin/sh\ngrep -q \'"type":"revocation"\' "$1" && echo "$0" >> {log}\n'
MODULE = (
    "from keylime import keylime_logging\n"
    "import keylime.secure_mount\n"
    "logger = keylime_logging.init_logging('local_action')\n"
    "async def execute(event):\n"
    "    if event.get('type') == 'revocation':\n"
    "        with open('{log}', 'a') as file:\n"
    "            file.write('local_action_module.py\\n')\n"
)


@pytest.mark.parametrize(
    "listed",
    [
        "local_action_one.sh\nlocal_action_module\nlocal_action_two\n",
        "local_action_one.sh,local_action_module.py, local_action_two",
        "local_action_one.sh local_action_module local_action_two",
        "['local_action_one.sh', \"local_action_module\", 'local_action_two']\n",
        "\r\nlocal_action_one.sh\r\nlocal_action_module\r\n\r\nlocal_action_two\r\nlocal_action_one.sh\r\n",
    ],
    ids=["lines", "commas", "blanks", "brackets", "dos"],
)
def test_the_actions_of_any_list_run_once_in_order_soon_after_the_verdict(
    tmp_path: Path, listed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    home, unzipped, log = tmp_path / "home", tmp_path / "home" / "unzipped", tmp_path / "log"
    unzipped.mkdir(parents=True)
    for name in ("local_action_one.sh", "local_action_two"):
        (unzipped / name).write_text(SHELL.format(log=log))
    (unzipped / "local_action_module.py").write_text(MODULE.format(log=log))
    (unzipped / "action_list").write_text(listed)
    (home / "notifier.crt").write_bytes(notifier_certificate(revocation_key()))
    environment = {"PATH": os.environ["PATH"]}
    runner = ActionRunner(environment, home, unzipped, ActionOptions((), tmp_path / "none", True))

    async def act(_v: RunningVerifier, failed: AttestingAgent, other: AttestingAgent) -> None:
        me = Incarnation("agent-2", None, bytes(16))
        handler = RevocationHandler(home / "notifier.crt", runner.run_all, lambda: me)
        task = asyncio.create_task(handler.run())
        other.revocations = _Forwarding(handler)
        answered: list[float] = []

        def note(results: dict[str, Any]) -> Response:
            if "backdoor" in results["ima_measurement_list"]:
                answered.append(time.monotonic())
            return Response(results=results)

        failed.answer_quote = note
        failed.tamper()
        await eventually(log.exists)
        first_s = time.monotonic() - answered[0]
        await eventually(lambda: other.revocations)
        await handler.settled()
        all_s = time.monotonic() - answered[0]
        task.cancel()
        with capsys.disabled():
            print(f"\n[evidence sent to first action {first_s * 1000:.0f} ms, three {all_s * 1000:.0f} ms]")

    asyncio.run(scene(tmp_path / "verifier", channels("agent"), act))
    names = [Path(line).name for line in log.read_text().splitlines()]
    assert names == ["local_action_one.sh", "local_action_module.py", "local_action_two"]
