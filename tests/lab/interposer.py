"""Software on an agent's machine that answers in the agent's place, with the agent's own certificate and key.

What it passes on it may change: a lie is a function from an honest answer to another one.
"""

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.lab.installation import Control, Machine
from tests.lab.network import Node
from tests.lab.rest import Rest

Results = dict[str, Any]
Lie = Callable[["Seen", Results], Results]


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that came by."""

    method: str
    target: str
    body: bytes

    @property
    def path(self) -> str:
        """Without the version and the query."""
        return "/" + urlsplit(self.target).path.split("/", 2)[2]

    @property
    def query(self) -> dict[str, str]:
        """The query's parameters."""
        return dict(parse_qsl(urlsplit(self.target).query))

    @property
    def document(self) -> dict[str, Any]:
        """The body."""
        return dict(json.loads(self.body))


def honest(_seen: Seen, results: Results) -> Results:
    """No lie."""
    return results


@dataclass(slots=True)
class Interposer:
    """Stands between verifier and agent; `lie` applies to answers with a quote."""

    node: Node
    agent: Rest
    lie: Lie = honest
    seen: list[Seen] = field(default_factory=list)

    @property
    def quotes(self) -> list[Seen]:
        """The requests for a quote so far."""
        return [seen for seen in list(self.seen) if seen.path == "/quotes/integrity"]

    @property
    def revocations(self) -> list[dict[str, Any]]:
        """The revocation messages so far."""
        return [
            json.loads(seen.document["msg"])
            for seen in list(self.seen)
            if seen.path == "/notifications/revocation"
        ]

    def answer(self, seen: Seen) -> tuple[int, bytes]:
        """Status and body for a request."""
        self.seen.append(seen)
        headers = {"Content-Type": "application/json"} if seen.body else {}
        code, data = self.agent.exchange(seen.method, seen.target, seen.body, headers)
        if code != 200 or seen.path != "/quotes/integrity":
            return code, data
        document = json.loads(data)
        return code, json.dumps({**document, "results": self.lie(seen, document["results"])}).encode()


@contextmanager
def interposed(machine: Machine, control: Control, node: Node) -> Iterator[Interposer]:
    """An interposer for a machine's agent, listening on the agent's port of `node`."""
    interposer = Interposer(node, machine.api(control.administrator))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(machine.identity.certificate, machine.identity.key)
    server = _Server((node.ip, 9002), _Handler)
    server.interposer = interposer
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield interposer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingMixIn, HTTPServer):
    interposer: Interposer


class _Handler(BaseHTTPRequestHandler):
    """One request for each connection, so that no thread is left waiting for the next one."""

    server: _Server

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            code, data = self.server.interposer.answer(Seen(self.command, self.path, body))
        except OSError:  # the agent is not there
            code, data = 503, b""
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = _pass_on  # names of the base class

    def log_message(self, format: str, *args: object) -> None:  # as in the base class
        """Nothing: what came by is in `seen`."""


def asked_entries(seen: list[Seen]) -> list[int]:
    """Which IMA entries the quotes were asked to start with."""
    return [int(request.query["ima_ml_entry"]) for request in seen]


def changed(results: Mapping[str, Any], **fields: object) -> Results:
    """An answer with some fields replaced."""
    return {**results, **fields}
