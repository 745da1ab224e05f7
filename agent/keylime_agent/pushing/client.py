"""Calls of an agent to one verifier: a session, the offer, the evidence."""

import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from keylime.errors import KeylimeError, MalformedMessage, PeerUnreachable
from keylime.http.client import Peer
from keylime.http.replies import Answer
from keylime.messages.push_attestation import collection_path, parse_pace, parse_requested
from keylime.messages.push_document import API_VERSION, CONTENT_TYPE, Document, encode_document
from keylime.messages.push_evidence import Asked
from keylime.messages.push_session import open_document, parse_challenge, parse_verdict, proof_document
from keylime.pki.server_names import NameCheck
from keylime_agent.pushing.answers import evidence_path, refusal, refusal_of_session, verdict
from keylime_agent.pushing.course import Outcome, Taken, VerifierRefused, VerifierUnreachable

_SESSIONS = f"/v{API_VERSION}/sessions"
_TIMEOUT_S = 30.0
_EVIDENCE_TIMEOUT_S = 120.0  # a first IMA list is long, and the line to the verifier may be thin
_KEEP_ALIVE_S = 300.0
_MAX_ANSWER = 64 << 20  # the answer to evidence repeats it


class StepFailed(KeylimeError):
    """The verifier refused a step or could not be reached; `outcome` says which, and how to go on."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(str(outcome))
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class PendingSession:
    """A session that waits for its proof."""

    session_id: str
    nonce: bytes


@dataclass(frozen=True, slots=True)
class Negotiated:
    """What a verifier wants to see, and where it goes."""

    asked: Sequence[Asked]
    path: str


class PushClient:
    """One verifier. Each call raises Stopped; must be closed."""

    def __init__(self, url: str, agent_id: str, tls: ssl.SSLContext, names: NameCheck) -> None:
        self.url = url
        self._agent_id = agent_id
        self._peer = Peer(
            url,
            tls=tls,
            names=names,
            timeout_s=_TIMEOUT_S,
            max_body=_MAX_ANSWER,
            keep_alive_s=_KEEP_ALIVE_S,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc_info: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; the client can be used again after it."""
        await self._peer.close()

    async def open_session(self) -> PendingSession:
        """A challenge to prove with that this agent holds its AK."""
        answer = await self._call("POST", _SESSIONS, open_document(self._agent_id))
        if answer.code not in (200, 201):
            raise StepFailed(refusal_of_session(*_facts(answer)))
        try:
            session_id, nonce, _ = parse_challenge(bytes(answer.content))
        except MalformedMessage as error:
            raise _unusable(error) from error
        return PendingSession(session_id, nonce)

    async def prove(self, session_id: str, attest: bytes, signature: bytes) -> Outcome:
        """What came of the proof."""
        document = proof_document(session_id, self._agent_id, attest, signature)
        answer = await self._call("PATCH", f"{_SESSIONS}/{session_id}", document)
        if answer.code not in (200, 401):
            return refusal_of_session(*_facts(answer))
        try:
            return verdict(parse_verdict(bytes(answer.content)), answer.code, self._agent_id)
        except MalformedMessage as error:
            if answer.code == 401:
                return refusal_of_session(*_facts(answer))
            raise _unusable(error) from error

    async def negotiate(self, token: str, offer: Document) -> Negotiated:
        """What the verifier wants to see of what is offered."""
        answer = await self._call("POST", collection_path(self._agent_id), offer, token)
        if answer.code != 201:
            raise StepFailed(refusal(*_facts(answer)))
        try:
            asked = parse_requested(bytes(answer.content))
            path = evidence_path(answer.headers.get("Location"), self.url)
        except MalformedMessage as error:
            raise _unusable(error) from error
        return Negotiated(asked, path)

    async def deliver(self, token: str, path: str, evidence: Document) -> Outcome:
        """What came of the evidence; Taken with the verifier's pace."""
        answer = await self._call("PATCH", path, evidence, token, timeout_s=_EVIDENCE_TIMEOUT_S)
        if answer.code != 202:
            return refusal(*_facts(answer))
        try:
            return Taken(parse_pace(bytes(answer.content)))
        except MalformedMessage:  # it was taken all the same
            return Taken(None)

    async def _call(
        self,
        method: str,
        path: str,
        document: Document,
        token: str | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Answer:
        headers = {"Accept": f"{CONTENT_TYPE}, application/json", "Content-Type": CONTENT_TYPE}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        content = encode_document(document)
        try:
            return await self._peer.exchange(
                method, path, content=content, headers=headers, timeout_s=timeout_s, is_routine=True
            )
        except PeerUnreachable as error:
            raise StepFailed(VerifierUnreachable(str(error))) from error


def _facts(answer: Answer) -> tuple[int, bytes, str | None, datetime]:
    return answer.code, bytes(answer.content), answer.headers.get("Retry-After"), datetime.now(UTC)


def _unusable(error: MalformedMessage) -> StepFailed:
    return StepFailed(VerifierRefused(f"the answer cannot be used: {error}"))
