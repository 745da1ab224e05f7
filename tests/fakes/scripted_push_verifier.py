"""A verifier of the push model on loopback HTTPS, which proves what it is sent and remembers it.

Written from docs/reference/push-model.md, with plain dictionaries: what an agent sends is looked at as others
would. `instead` has answers by step, which are given before the usual ones.
"""

import base64
import collections
import json
import os
import ssl
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

from keylime.tpm.keys import AttestationKey
from keylime.tpm.pcr import PcrSelection, PcrValues
from keylime.tpm.quote import parse_quote, verify_quote
from keylime.tpm.signature import parse_signature, verify_signature
from keylime.tpm.structures import CertifyInfo, parse_attest
from tests.fakes.loopback import LoopbackSite

TIME = "2026-03-01T12:00:00.000000+00:00"
JSON_API = "application/vnd.api+json"


@dataclass(frozen=True)
class Scripted:
    """One answer that is given in the place of the usual one; `hang_up` is none."""

    code: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    hang_up: bool = False


@dataclass(frozen=True)
class Received:
    """One request: `step` is open, prove, negotiate or deliver."""

    step: str
    headers: dict[str, str]
    attributes: dict[str, Any]
    kind: str


@dataclass
class Evidence:
    """Evidence that was taken, its quote verified."""

    values: PcrValues | None
    logs: dict[str, dict[str, Any]]
    offered: list[dict[str, Any]]
    boot_time: str


class ScriptedPushVerifier:
    """Knows `added` agents by their AK, and asks for `pcrs` and `logs`."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self.added: dict[str, AttestationKey] = {}
        self.pcrs: list[int] = [10]
        self.logs: list[str] = ["ima_log"]
        self.offset = 0
        self.next_s = 1
        self.instead: dict[str, collections.deque[Scripted]] = collections.defaultdict(collections.deque)
        self.received: list[Received] = []
        self.evidence: list[Evidence] = []
        self.logins = 0
        self.connections: set[tuple[str, int]] = set()
        self.port = 0
        self._tls = tls
        self._site: LoopbackSite | None = None
        self._challenges: dict[str, tuple[str, bytes]] = {}  # session -> agent, challenge
        self._tokens: dict[str, str] = {}  # agent -> token
        self._asked: dict[
            str, tuple[bytes, list[dict[str, Any]], Any]
        ] = {}  # path -> challenge, items, offer

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listens; again on the same port after `stop`."""
        app = web.Application(client_max_size=1 << 26)
        app.on_response_prepare.append(_echo_id)
        app.router.add_post("/v3.0/sessions", self._open)
        app.router.add_patch("/v3.0/sessions/{session}", self._prove)
        app.router.add_post("/v3.0/agents/{agent}/attestations", self._negotiate)
        app.router.add_patch("/v3.0/agents/{agent}/attestations/{number}", self._deliver)
        self._site = await LoopbackSite.open(app, port=self.port, tls=self._tls)
        self.port = self._site.port

    async def stop(self) -> None:
        """Falls silent."""
        site, self._site = self._site, None
        if site is not None:
            await site.close()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def forget_tokens(self) -> None:
        """All tokens are over."""
        self._tokens.clear()

    def steps(self) -> list[str]:
        """What was asked, in order."""
        return [one.step for one in self.received]

    async def _take(
        self, step: str, request: web.Request
    ) -> tuple[dict[str, Any], web.StreamResponse | None]:
        """The attributes of a request, and the answer if one is scripted."""
        peer = request.transport.get_extra_info("peername") if request.transport else None
        if peer is not None:
            self.connections.add(peer[:2])
        document = json.loads(await request.read())
        assert set(document) <= {"data", "meta", "links", "jsonapi"}
        assert set(document["data"]) <= {"type", "id", "attributes"}
        attributes = document["data"]["attributes"]
        assert attributes
        assert all(value is not None for value in attributes.values())
        self.received.append(Received(step, dict(request.headers), attributes, document["data"]["type"]))
        is_session = step in ("open", "prove")
        assert request.content_type == JSON_API or (is_session and request.content_type == "application/json")
        if not self.instead[step]:
            return attributes, None
        scripted = self.instead[step].popleft()
        if scripted.hang_up:
            if request.transport is not None:
                request.transport.abort()
            return attributes, web.Response(status=500)
        return attributes, _answer(scripted.code, scripted.body, **scripted.headers)

    async def _open(self, request: web.Request) -> web.StreamResponse:
        attributes, answer = await self._take("open", request)
        if answer is not None:
            return answer
        offered = [one["authentication_type"] for one in attributes["authentication_supported"]]
        assert offered == ["tpm_pop"]
        session, challenge = str(uuid.uuid4()), os.urandom(16)
        self._challenges[session] = attributes["agent_id"], challenge
        return _answer(200, _session(session, attributes["agent_id"], challenge))

    async def _prove(self, request: web.Request) -> web.StreamResponse:
        attributes, answer = await self._take("prove", request)
        if answer is not None:
            return answer
        session = request.match_info["session"]
        agent, challenge = self._challenges.pop(session)
        assert agent == attributes["agent_id"]
        (proof,) = attributes["authentication_provided"]
        assert (proof["authentication_class"], proof["authentication_type"]) == ("pop", "tpm_pop")
        key, data = self.added.get(agent), proof["data"]
        if key is None:
            return _answer(200, _judged(session, agent, challenge, data, None))
        if not _is_proven(key, challenge, _bytes(data["message"]), _bytes(data["signature"])):
            return _answer(401, _judged(session, agent, challenge, data, None))
        self.logins += 1
        self._tokens[agent] = f"{session}.{'s' * 43}"
        return _answer(200, _judged(session, agent, challenge, data, self._tokens[agent]))

    async def _negotiate(self, request: web.Request) -> web.StreamResponse:
        attributes, answer = await self._take("negotiate", request)
        if answer is None:
            answer = self._refused(request)
        if answer is not None:
            return answer
        agent, challenge = request.match_info["agent"], os.urandom(16)
        asked = list(self._items(attributes["evidence_supported"], challenge))
        path = f"/v3.0/agents/{agent}/attestations/{len(self._asked)}"
        self._asked[path] = challenge, asked, attributes
        shown = {
            "stage": "awaiting_evidence",
            "evidence_requested": asked,
            "system_info": attributes["system_info"],
            "capabilities_received_at": TIME,
            "challenges_expire_at": TIME,
        }
        body = {
            "data": {"type": "attestation", "attributes": shown, "links": {"self": path}},
            "links": {"self": request.path},
            "jsonapi": {"version": "1.1"},
        }
        return _answer(201, body, Location=path)

    async def _deliver(self, request: web.Request) -> web.StreamResponse:
        attributes, answer = await self._take("deliver", request)
        if answer is None:
            answer = self._refused(request)
        if answer is not None:
            return answer
        if self.received[-1].kind != "attestation":
            error = {"status": "400", "code": "invalid_request", "detail": "another type"}
            return _answer(400, {"errors": [error]})
        challenge, asked, offer = self._asked[request.path]
        collected = attributes["evidence_collected"]
        kinds = [(one["evidence_class"], one["evidence_type"]) for one in collected]
        assert kinds == [(one["evidence_class"], one["evidence_type"]) for one in asked]
        data = {one["evidence_type"]: one["data"] for one in collected}
        quote = data.pop("tpm_quote", None)
        values = None
        if quote is not None:
            (pcrs,) = (
                one["chosen_parameters"]["selected_subjects"]
                for one in asked
                if one["evidence_type"] == "tpm_quote"
            )
            wanted = frozenset(next(iter(pcrs.values())))
            values = self._verified(request.match_info["agent"], challenge, quote, wanted)
        boot_time = offer["system_info"]["boot_time"]
        self.evidence.append(Evidence(values, data, offer["evidence_supported"], boot_time))
        shown = {
            "stage": "evaluating_evidence",
            "evidence": [
                {**wanted, "capabilities": _offered(offer, wanted["evidence_type"]), "data": item["data"]}
                for wanted, item in zip(asked, collected, strict=True)
            ],
        }
        body = {
            "data": {"type": "attestation", "attributes": shown},
            "jsonapi": {"version": "1.1"},
            "meta": {"seconds_to_next_attestation": self.next_s},
        }
        return _answer(202, body)

    def _items(self, offered: list[dict[str, Any]], challenge: bytes) -> Iterator[dict[str, Any]]:
        by_kind = {one["evidence_type"]: one for one in offered}
        if self.pcrs:
            capabilities = by_kind["tpm_quote"]["capabilities"]
            key = capabilities["certification_keys"][0]
            bank = key["allowable_hash_algorithms"][0]
            parameters = {
                "signature_scheme": key["allowable_signature_schemes"][0],
                "challenge": base64.b64encode(challenge).decode(),
                "hash_algorithm": bank,
                "selected_subjects": {bank: self.pcrs, "sha1": None},
                "certification_key": key,
            }
            yield _item("certification", "tpm_quote", parameters)
        for kind in self.logs:
            form = "text/plain" if kind == "ima_log" else "application/octet-stream"
            offset = {"starting_offset": self.offset} if kind == "ima_log" else {}
            yield _item("log", kind, {"format": form, **offset})

    def _verified(
        self, agent: str, challenge: bytes, data: dict[str, str], pcrs: frozenset[int]
    ) -> PcrValues:
        text = f"r{data['message']}:{data['signature']}:{data['subject_data']}"
        key, quote = self.added[agent], parse_quote(text)
        # Agents in the field quote PCR 16 as well, which means nothing here.
        found = frozenset(quote.pcrs.values)
        assert found in (pcrs, pcrs | {16})
        return verify_quote(quote, key, challenge, PcrSelection(key.scheme_hash, found)).pcrs

    def _refused(self, request: web.Request) -> web.StreamResponse | None:
        token = self._tokens.get(request.match_info["agent"])
        if token is not None and request.headers.get("Authorization") == f"Bearer {token}":
            return None
        error = {"status": "401", "title": "Unauthorized", "detail": "Invalid authentication token"}
        return _answer(401, {"errors": [error]})


async def _echo_id(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["X-Request-ID"] = request.headers.get("X-Request-ID", "")


def _offered(offer: dict[str, Any], kind: str) -> dict[str, Any]:
    (capabilities,) = (
        one["capabilities"] for one in offer["evidence_supported"] if one["evidence_type"] == kind
    )
    return dict(capabilities)


def _answer(code: int, body: Any, **headers: str) -> web.StreamResponse:
    content = b"" if body is None else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.Response(status=code, body=content, headers={"Content-Type": "application/json", **named})


def _item(evidence_class: str, evidence_type: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        "evidence_class": evidence_class,
        "evidence_type": evidence_type,
        "chosen_parameters": parameters,
    }


def _session(session: str, agent: str, challenge: bytes) -> dict[str, Any]:
    requested = {
        "authentication_class": "pop",
        "authentication_type": "tpm_pop",
        "chosen_parameters": {"challenge": base64.b64encode(challenge).decode()},
    }
    attributes = {
        "agent_id": agent,
        "authentication_requested": [requested],
        "created_at": TIME,
        "challenges_expire_at": TIME,
    }
    return {"data": {"type": "session", "id": session, "attributes": attributes}}


def _judged(
    session: str, agent: str, challenge: bytes, data: dict[str, str], token: str | None
) -> dict[str, Any]:
    judged = {
        "authentication_class": "pop",
        "authentication_type": "tpm_pop",
        "chosen_parameters": {"challenge": base64.b64encode(challenge).decode()},
        "data": data,
    }
    attributes: dict[str, Any] = {
        "agent_id": agent,
        "evaluation": "fail" if token is None else "pass",
        "authentication": [judged],
        "created_at": TIME,
        "challenges_expire_at": TIME,
        "response_received_at": TIME,
    }
    if token is not None:
        attributes |= {"token": token, "token_expires_at": TIME}
    return {"data": {"type": "session", "id": session, "attributes": attributes}}


def _is_proven(key: AttestationKey, challenge: bytes, message: bytes, signature: bytes) -> bool:
    attest = parse_attest(message)
    verify_signature(key, parse_signature(signature), message)
    about = attest.attested
    return isinstance(about, CertifyInfo) and about.name == key.name and attest.extra_data == challenge


def _bytes(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
