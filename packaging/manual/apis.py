"""The routes of all three daemons, with nothing behind them, and the OpenAPI documents made of them.

python packaging/manual/apis.py DIRECTORY     writes registrar.json, verifier.json and agent.json
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from keylime.http.openapi import Api, describe_api, openapi_route
from keylime.http.probes import probe_routes
from keylime.http.routing import Route
from keylime.service.health import Health
from keylime_agent.handlers import AGENT_API, AgentRoutes
from keylime_registrar.handlers import REGISTRAR_API, Handlers, reading_route
from keylime_verifier.agents.pushing import AttestationMode
from keylime_verifier.api.agent_handlers import AgentHandlers
from keylime_verifier.api.event_streams import EventHandlers
from keylime_verifier.api.history_handlers import HistoryHandlers
from keylime_verifier.api.policy_handlers import REFERENCE_STATES, RUNTIME_POLICIES, PolicyHandlers
from keylime_verifier.api.push_handlers import AttestationHandlers, SessionHandlers
from keylime_verifier.api.revocation_handlers import RevocationHandlers
from keylime_verifier.api.routes import VERIFIER_API, table
from keylime_verifier.api.sharing_handlers import SharingHandlers
from keylime_verifier.api.verification_handlers import VerificationHandlers


class _Nobody:
    """Stands for whatever a handler would ask."""

    def __getattr__(self, name: str) -> "_Nobody":
        return self

    def __call__(self, *_: object, **__: object) -> NoReturn:
        raise NotImplementedError("this table is to be read, its handlers have nobody to ask")


def routes() -> dict[str, tuple[Api, Sequence[Route]]]:
    """The tables by program, whose handlers cannot be called."""
    nobody: Any = _Nobody()
    registrar = (
        *Handlers(nobody).routes(),
        reading_route(nobody),
        *probe_routes(Health(), plain_http=True),
    )
    verifier = (
        *table(
            AttestationMode.BOTH,
            AgentHandlers(nobody, nobody),
            SessionHandlers(nobody),
            AttestationHandlers(nobody),
            HistoryHandlers(nobody),
            PolicyHandlers(RUNTIME_POLICIES, nobody),
            PolicyHandlers(REFERENCE_STATES, nobody),
            VerificationHandlers(nobody, nobody, max_evidence=1),
            RevocationHandlers(nobody),
            SharingHandlers(nobody),
            EventHandlers(nobody),
        ),
        *probe_routes(Health()),
    )
    agent = AgentRoutes("agent", "", nobody, 0, nobody, nobody, nobody).routes(mutual_tls=True)
    registrars_own = openapi_route(REGISTRAR_API, registrar, plain_http=True)
    return {
        "registrar": (REGISTRAR_API, (*registrar, registrars_own)),
        "verifier": (VERIFIER_API, (*verifier, openapi_route(VERIFIER_API, verifier))),
        "agent": (AGENT_API, agent),
    }


def documents() -> Mapping[str, dict[str, Any]]:
    """The OpenAPI documents by program, as each serves its own at /openapi.json."""
    return {
        program: json.loads(msgspec.json.encode(describe_api(api, table)))
        for program, (api, table) in routes().items()
    }


def main() -> None:
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for program, document in documents().items():
        text = json.dumps(document, indent=1, ensure_ascii=False)
        (directory / f"{program}.json").write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
