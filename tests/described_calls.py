"""Calls made from a program's own OpenAPI description, good and bad, each answer held to it.

Needs schemathesis, which brings requests.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import requests
import schemathesis
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from tests.fakes.tls_material import Authority

_CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    response_schema_conformance,
]
_MODES = schemathesis.GenerationMode


@dataclass(frozen=True)
class Described:
    """A program at `base_url` that says `document` of itself; `trust` is what requests is called with."""

    document: dict[str, Any]
    base_url: str
    trust: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def to_administrators(
        cls, document: dict[str, Any], base_url: str, authority: Authority, directory: Path
    ) -> Self:
        """Called with a certificate of `authority`, which has made the program's too."""
        issued = authority.issue("operator")
        ca, certificate, key = directory / "ca.pem", directory / "operator.pem", directory / "operator.key"
        authority.write(ca)
        certificate.write_text(issued.pem)
        key.write_bytes(issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return cls(document, base_url, {"cert": (str(certificate), str(key)), "verify": str(ca)})

    def call(self, method: str, path: str, **parts: Any) -> Any:
        """The `results` of a call that succeeds; `parts` are path_parameters, query and body of a case."""
        operation = schemathesis.openapi.from_dict(self.document)[path][method]
        case = operation.Case(**parts)
        with requests.Session() as session:
            session.trust_env = False
            response = case.call(base_url=self.base_url, session=session, **self.trust)
        case.validate_response(response, checks=_CHECKS)
        assert response.status_code == 200, response.text
        return response.json()["results"]

    def call_everything(self, *, examples: int, budget_s: float) -> set[tuple[str, str]]:
        """Which operations were called in that time, one after the other; none whose answer has no end."""
        called = set()
        end = time.monotonic() + budget_s
        with requests.Session() as session:
            session.trust_env = False
            where = {"base_url": self.base_url, "session": session, **self.trust}
            schema: Any = schemathesis.openapi.from_dict(self.document)
            for operation in [result.ok() for result in schema.get_all_operations()]:
                if time.monotonic() > end:
                    break  # a slow machine: what was called so far has to do
                if (operation.method.upper(), operation.path) not in self.operations:
                    continue
                _call(operation, where, examples)
                called.add((operation.method.upper(), operation.path))
        return called

    @property
    def operations(self) -> set[tuple[str, str]]:
        """All that are described, but for streams."""
        return {
            (method.upper(), path)
            for path, methods in self.document["paths"].items()
            for method, operation in methods.items()
            if "text/event-stream" not in operation["responses"].get("200", {}).get("content", {})
        }


def _call(operation: Any, where: dict[str, Any], examples: int) -> None:
    for mode in (_MODES.POSITIVE, _MODES.NEGATIVE):
        if mode is _MODES.NEGATIVE and not list(operation.body) and not list(operation.query):
            continue

        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def call(case: Any) -> None:
            response = case.call(**where)
            case.validate_response(response, checks=_CHECKS)

        call()
