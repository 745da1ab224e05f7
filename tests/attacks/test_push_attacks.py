"""What can be tried with sessions, tokens and evidence of machines that attest by themselves.

Ids are those of the attack catalogue (Network, Quotes, Verifier).
"""

import asyncio
import base64
import contextlib
import hashlib
import json
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from keylime.hashes import HashAlgorithm
from keylime.tpm.keys import SignatureScheme
from tests.fakes.attesting_agent import policy_of
from tests.fakes.eventual import eventually
from tests.fakes.own_time import OwnTime
from tests.fakes.pushing_machine import Answer, PushingMachine, b64, certification, name_of
from tests.fakes.running_verifier import RunningVerifier, query_database, running_verifier
from tests.fakes.software_ak import SoftwareAk

FAST = {"KEYLIME_VERIFIER_QUOTE_INTERVAL": "3600"}
OTHER_KEY = SoftwareAk.generate("rsa2048", SignatureScheme.RSASSA)


def scene(
    directory: Path,
    act: Callable[[RunningVerifier, PushingMachine], Awaitable[None]],
    **environ: str,
) -> None:
    """A machine that is added, and has not attested yet."""

    async def play() -> None:
        async with running_verifier(directory, {**FAST, **environ}) as verifier:
            machine = PushingMachine(verifier)
            await machine.add()
            await act(verifier, machine)

    asyncio.run(play())


def denied(answer: Answer) -> tuple[int, object]:
    return answer.code, answer.error["detail"]


def test_n13_tokens_that_are_missing_altered_over_or_of_somebody_else(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, machine: PushingMachine) -> None:
        token = await machine.log_in()
        other = PushingMachine(verifier, "pushing-2")
        await other.add()
        await other.log_in()
        assert denied(await machine.negotiate(token=None)) == (
            403,
            "Action submit_attestation requires agent authentication (PoP token)",
        )
        assert denied(await other.negotiate(token=token)) == (
            403,
            "Agent pushing-1 cannot access resource pushing-2 (ownership required)",
        )
        invalid = (401, "Invalid authentication token")
        last_letter = "A" if token[-1] != "A" else "B"
        for altered in (token[:-1] + last_letter, token[:40], token + "A", "x.y", "x" * 9000):
            assert denied(await machine.negotiate(token=altered)) == invalid
        for header in (f"bearer {token}", f"Basic {token}", "Bearer", token):
            answer = await machine.negotiate(token=None, headers={"Authorization": header})
            assert denied(answer) == (401, "Invalid Authorization header format")
        later = await machine.log_in()
        assert denied(await machine.negotiate(token=token)) == invalid, "a later login ends the earlier one"
        await verifier.change("UPDATE push_sessions SET token_expires_at = token_expires_at - 3000")
        assert denied(await machine.negotiate(token=later)) == (401, "Authentication token expired")
        last = await machine.log_in()
        assert (await machine.negotiate()).code == 201
        assert (await verifier.admin("DELETE", "/v2.6/agents/pushing-1")).code == 200
        assert (await machine.negotiate(token=last)).code == 404
        await PushingMachine.with_key(verifier, OTHER_KEY).add()
        assert denied(await machine.negotiate(token=last)) == invalid, "it was proven with another key"

    scene(tmp_path, act)


def test_n13_a_token_gives_no_other_rights_and_a_certificate_none_of_an_agent(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, machine: PushingMachine) -> None:
        token = await machine.log_in()
        own = await machine.call("GET", "/v2.6/agents/pushing-1", b"", token=token)
        assert (own.code, own.body["results"]["attestation_status"]) == (200, "PENDING")
        for method, path in (
            ("GET", "/v2.6/agents"),
            ("DELETE", "/v2.6/agents/pushing-1"),
            ("PUT", "/v2.6/agents/pushing-1/reactivate"),
            ("GET", "/v3.0/agents/pushing-1/attestations"),
            ("GET", "/v3.0/agents/pushing-1/attestations/latest"),
        ):
            refused = await machine.call(method, path, b"", token=token)
            assert refused.code == 403, path
            assert "requires admin authentication (mTLS certificate)" in str(denied(refused))
            altered = await machine.call(method, path, b"", token=f"{token}A")
            assert denied(altered) == (401, "Invalid authentication token"), path
        other = await machine.call("GET", "/v2.6/agents/pushing-2", b"", token=token)
        assert denied(other) == (
            403,
            "Agent pushing-1 cannot access resource pushing-2 (ownership required)",
        )
        machine.context = verifier.administrators
        assert (await machine.negotiate(token=None)).code == 403, "administrators attest nothing"
        assert (await machine.call("DELETE", "/v2.6/agents/pushing-1", b"", token=token)).code == 403
        assert (await machine.negotiate()).code == 201

    scene(tmp_path, act)


def whole_database(directory: Path) -> bytes:
    """What a thief of its files has."""
    return b"".join(path.read_bytes() for path in directory.glob("cv_data.sqlite*"))


def test_n14_a_stolen_database_has_no_token_and_guesses_are_refused_alike(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, machine: PushingMachine) -> None:
        token = await machine.log_in()
        session_id, secret = token.split(".", 1)
        assert len(secret) == 43
        stored = "SELECT session_id, token_salt, token_hash FROM push_sessions"
        ((stored_id, salt, digest),) = verifier.rows(stored)
        assert stored_id == session_id
        assert digest == hashlib.sha256(bytes.fromhex(salt) + token.encode()).hexdigest()
        assert secret.encode() not in whole_database(tmp_path)
        known = await machine.negotiate(token=f"{session_id}.{'A' * 43}")
        unknown = await machine.negotiate(token=f"00000000-0000-4000-8000-000000000000.{'A' * 43}")
        assert (known.code, known.body) == (unknown.code, unknown.body) == (401, known.body)

    scene(tmp_path, act)


def test_n15_who_begins_many_sessions_waits_and_nobody_else_does(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, machine: PushingMachine) -> None:
        for _ in range(20):
            await machine.log_in()  # who proves himself is none of many
        for _ in range(15):
            assert (await machine.begin()).code == 200
        refused = await machine.begin()
        assert refused.code == 429
        assert 0 < int(refused.headers["retry-after"]) <= 60
        assert "title" in refused.error
        assert (await machine.begin("pushing-2")).code == 200, "other agents behind the same address"
        elsewhere = await machine.begin(source="127.0.0.2")
        assert elsewhere.code == 200, "the agent itself, when a stranger has named it elsewhere"
        codes = [(await machine.begin(f"stranger-{number}")).code for number in range(50)]
        assert codes[-1] == 429
        assert (await machine.begin("pushing-3", source="127.0.0.2")).code == 200
        await verifier.change("UPDATE push_sessions SET created_at = created_at - 61")
        assert (await machine.begin()).code == 200, "nobody is locked out for ever"

    scene(tmp_path, act)


def test_n16_proofs_that_were_made_for_something_else(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, machine: PushingMachine) -> None:
        own = machine.machine.ak

        def signed(message: bytes, key: SoftwareAk = own) -> tuple[bytes, bytes]:
            return message, key.sign(message)

        begun = await machine.begin()
        requested = begun.attributes["authentication_requested"][0]
        challenge = base64.b64decode(requested["chosen_parameters"]["challenge"])
        mismatch = await machine.prove(begun, agent_id="pushing-2")
        assert denied(mismatch) == (400, "Agent ID mismatch")
        passed = await machine.prove(begun, signed(certification(own, challenge)))
        assert passed.attributes["evaluation"] == "pass", "the challenge was not used up"
        again = await machine.prove(begun, signed(certification(own, challenge)))
        assert denied(again) == (404, "Session not found"), "a challenge is good once"
        for proof in (
            signed(certification(own, challenge)),  # of the session before
            (b"", b""),
            (b"\xff", own.sign(b"\xff")),
        ):
            refused = await machine.prove(await machine.begin(), proof)
            assert (refused.code, refused.attributes["evaluation"]) == (401, "fail")
            assert "token" not in refused.attributes
        makers: list[Callable[[bytes], tuple[bytes, bytes]]] = [
            lambda fresh: signed(certification(OTHER_KEY, fresh), OTHER_KEY),  # by another key
            lambda fresh: signed(certification(own, fresh, name=name_of(OTHER_KEY))),  # of another key
            lambda fresh: (certification(own, fresh), own.sign(b"something else")),
            lambda fresh: signed(certification(own, fresh, kind=0x8018)),  # no certification
        ]
        for make in makers:
            fresh = await machine.begin()
            text = fresh.attributes["authentication_requested"][0]["chosen_parameters"]["challenge"]
            refused = await machine.prove(fresh, make(base64.b64decode(text)))
            assert (refused.code, refused.attributes["evaluation"]) == (401, "fail")
            assert denied(await machine.prove(fresh)) == (404, "Session not found"), "and is over then"
        token = passed.attributes["token"]
        assert (await machine.negotiate(token=token)).code == 201, "nobody was logged out by that"

    scene(tmp_path, act, KEYLIME_VERIFIER_SESSION_CREATE_RATE_LIMIT_PER_AGENT="100")


def test_n16_strangers_and_latecomers_learn_nothing(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, machine: PushingMachine) -> None:
        stranger = PushingMachine(verifier, "stranger")
        begun = await stranger.begin()
        assert begun.code == 200, "who is known is not told"
        refused = await stranger.prove(begun)
        assert (refused.code, refused.attributes["evaluation"]) == (200, "fail")
        assert "token_expires_at" not in refused.attributes
        late = await machine.begin()
        await verifier.change("UPDATE push_sessions SET created_at = created_at - 61")
        refused = await machine.prove(late)
        assert (refused.code, refused.attributes["evaluation"]) == (200, "fail")
        assert refused.attributes["token_expires_at"] is None

    scene(tmp_path, act)


@pytest.mark.parametrize("more", [{16, 0}, {16, 23}])
def test_q20_a_pushed_quote_of_more_than_was_asked_for_fails(tmp_path: Path, more: set[int]) -> None:
    async def act(_verifier: RunningVerifier, machine: PushingMachine) -> None:
        await machine.log_in()
        negotiated = await machine.negotiate()
        parameters = negotiated.attributes["evidence_requested"][0]["chosen_parameters"]
        quote = machine.quote(parameters, more=frozenset(more))
        assert (await machine.submit(negotiated, machine.evidence(negotiated, quote))).code == 202
        status = await machine.until_judged("FAIL")
        assert status["last_event_id"] == "qoute_validation.quote_validation"

    scene(tmp_path, act)


def test_q21_a_pushed_quote_of_another_bank_fails(tmp_path: Path) -> None:
    async def act(_verifier: RunningVerifier, machine: PushingMachine) -> None:
        await machine.log_in()
        negotiated = await machine.negotiate()
        parameters = negotiated.attributes["evidence_requested"][0]["chosen_parameters"]
        quote = machine.quote(parameters, bank=HashAlgorithm.SHA1)
        assert (await machine.submit(negotiated, machine.evidence(negotiated, quote))).code == 202
        await machine.until_judged("FAIL")

    scene(tmp_path, act)


def challenge_of(negotiated: Answer) -> str:
    text: str = negotiated.attributes["evidence_requested"][0]["chosen_parameters"]["challenge"]
    return text


def test_a_pushed_quote_is_for_one_challenge_once_and_in_time(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, machine: PushingMachine) -> None:
        await machine.log_in()
        first = await machine.negotiate()
        second = await machine.negotiate()
        old = await machine.submit(first)
        assert (old.code, old.error["code"]) == (403, "old_attestation")
        evidence = machine.evidence(second)
        assert (await machine.submit(second, evidence)).code == 202
        again = await machine.submit(second, evidence)
        assert (again.code, again.error["code"]) == (403, "evidence_immutable")
        await machine.until_judged("PASS", 1)
        await machine.hurry()
        third = await machine.negotiate()
        assert (await machine.submit(third, evidence)).code == 202, "an earlier quote is well-formed"
        status = await machine.until_judged("FAIL")
        assert status["last_event_id"] == "qoute_validation.quote_validation"
        await machine.hurry()
        fourth = await machine.negotiate()
        await verifier.change("UPDATE push_attestations SET expires_at = expires_at - 1801")
        nothing = {"data": {"type": "error", "attributes": {"evidence_collected": []}}}
        for document in (machine.evidence(fourth), nothing):
            late = await machine.submit(fourth, document)
            assert (late.code, late.error["code"]) == (403, "challenges_expired")
        fifth = await machine.negotiate()
        failed = await machine.submit(fifth, nothing)
        assert (failed.code, failed.error["code"]) == (400, "invalid_request")
        assert (await machine.submit(fifth)).code == 202, "the challenge was not used up by that"
        challenges = [challenge_of(one) for one in (first, second, third, fourth)]
        assert len(set(challenges)) == 4
        assert {len(base64.b64decode(one)) for one in challenges} == {16}

    scene(tmp_path, act)


def test_when_the_databases_clock_goes_back_nothing_lives_longer_and_nobody_waits_longer(
    tmp_path: Path,
) -> None:
    async def act(verifier: RunningVerifier, machine: PushingMachine) -> None:
        begun = await machine.begin()
        for _ in range(14):
            await machine.begin()
        assert (await machine.begin()).code == 429
        token = await machine.prove(begun)
        assert token.attributes["evaluation"] == "pass"
        machine.token = token.attributes["token"]
        await verifier.change(
            "UPDATE push_sessions SET created_at = created_at + 3600 WHERE state <> 'active'"
        )
        late = await machine.begin()
        assert late.code == 200, "sessions of the future count no more"
        await machine.attest()
        await machine.until_judged("PASS", 1)
        await verifier.change(
            "UPDATE push_attestations SET received_at = received_at + 7200, "
            "evidence_at = evidence_at + 7200, expires_at = expires_at + 7200"
        )
        negotiated = await machine.negotiate()
        assert negotiated.code == 201, "who was here in the future is not told to come then"
        await verifier.change(
            "UPDATE push_attestations SET received_at = received_at + 7200, expires_at = expires_at + 7200"
        )
        refused = await machine.submit(negotiated)
        assert (refused.code, refused.error["code"]) == (403, "challenges_expired")
        await verifier.change(
            "UPDATE push_sessions SET created_at = created_at + 3600, "
            "token_expires_at = token_expires_at + 3600"
        )
        assert denied(await machine.negotiate()) == (401, "Authentication token expired")
        refused = await machine.prove(late)
        assert (refused.code, refused.attributes["evaluation"]) == (200, "fail")

    scene(tmp_path, act)


def test_what_is_too_long_or_leads_nowhere_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, machine: PushingMachine) -> None:
        await machine.log_in()
        offer = machine.offer()
        key = offer["data"]["attributes"]["evidence_supported"][0]["capabilities"]["certification_keys"][0]
        key["local_identifier"] = 9000 * "\N{CJK UNIFIED IDEOGRAPH-4E00}"  # 27 kB, and twice in what is kept
        sent = json.dumps(offer, ensure_ascii=False).encode()
        refused = await machine.negotiate(sent)
        assert (refused.code, refused.error["code"]) == (422, "invalid_resource_data")
        key["local_identifier"] = 40_000 * "0"
        assert (await machine.negotiate(offer)).code == 413
        negotiated = await machine.negotiate()
        base = "/v3.0/agents/pushing-1/attestations/"
        for number in ("7", "-1", "0x0", "1e3", "%D9%A1", "00000000000", "latest%00", "none"):
            evidence = machine.evidence(negotiated)
            lost = await machine.call("PATCH", base + number, evidence, token=machine.token)
            assert lost.code in (400, 404), number
        long = machine.evidence(negotiated)
        items = long["data"]["attributes"]["evidence_collected"]
        items[0]["data"]["signature"] = 5000 * "A"
        refused = await machine.submit(negotiated, long)
        assert refused.code == 422
        assert refused.error["source"]["pointer"] == "/data/attributes/evidence/0/data/signature"
        doubled = machine.evidence(negotiated)
        doubled["data"]["attributes"]["evidence_collected"] *= 2
        assert (await machine.submit(negotiated, doubled)).code == 422
        nested = b'{"data": ' + 5000 * b"[" + 5000 * b"]" + b"}"
        assert (await machine.submit(negotiated, nested)).code == 400
        assert (
            await machine.call("PATCH", base + "latest", machine.evidence(negotiated), token=machine.token)
        ).code == 202
        await machine.until_judged("PASS", 1)

    scene(tmp_path, act)


def test_challenges_do_not_come_again_after_a_restart(tmp_path: Path) -> None:
    async def play() -> None:
        seen: set[str] = set()
        for number in range(3):
            async with running_verifier(tmp_path, FAST) as verifier:
                machine = PushingMachine(verifier)
                if number == 0:
                    await machine.add()
                for _ in range(3):
                    begun = await machine.begin()
                    text = begun.attributes["authentication_requested"][0]["chosen_parameters"]["challenge"]
                    seen.add(text)
                await machine.log_in()
                for _ in range(5):
                    seen.add(challenge_of(await machine.negotiate()))
        assert len(seen) == 24

    asyncio.run(play())


def test_s8_a_silent_machine_is_overdue_whatever_process_is_asked_after_a_restart_too(tmp_path: Path) -> None:
    async def play() -> None:
        async with running_verifier(tmp_path, FAST) as verifier:
            machine = PushingMachine(verifier)
            await machine.add()
            await machine.attest()
            await machine.until_judged("PASS", 1)
        query_database(tmp_path, "UPDATE pushing SET deadline = deadline - 36000")
        async with (
            running_verifier(tmp_path, FAST) as verifier,
            running_verifier(tmp_path, FAST) as other,
        ):
            for one in (verifier, other):
                machine.verifier = one
                assert (await machine.status())["attestation_status"] == "TIMEOUT"
            await machine.attest()
            await machine.until_judged("PASS", 2)

    asyncio.run(play())


def test_s8_silence_makes_no_failure_better_and_is_told_once(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, machine: PushingMachine) -> None:
        await machine.attest()
        await machine.until_passed(1)
        await machine.until_judged("TIMEOUT")

        ((message,),) = await eventually(lambda: verifier.rows("SELECT message FROM revocations"))
        assert "internal.verifier.overdue" in message
        await machine.attest()
        await machine.until_passed(2)
        machine.machine.measure("/usr/bin/evil", b"evil")
        await machine.attest()
        await machine.until_judged("FAIL")
        await verifier.change("UPDATE pushing SET deadline = deadline - 3600")
        assert (await machine.status())["attestation_status"] == "FAIL"
        machine.boot()
        await machine.attest()
        status = await machine.until_judged("FAIL", 3)
        assert status["last_findings"], "why it stands as failed"
        assert (await verifier.admin("PUT", "/v2.6/agents/pushing-1/reactivate")).code == 200
        await machine.until_judged("PENDING")
        await machine.attest()
        await machine.until_passed(4)
        assert (await machine.status())["attestation_status"] != "FAIL"

    scene(tmp_path, act, KEYLIME_VERIFIER_QUOTE_INTERVAL="0.2")


def test_bodies_that_are_no_evidence_use_no_challenge_up(tmp_path: Path) -> None:
    async def act(_verifier: RunningVerifier, machine: PushingMachine) -> None:
        await machine.log_in()
        negotiated = await machine.negotiate()
        right = machine.evidence(negotiated)
        nothing = {"data": {"type": "error", "attributes": {"evidence_collected": []}}}
        for document, code in (
            (nothing, 400),
            (b"{", 400),
            ({"data": {"type": "attestation", "attributes": {}}}, 400),
            ({"data": {"type": "attestation", "attributes": {"evidence_collected": []}}}, 422),
            ({"data": {"type": "attestation", "attributes": {"evidence_collected": 1}}}, 422),
            ({"data": {"type": "attestation", "attributes": {"evidence_collected": [1, 2]}}}, 422),
        ):
            answer = await machine.submit(negotiated, document)
            assert answer.code == code, document
            if code == 422:
                assert answer.error["source"]["pointer"].startswith("/data/attributes/evidence")
        assert (await machine.submit(negotiated, right, content_type="application/json")).code == 415
        empty = await machine.call("PATCH", negotiated.headers["location"], b"", token=machine.token)
        assert (empty.code, empty.body) == (415, None)
        assert (await machine.submit(negotiated, right)).code == 202

    scene(tmp_path, act)


def test_what_an_operator_or_another_proof_has_ended_elsewhere_is_over_at_once_everywhere(
    tmp_path: Path,
) -> None:
    async def play() -> None:
        async with (
            running_verifier(tmp_path, FAST) as here,
            running_verifier(tmp_path, FAST) as elsewhere,
        ):
            machine = PushingMachine(here)
            await machine.add()
            await machine.attest()
            await machine.until_passed(1)
            await machine.attest()
            await machine.until_passed(2)
            old = machine.token
            machine.verifier = elsewhere
            await machine.log_in()
            machine.verifier = here
            await machine.hurry()
            assert denied(await machine.negotiate(token=old)) == (401, "Invalid authentication token")
            await machine.attest()
            await machine.until_passed(3)
            await machine.hurry()
            negotiated = await machine.negotiate()
            path = f"/v2.6/agents/{machine.agent_id}"
            assert (await elsewhere.admin("PUT", f"{path}/stop")).code == 200
            for refused in (await machine.submit(negotiated), await machine.negotiate()):
                assert (refused.code, refused.error["code"]) == (403, "agent_attestations_disabled")
            assert (await elsewhere.admin("PUT", f"{path}/reactivate")).code == 200
            await machine.attest()
            await machine.until_passed(4)
            assert (await elsewhere.admin("DELETE", path)).code == 200
            await machine.hurry()
            gone = await machine.negotiate()
            assert (gone.code, gone.error["code"]) == (404, "not_found")

    asyncio.run(play())


def test_a_policy_that_is_replaced_elsewhere_judges_the_next_evidence(tmp_path: Path) -> None:
    async def play() -> None:
        async with (
            running_verifier(tmp_path, FAST) as here,
            running_verifier(tmp_path, FAST) as elsewhere,
        ):
            machine = PushingMachine(here)
            policy = {"runtime_policy": b64(policy_of(machine.files).encode())}
            assert (await here.admin("POST", "/v2.6/allowlists/shared", policy)).code == 201
            await machine.add(runtime_policy="", runtime_policy_name="shared")
            for count in (1, 2):
                await machine.attest()
                await machine.until_passed(count)
            stricter = {"runtime_policy": b64(policy_of({"boot_aggregate": b"another boot"}).encode())}
            assert (await elsewhere.admin("PUT", "/v2.6/allowlists/shared", stricter)).code == 201
            await machine.attest()
            await machine.until_judged("FAIL")

    asyncio.run(play())


@pytest.mark.parametrize("is_new", [True, False])
def test_q26_a_clock_that_no_database_holds_is_a_failure_and_holds_nobody_up(
    tmp_path: Path, is_new: bool
) -> None:
    async def act(verifier: RunningVerifier, machine: PushingMachine) -> None:
        if not is_new:
            await machine.attest()
            await machine.until_passed(1)
        machine.machine.clock = 1 << 63  # as TPM2_ClockSet does it
        other = PushingMachine(verifier, "pushing-2")
        await other.add()
        await asyncio.gather(machine.attest(), other.attest())
        status = await machine.until_judged("FAIL")
        assert status["last_event_id"] == "qoute_validation.quote_validation"
        await other.until_passed(1)

    scene(tmp_path, act)


LEAST = 32 << 10  # bytes that the smallest body counts as
FRAMINGS = ("Content-Length: 30000", "Transfer-Encoding: chunked")


def heads(machine: PushingMachine) -> list[bytes]:
    """The beginnings of requests to each route that takes a body of strangers, with tokens that are none."""
    base = f"/v3.0/agents/{machine.agent_id}/attestations"
    token = f"{uuid.uuid4()}.{'A' * 43}"
    return [
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: application/vnd.api+json\r\n{framing}\r\n\r\n".encode()
        for method, path in (
            ("POST", "/v3.0/sessions"),
            ("PATCH", f"/v3.0/sessions/{uuid.uuid4()}"),
            ("POST", base),
            ("PATCH", f"{base}/0"),
            ("PATCH", f"{base}/latest"),
        )
        for framing in FRAMINGS
    ]


def test_n7_bodies_that_come_byte_by_byte_hold_nothing_for_long_and_nobody_up(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, machine: PushingMachine) -> None:
        assert verifier.verifier is not None
        server = verifier.verifier._server
        before = server.limits.body_timeout_s
        assert before <= 30, "what one stranger may take"
        server.limits = replace(server.limits, body_timeout_s=2.0)
        streams = []
        for head in heads(machine):
            stream = await asyncio.open_connection("127.0.0.1", verifier.port, ssl=machine.context)
            stream[1].write(head)
            streams.append(stream)
        own = OwnTime()

        async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, piece: bytes) -> bytes:
            closed = asyncio.create_task(reader.read())
            while not (await asyncio.wait([closed], timeout=0.05))[0]:
                writer.write(piece)
            writer.transport.abort()
            with contextlib.suppress(OSError):
                return await closed
            return b""

        pieces = (b"x", b"1\r\nx\r\n") * (len(streams) // 2)
        dripping = asyncio.gather(*(drip(*one, piece) for one, piece in zip(streams, pieces, strict=True)))
        await eventually(lambda: server.stranger_bodies.in_use > 0)
        await machine.attest()
        await machine.until_judged("PASS", 1)
        assert not dripping.done(), "others were served meanwhile"
        answers = await dripping
        assert own.passed_s() < 10
        assert all(b" 20" not in answer[:15] for answer in answers)
        await eventually(lambda: server.stranger_bodies.in_use == 0 and not server.exchanges)
        assert verifier.rows("SELECT count(*) FROM push_sessions") == [(1,)], "nothing was begun by them"

    scene(tmp_path, act)


def test_n7_a_body_that_comes_slowly_yields_its_room_to_one_that_comes_now(tmp_path: Path) -> None:
    async def act(verifier: RunningVerifier, machine: PushingMachine) -> None:
        assert verifier.verifier is not None
        server = verifier.verifier._server
        slow = []
        for head in heads(machine):
            _, writer = await asyncio.open_connection("127.0.0.1", verifier.port, ssl=machine.context)
            writer.write(head + b"x")
            slow.append(writer)
        await eventually(lambda: server.stranger_bodies.in_use >= len(slow) * LEAST)
        # All come from one address, which may have a quarter: that is full now.
        await machine.attest()
        await machine.until_judged("PASS", 1)
        for writer in slow:
            writer.transport.abort()

    room = 4 * len(FRAMINGS) * 5 * LEAST
    bounds = {"MAX_STRANGER_BODIES": room, "MAX_EVIDENCE_SIZE": LEAST}
    scene(tmp_path, act, **{f"KEYLIME_VERIFIER_{name}": str(size) for name, size in bounds.items()})
