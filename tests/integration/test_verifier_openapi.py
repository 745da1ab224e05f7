"""The verifier against its own description: generated calls, good and bad, are answered as it says."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import HealthCheck, Phase, given, settings

from tests.fakes.running_verifier import RunningVerifier, running_verifier, verifier_authority
from tests.fakes.tls_material import client_context

schemathesis = pytest.importorskip("schemathesis")
requests = pytest.importorskip("requests")

BUDGET_S = 25.0
EXAMPLES = 8


def test_the_description_is_for_anyone_and_about_itself_too(tmp_path: Path) -> None:
    async def play() -> None:
        async with running_verifier(tmp_path) as verifier:
            nobody = client_context(verifier_authority())
            answer = await verifier.call("GET", "/openapi.json", nobody)
            assert answer.code == 200
            assert answer.body["openapi"].startswith("3.1")
            assert "/openapi.json" in answer.body["paths"]

    asyncio.run(play())


def test_calls_made_from_the_description_are_answered_as_it_says(tmp_path: Path) -> None:
    async def play() -> None:
        async with running_verifier(tmp_path / "work") as verifier:
            answer = await verifier.admin("GET", "/openapi.json")
            begun = time.monotonic()
            called = await asyncio.to_thread(_call_everything, verifier, answer.body, tmp_path)
            operations = {
                (method.upper(), path) for path, methods in answer.body["paths"].items() for method in methods
            }
            assert called == operations or time.monotonic() - begun > BUDGET_S
            assert verifier.rows("SELECT * FROM agents") == [], "no generated agent is complete"

    asyncio.run(play())


def _call_everything(
    verifier: RunningVerifier, document: dict[str, Any], directory: Path
) -> set[tuple[str, str]]:
    """Makes calls for every operation, as an administrator. Returns which were called."""
    issued = verifier_authority().issue("operator")
    ca, certificate, key = directory / "ca.pem", directory / "operator.pem", directory / "operator.key"
    verifier_authority().write(ca)
    certificate.write_text(issued.pem)
    key.write_bytes(issued.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    schema = schemathesis.openapi.from_dict(document)
    operations = [result.ok() for result in schema.get_all_operations()]
    called = set()
    end = time.monotonic() + BUDGET_S
    with requests.Session() as session:
        session.trust_env = False
        trust = {"session": session, "cert": (str(certificate), str(key)), "verify": str(ca)}
        for operation in operations:
            if time.monotonic() > end:
                break  # a slow machine: what was called so far has to do
            _call(operation, {"base_url": f"https://127.0.0.1:{verifier.port}", **trust}, end)
            called.add((operation.method.upper(), operation.path))
    return called


def _call(operation: Any, where: dict[str, Any], end: float) -> None:
    checks = [
        schemathesis.checks.not_a_server_error,
        schemathesis.specs.openapi.checks.status_code_conformance,
        schemathesis.specs.openapi.checks.response_schema_conformance,
    ]
    modes = schemathesis.GenerationMode

    for mode in (modes.POSITIVE, modes.NEGATIVE):
        if mode is modes.NEGATIVE and not list(operation.body) and not list(operation.query):
            continue

        @settings(
            max_examples=EXAMPLES,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def call(case: Any) -> None:
            response = case.call(**where)
            case.validate_response(response, checks=checks)

        call()
