"""REST calls as an operator or an attacker makes them: one connection each, all of it up to the caller."""

import http.client
import json
import ssl
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LIMIT_S = 100.0


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body; `document` is None when the body is no JSON object."""

    code: int
    document: dict[str, Any] | None

    @property
    def status(self) -> str:
        """The text of the envelope."""
        return "" if self.document is None else str(self.document.get("status"))

    @property
    def results(self) -> dict[str, Any]:
        """The results of the envelope."""
        return dict((self.document or {}).get("results") or {})


@dataclass(frozen=True, slots=True)
class Identity:
    """A client certificate with its key."""

    certificate: Path
    key: Path


def client_context(identity: Identity | None) -> ssl.SSLContext:
    """TLS as this client; the server is not checked, for it is the server that is under test."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.key)
    return context


@dataclass(frozen=True, slots=True)
class Rest:
    """A server's REST interface; without `tls` over plain HTTP. Calls raise OSError (ssl.SSLError is one)."""

    host: str
    port: int
    tls: ssl.SSLContext | None

    def request(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One call; `body` is sent as JSON."""
        content = b"" if body is None else json.dumps(body).encode()
        code, data = self.exchange(method, path, content, headers)
        try:
            document = json.loads(data)
        except ValueError:
            document = None
        return Answer(code, document if isinstance(document, dict) else None)

    def exchange(
        self, method: str, path: str, content: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """One call with the bytes as they are; returns status and body."""
        with closing(self._connection()) as connection:
            sent = {"Content-Type": "application/json", **(headers or {})} if content else dict(headers or {})
            connection.request(method, path, content or None, sent)
            with closing(connection.getresponse()) as response:
                return response.status, response.read()

    def _connection(self) -> http.client.HTTPConnection:
        if self.tls is None:
            return http.client.HTTPConnection(self.host, self.port, timeout=_LIMIT_S)
        return http.client.HTTPSConnection(self.host, self.port, timeout=_LIMIT_S, context=self.tls)
