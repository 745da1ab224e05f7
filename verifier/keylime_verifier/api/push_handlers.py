"""API 3.0: sessions and attestations of agents that attest by themselves.

Each handler parses, calls one method, renders.
"""

import functools
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Protocol

from msgspec import UNSET

from keylime.http.exchange import Request, Response, Role
from keylime.http.operation import Operation
from keylime.http.routing import Route, bearer_token, not_for_agents
from keylime.identifiers import AgentId, parse_agent_id
from keylime.messages.push_attestation import (
    RESOURCE_TYPE,
    Pace,
    attestation_document,
    attestation_path,
    attestations_document,
)
from keylime.messages.push_document import (
    API_VERSION,
    CONTENT_TYPE,
    Document,
    JsonApi,
    ReceivedResource,
    VersionDocument,
    VersionMeta,
    encode_binary,
    encode_document,
    format_time,
    parse_request,
)
from keylime.messages.push_session import RESOURCE_TYPE as SESSION
from keylime.messages.push_session import (
    ChallengeAttributes,
    JudgedProof,
    ProofData,
    RequestedProof,
    SessionChallenge,
    VerdictAttributes,
    agent_id_of,
    offers_pop,
    proof_of,
    session_document,
)
from keylime_verifier.agents.pushing import told_time
from keylime_verifier.api.push_documents import (
    Handler,
    answered,
    bare,
    denial,
    document,
    is_document,
    own_path,
)
from keylime_verifier.pushing.attestation_rows import Attestation, requested, shown
from keylime_verifier.pushing.attestations import PushRefused
from keylime_verifier.pushing.known_agents import CallingAgent
from keylime_verifier.pushing.logins import Fault, LoginOutcome, OtherAgent, UnknownSession
from keylime_verifier.pushing.sessions import PushSession

_MAX_SESSION = 32 << 10  # bytes: a proof by the largest key has three thousand
_MAX_OFFER = 32 << 10
_LATEST = "latest"


class Logins(Protocol):
    """Who begins sessions and looks at proofs."""

    def expiry_of(self, session: PushSession, /) -> float: ...

    async def begin(self, agent_id: AgentId, prefixes: tuple[str, ...], /) -> PushSession: ...

    async def prove(self, session_id: str, agent_id: AgentId, proof: ProofData, /) -> LoginOutcome: ...


class Attestations(Protocol):
    """Who negotiates attestations and takes evidence. Raises PushRefused."""

    async def attended(
        self,
        agent_id: AgentId,
        token: str,
        act: Callable[[CallingAgent, bool], Awaitable[Response]],
        is_done: Callable[[Response], bool],
        /,
    ) -> Response: ...

    async def negotiate(
        self, agent_id: AgentId, found: CallingAgent, offered: ReceivedResource, /, *, is_remembered: bool
    ) -> Attestation: ...

    async def receive(
        self,
        agent_id: AgentId,
        found: CallingAgent,
        number: int | None,
        collected: ReceivedResource,
        /,
        *,
        is_remembered: bool,
    ) -> Attestation: ...

    def pause_s(self, attestation: Attestation, /) -> int: ...

    async def show(self, agent_id: AgentId, number: int | None, /) -> Attestation: ...

    async def show_all(self, agent_id: AgentId, /) -> list[Attestation]: ...


class SessionHandlers:
    """`/v3.0/sessions`, for anyone."""

    def __init__(self, logins: Logins) -> None:
        self._logins = logins

    def routes(self) -> list[Route]:
        """The routes of sessions."""
        route = functools.partial(Route, role=Role.ANONYMOUS, major=3, max_body=_MAX_SESSION)
        return [
            route(
                "POST",
                "/sessions",
                handler=answered(self.begin),
                about=_operation(
                    "Begins a session: a challenge for the TPM.", refusals=(415,), body=Document
                ),
            ),
            route(
                "PATCH",
                "/sessions/{session_id}",
                handler=answered(self.prove),
                about=_operation(
                    "Proves that an agent holds its AK, for a token.", refusals=(401, 404, 415), body=Document
                ),
            ),
        ]

    async def begin(self, request: Request) -> Response:
        if not is_document(request, kind=SESSION):
            return bare(415)
        resource = parse_request(request.body)
        asked = agent_id_of(resource)
        if asked is None:
            return denial(400, "agent_id is required")
        if not offers_pop(resource):
            return denial(400, "authentication_supported must include tpm_pop authentication type")
        agent_id = parse_agent_id(asked)
        session = await self._logins.begin(agent_id, request.caller.prefixes)
        attributes = ChallengeAttributes(
            agent_id=agent_id,
            authentication_requested=[RequestedProof(chosen_parameters=_challenge(session))],
            created_at=_time(session.created_at),
            challenges_expire_at=_time(self._logins.expiry_of(session)),
        )
        # 200 and not 201: agents of the field take any success, and documents of the protocol say so.
        return document(200, session_document(session.session_id, attributes))

    async def prove(self, request: Request) -> Response:
        if not is_document(request, kind=SESSION):
            return bare(415)
        resource = parse_request(request.body)
        asked = agent_id_of(resource)
        if asked is None:
            return denial(400, "agent_id is required")
        proof = proof_of(resource)
        try:
            proven = await self._logins.prove(request.parameters["session_id"], AgentId(asked), proof)
        except UnknownSession as error:
            return denial(404, str(error))
        except OtherAgent as error:
            return denial(400, str(error))
        code = 401 if proven.fault is Fault.REFUSED else 200
        return document(code, session_document(proven.session.session_id, self._verdict(proven, proof)))

    def _verdict(self, proven: LoginOutcome, proof: ProofData) -> VerdictAttributes:
        session = proven.session
        until = session.token_expires_at
        ends = None if proven.fault is Fault.EXPIRED else UNSET if until is None else _time(until)
        return VerdictAttributes(
            agent_id=session.agent_id,
            evaluation="pass" if proven.fault is None else "fail",
            token=UNSET if proven.token is None else proven.token,
            authentication=[JudgedProof(chosen_parameters=_challenge(session), data=proof)],
            created_at=_time(session.created_at),
            challenges_expire_at=_time(self._logins.expiry_of(session)),
            response_received_at=_time(proven.received_at),
            token_expires_at=ends,
        )


class AttestationHandlers:
    """`/v3.0/agents/{agent_id}/attestations`: agents write their own, administrators read all."""

    def __init__(self, attestations: Attestations) -> None:
        self._attestations = attestations

    def routes(self) -> list[Route]:
        """The routes of attestations."""
        path = "/agents/{agent_id}/attestations"
        writing = functools.partial(
            Route, role=Role.AGENT, major=3, action="submit_attestation", is_routine=True
        )
        reading = functools.partial(Route, role=Role.ADMIN, major=3, action="read_attestation")
        refusals = (401, 403, 404, 409, 415, 422)
        return [
            writing(
                "POST",
                path,
                handler=answered(self.negotiate),
                max_body=_MAX_OFFER,
                about=_operation(
                    "Says what an agent can show, for what it is asked for.", refusals, Document, success=201
                ),
            ),
            writing(
                "PATCH",
                f"{path}/{{number}}",
                handler=answered(self.receive),
                about=_operation("Takes the evidence of an attestation.", refusals, Document, success=202),
            ),
            reading(
                "GET",
                path,
                handler=answered(self.show_all),
                about=_operation("The attestations of an agent that are kept.", (404,)),
            ),
            reading(
                "GET",
                f"{path}/{{number}}",
                handler=answered(self.show),
                about=_operation("One attestation, or the latest.", (404,)),
            ),
        ]

    async def negotiate(self, request: Request) -> Response:
        return await self._attended(request, self._negotiate)

    async def receive(self, request: Request) -> Response:
        return await self._attended(request, self._receive)

    async def _attended(
        self, request: Request, act: Callable[[Request, CallingAgent, bool], Awaitable[Response]]
    ) -> Response:
        agent_id = AgentId(request.parameters["agent_id"])
        token = bearer_token(request.headers.get("Authorization", "")) or ""
        return await self._attestations.attended(agent_id, token, functools.partial(act, request), _is_done)

    async def _negotiate(self, request: Request, found: CallingAgent, is_remembered: bool) -> Response:
        if not is_document(request, kind=RESOURCE_TYPE):
            return bare(415)
        agent_id, resource = AgentId(request.parameters["agent_id"]), parse_request(request.body)
        attestation = await self._attestations.negotiate(
            agent_id, found, resource, is_remembered=is_remembered
        )
        path = attestation_path(agent_id, attestation.number)
        asked = own_path(request, "agents", agent_id, "attestations")
        content = attestation_document(requested(attestation), path, asked)
        return document(201, content, {"Location": path})

    async def _receive(self, request: Request, found: CallingAgent, is_remembered: bool) -> Response:
        if not is_document(request, kind=RESOURCE_TYPE):
            return bare(415)
        agent_id, number = AgentId(request.parameters["agent_id"]), _number(request)
        resource = parse_request(request.body)
        attestation = await self._attestations.receive(
            agent_id, found, number, resource, is_remembered=is_remembered
        )
        path = attestation_path(agent_id, attestation.number)
        pace = Pace(self._attestations.pause_s(attestation))
        content = attestation_document(
            shown(attestation, is_receipt=True), path, _asked(request, agent_id), pace
        )
        # Without Retry-After: agents of the field send again whatever comes with it.
        return document(202, content)

    async def show(self, request: Request) -> Response:
        agent_id = AgentId(request.parameters["agent_id"])
        attestation = await self._attestations.show(agent_id, _number(request))
        path = attestation_path(agent_id, attestation.number)
        return document(200, attestation_document(shown(attestation), path, _asked(request, agent_id)))

    async def show_all(self, request: Request) -> Response:
        agent_id = AgentId(request.parameters["agent_id"])
        found = await self._attestations.show_all(agent_id)
        listed = [(attestation_path(agent_id, one.number), shown(one)) for one in found]
        asked = own_path(request, "agents", agent_id, "attestations")
        return document(200, attestations_document(listed, asked))


async def show_root(_request: Request) -> Response:
    """`GET /v3.0/`."""
    return Response(raw=encode_document(_ROOT), headers=_TYPE)


async def lead_to_root(_request: Request) -> Response:
    """`GET /` of a verifier that polls nobody."""
    return Response(307, empty=True, headers={"Location": "/v3.0/"})


_TYPE = {"Content-Type": CONTENT_TYPE}
_ROOT = VersionDocument(meta=VersionMeta(API_VERSION), jsonapi=JsonApi())


def root_route() -> Route:
    """Where API 3.0 begins."""
    about = Operation("That API 3.0 is served here.", results=VersionDocument, is_document=True)
    return Route("GET", "/", Role.ANONYMOUS, show_root, major=3, about=about)


def leading_route() -> Route:
    """Where clients without a path are sent by a verifier that polls nobody."""
    about = Operation("Leads to API 3.0.", success=307)
    return Route("GET", "/", Role.ANONYMOUS, lead_to_root, versioned=False, about=about)


def _operation(
    summary: str, refusals: tuple[int, ...], body: type[Document] | None = None, success: int = 200
) -> Operation:
    return Operation(
        summary, results=Document, body=body, success=success, refusals=refusals, is_document=True
    )


def _is_done(response: Response) -> bool:
    return response.code < 400


def _number(request: Request) -> int | None:
    """Which attestation is meant, None for the latest. Raises PushRefused."""
    text = request.parameters["number"]
    if text == _LATEST:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise PushRefused(404, "not_found", "There is no such attestation.")
    return int(text)


def _asked(request: Request, agent_id: AgentId) -> str:
    return own_path(request, "agents", agent_id, "attestations", request.parameters["number"])


def _challenge(session: PushSession) -> SessionChallenge:
    return SessionChallenge(encode_binary(session.challenge))


def _time(seconds: float) -> str:
    return format_time(told_time(seconds))


Whose = Callable[[str], Awaitable[AgentId]]
"""Whose token it is. Raises Unauthenticated."""


async def demand_own(request: Request, whose: Whose) -> Response | None:
    """The refusal of an agent that asks for another one; None for one that asks for itself, and others."""
    authorization = request.headers.get("Authorization")
    if authorization is None:
        return None
    agent_id = request.parameters["agent_id"]

    async def judge(_request: Request) -> Response:
        caller = await whose(bearer_token(authorization) or "")
        if caller == agent_id:
            return Response()
        return denial(403, f"Agent {caller} cannot access resource {agent_id} (ownership required)")

    answer = await answered(judge)(request)
    return None if answer.code == 200 else answer


def refused_to_agents(routes: Iterable[Route], whose: Whose) -> tuple[Route, ...]:
    """The routes, of which those of administrators tell an agent with a token that they are not for it."""
    return tuple(
        replace(route, for_tokens=_refusing(route, whose)) if route.role is Role.ADMIN else route
        for route in routes
    )


def _refusing(route: Route, whose: Whose) -> Handler:
    async def refuse(request: Request) -> Response:
        await whose(bearer_token(request.headers.get("Authorization", "")) or "")
        return denial(403, not_for_agents(route))

    return answered(refuse)
