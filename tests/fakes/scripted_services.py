"""A registrar and a verifier on loopback HTTPS that answer from memory and remember what they were asked.

Written from the wire's description, independently of the servers and of the client that is tested with them.
"""

import asyncio
import base64
import json
import ssl
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

from tests.fakes.loopback import LoopbackSite

VERSIONS = {"current_version": "2.5", "supported_versions": ["2.0", "2.3", "2.5", "3.0"]}


@dataclass(frozen=True)
class Call:
    """One request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    body: Any


@dataclass(frozen=True)
class Answer:
    """One scripted answer; without results the envelope's are empty, with `raw` there is no envelope."""

    code: int = 200
    status: str = "Success"
    results: Any = field(default_factory=dict)
    raw: bytes | None = None


class ScriptedServer:
    """A loopback server in a thread of its own, so that programs in other processes can call it."""

    def __init__(self, answer: Callable[[Call], Answer], tls: ssl.SSLContext | None) -> None:
        self.calls: list[Call] = []
        self.port = 0
        self._answer = answer
        self._tls = tls
        self._site: LoopbackSite | None = None

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._await(self._start())
        return self

    def __exit__(self, *_exc_info: object) -> None:
        if self._site is not None:
            self._await(self._site.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def paths(self, method: str) -> list[str]:
        """The paths that were asked for with `method`, in order."""
        return [call.path for call in self.calls if call.method == method]

    def _await(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            await work

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(30)

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{tail:.*}", self._handle)
        self._site = await LoopbackSite.open(app, tls=self._tls)
        self.port = self._site.port

    async def _handle(self, request: web.Request) -> web.Response:
        data = await request.read()
        call = Call(request.method, request.path, dict(request.query), json.loads(data) if data else None)
        self.calls.append(call)
        answer = self._answer(call)
        if answer.raw is not None:
            return web.Response(status=answer.code, body=answer.raw)
        document = {"code": answer.code, "status": answer.status, "results": answer.results}
        return web.Response(status=answer.code, body=json.dumps(document), content_type="application/json")


def _split(call: Call) -> list[str]:
    """The path without its version."""
    return [part for part in call.path.split("/") if part][1:]


class ScriptedRegistrar:
    """Registered agents by id, each with the record that `GET /agents/{id}` gives."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.records: dict[str, dict[str, Any]] = {}
        self.server = ScriptedServer(self.answer, tls)

    def answer(self, call: Call) -> Answer:
        """What a registrar says to `call`."""
        if call.path == "/version":
            return Answer(results=VERSIONS)
        match call.method, _split(call):
            case "GET", ["agents"]:
                return Answer(results={"uuids": list(self.records)})
            case "GET", ["agents", agent] if agent in self.records:
                return Answer(results=self.records[agent])
            case "DELETE", ["agents", agent] if agent in self.records:
                del self.records[agent]
                return Answer()
            case _, ["agents", agent]:
                return Answer(404, f"Agent with ID '{agent}' not found")
        return Answer(404, raw=b"")


class ScriptedVerifier:
    """Agents and policies by name; `delete_rounds` is how often a deleted agent is still seen after a 202."""

    def __init__(self, tls: ssl.SSLContext | None) -> None:
        self.agents: dict[str, dict[str, Any]] = {}
        self.policies: dict[str, dict[str, str]] = {"allowlists": {}, "mbpolicies": {}}
        self.delete_rounds = 0
        self.remarks: dict[str, str] = {}  # of its health; without any it is of an older release
        self.can_update = False  # as our own can, and those of the field cannot
        self.refusals: list[Answer] = []  # of the next requests that add or change an agent
        self.on_add: Callable[[str, dict[str, Any]], None] = lambda _agent, _body: None
        self._leaving: dict[str, int] = {}
        self.server = ScriptedServer(self.answer, tls)

    def answer(self, call: Call) -> Answer:
        """What a verifier says to `call`."""
        if call.path == "/version":
            return Answer(results=VERSIONS)
        if call.path == "/readyz" and self.remarks:
            return Answer(results={"problems": {}, "remarks": self.remarks})
        match call.method, _split(call):
            case "GET", ["agents"]:
                if call.query.get("bulk"):
                    return Answer(results=self.agents)
                return Answer(results={"uuids": [[agent] for agent in self.agents]})
            case method, ["agents", agent]:
                return self._agent(method, agent, call.body)
            case "PUT", ["agents", agent, "reactivate" | "stop"] if agent in self.agents:
                return Answer(raw=b"")
            case method, ["allowlists" | "mbpolicies" as kind]:
                label = "runtimepolicy names" if kind == "allowlists" else "mbpolicy names"
                return Answer(results={label: list(self.policies[kind])})
            case method, ["allowlists" | "mbpolicies" as kind, name]:
                return self._policy(method, kind, name, call.body)
        return Answer(404, raw=b"")

    def _agent(self, method: str, agent: str, body: Any) -> Answer:
        if method in ("POST", "PUT") and self.refusals:
            return self.refusals.pop(0)
        if method == "PUT":
            return self._update(agent, body)
        if method == "POST":
            if agent in self.agents:
                return Answer(409, f"Agent of uuid {agent} already exists. Please use delete or update.")
            self.agents[agent] = status_of(body)
            if "attestation_mode" in body:
                self.agents[agent]["attestation_mode"] = body["attestation_mode"]
            if self.can_update:
                self.agents[agent] |= {"mb_policy_name": None, "runtime_policy_name": agent}
            elif body["runtime_policy"] and not body["runtime_policy_name"]:
                text = base64.b64decode(body["runtime_policy"]).decode()
                self.policies["allowlists"][agent] = text
            self.on_add(agent, body)
            return Answer()
        if self._leaving.get(agent) == 0:
            self.agents.pop(agent, None)
        if agent in self._leaving:
            self._leaving[agent] -= 1
        if agent not in self.agents:
            return Answer(404, "agent id not found")
        if method == "DELETE":
            if self.delete_rounds:
                self._leaving[agent] = self.delete_rounds
                return Answer(202, "Accepted")
            del self.agents[agent]
            self.policies["allowlists"].pop(agent, None)
            return Answer()
        return Answer(results=self.agents[agent])

    def _update(self, agent: str, body: Any) -> Answer:
        if not self.can_update or agent not in self.agents:
            return Answer(400, "uri not supported")
        before = summary_of(self.agents[agent])
        names = {"cloudagent_ip": "ip", "cloudagent_port": "port"}
        for name, value in {**body, **body.get("payload", {})}.items():
            if names.get(name, name) in self.agents[agent]:
                self.agents[agent][names.get(name, name)] = value
        return Answer(results={"before": before, "after": summary_of(self.agents[agent])})

    def _policy(self, method: str, kind: str, name: str, body: Any) -> Answer:
        stored = self.policies[kind]
        if method == "POST" and name in stored:
            return Answer(409, f"Runtime policy with name {name} already exists")
        if method in ("POST", "PUT"):
            stored[name] = body["runtime_policy" if kind == "allowlists" else "mb_policy"]
            return Answer(201, "Created")
        if name not in stored:
            return Answer(404, f"Runtime policy {name} not found")
        if method == "DELETE":
            del stored[name]
            return Answer(204, raw=b"")
        return Answer(results={"name": name, "tmp_policy": None, "runtime_policy": stored[name]})


def status_of(body: dict[str, Any]) -> dict[str, Any]:
    """The status of an agent that was just added with `body`."""
    return {
        "operational_state": 3,
        "v": body["v"],
        "ip": body["cloudagent_ip"],
        "port": int(body["cloudagent_port"]),
        "tpm_policy": body["tpm_policy"],
        "meta_data": body["metadata"],
        "has_mb_refstate": int(body["mb_policy"] is not None),
        "has_runtime_policy": int(bool(body["runtime_policy"])),
        "accept_tpm_hash_algs": body["accept_tpm_hash_algs"],
        "accept_tpm_encryption_algs": body["accept_tpm_encryption_algs"],
        "accept_tpm_signing_algs": body["accept_tpm_signing_algs"],
        "hash_alg": "",
        "enc_alg": "",
        "sign_alg": "",
        "verifier_id": "default",
        "verifier_ip": "127.0.0.1",
        "verifier_port": 8881,
        "severity_level": None,
        "last_event_id": None,
        "attestation_count": 0,
        "last_received_quote": 0,
        "last_successful_attestation": 0,
    }


def summary_of(status: dict[str, Any]) -> dict[str, Any]:
    """What an update tells of an agent with this status."""
    algorithms = ("accept_tpm_hash_algs", "accept_tpm_encryption_algs", "accept_tpm_signing_algs")
    return {
        **{name: status[name] for name in ("ip", "port", "meta_data", *algorithms)},
        "tpm_policy": status["tpm_policy"] or "{}",
        "mtls_cert_hash": None,
        "ak_hash": "00",
        "runtime_policy": status.get("runtime_policy_name"),
        "runtime_policy_hash": None,
        "mb_policy": status.get("mb_policy_name"),
        "mb_policy_hash": None,
        "ima_sign_verification_keys_hash": None,
        "has_payload": status["v"] is not None,
    }
