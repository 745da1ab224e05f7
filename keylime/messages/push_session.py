"""Sessions of the push model: a challenge, the proof that an agent holds its AK, and the token it gets."""

from typing import Any, Literal

import msgspec

from keylime.errors import MalformedMessage
from keylime.messages.envelope import parse_body
from keylime.messages.push_document import (
    Document,
    ReceivedResource,
    Resource,
    attributes_as,
    decode_binary,
    encode_binary,
    parse_answer,
)

POP_CLASS = "pop"
TPM_POP = "tpm_pop"
RESOURCE_TYPE = "session"
_MOST_METHODS = 16

Evaluation = Literal["pass", "fail"]


class Method(msgspec.Struct, frozen=True):
    """A way to prove who one is."""

    authentication_class: str
    authentication_type: str


class SessionChallenge(msgspec.Struct, frozen=True):
    """What the TPM is to certify with: base64 of 16 bytes."""

    challenge: str


class RequestedProof(msgspec.Struct, frozen=True, kw_only=True):
    """The proof that the verifier asks for."""

    authentication_class: str = POP_CLASS
    authentication_type: str = TPM_POP
    chosen_parameters: SessionChallenge


class ProofData(msgspec.Struct, frozen=True):
    """TPMS_ATTEST and TPMT_SIGNATURE in base64, neither with a size before it; empty where there was none."""

    message: str = ""
    signature: str = ""


class ProvidedProof(msgspec.Struct, frozen=True, kw_only=True):
    """The proof as the agent gives it."""

    authentication_class: str = POP_CLASS
    authentication_type: str = TPM_POP
    data: ProofData = ProofData()


class JudgedProof(msgspec.Struct, frozen=True, kw_only=True):
    """The proof as the verifier's answer repeats it, with what it was asked for."""

    authentication_class: str = POP_CLASS
    authentication_type: str = TPM_POP
    chosen_parameters: SessionChallenge
    data: ProofData


class OpenAttributes(msgspec.Struct, frozen=True):
    """Of a request for a challenge."""

    agent_id: str
    authentication_supported: list[Method]


class ProofAttributes(msgspec.Struct, frozen=True):
    """Of a request with a proof."""

    agent_id: str
    authentication_provided: list[ProvidedProof]


class ChallengeAttributes(msgspec.Struct, frozen=True, kw_only=True):
    """Of the answer to a request for a challenge; the times are texts in ISO 8601 with an offset."""

    agent_id: str
    authentication_requested: list[RequestedProof]
    created_at: str
    challenges_expire_at: str


class VerdictAttributes(msgspec.Struct, frozen=True, kw_only=True):
    """Of the answer to a proof; `token` and when it ends are there with a pass alone.

    A challenge that was over has a null for the token's end, which clients of the field look for.
    """

    agent_id: str
    evaluation: Evaluation
    token: str | msgspec.UnsetType = msgspec.UNSET
    authentication: list[JudgedProof]
    created_at: str
    challenges_expire_at: str
    response_received_at: str
    token_expires_at: str | msgspec.UnsetType | None = msgspec.UNSET


def agent_id_of(resource: ReceivedResource) -> str | None:
    """Whom a request for a session says it is of; None when it does not."""
    try:
        return attributes_as(resource.attributes, "agent_id", str) or None
    except MalformedMessage:
        return None


def offers_pop(resource: ReceivedResource) -> bool:
    """Whether the agent can prove that it holds its AK by having its TPM certify it."""
    try:
        methods = attributes_as(resource.attributes, "authentication_supported", list[dict[str, Any]])
    except MalformedMessage:
        return False
    return any(method.get("authentication_type") == TPM_POP for method in (methods or ())[:_MOST_METHODS])


def proof_of(resource: ReceivedResource) -> ProofData:
    """The first proof in a request, with empty texts in the place of what is missing or is no text."""
    try:
        proofs = attributes_as(resource.attributes, "authentication_provided", list[msgspec.Raw])
        return parse_body(proofs[0], ProvidedProof).data if proofs else ProofData()
    except MalformedMessage:
        return ProofData()


def open_document(agent_id: str) -> Document:
    """An agent's request for a challenge."""
    return Document(
        data=Resource(type=RESOURCE_TYPE, attributes=OpenAttributes(agent_id, [Method(POP_CLASS, TPM_POP)]))
    )


def proof_document(session_id: str, agent_id: str, message: bytes, signature: bytes) -> Document:
    """An agent's proof: a marshalled TPMS_ATTEST and TPMT_SIGNATURE."""
    data = ProofData(encode_binary(message), encode_binary(signature))
    attributes = ProofAttributes(agent_id, [ProvidedProof(data=data)])
    return Document(data=Resource(type=RESOURCE_TYPE, id=session_id, attributes=attributes))


def session_document(session_id: str, attributes: ChallengeAttributes | VerdictAttributes) -> Document:
    """A verifier's answer about a session."""
    return Document(data=Resource(type=RESOURCE_TYPE, id=session_id, attributes=attributes))


def parse_challenge(body: bytes) -> tuple[str, bytes, ChallengeAttributes]:
    """Of a verifier's answer the session's id, the bytes to certify with, and all else.

    Raises MalformedMessage.
    """
    session_id, attributes, _ = parse_answer(body, ChallengeAttributes)
    if not session_id:
        raise MalformedMessage("the session has no id - at `$.data.id`")
    for proof in attributes.authentication_requested:
        if proof.authentication_type == TPM_POP:
            return session_id, decode_binary(proof.chosen_parameters.challenge), attributes
    raise MalformedMessage(
        f"the verifier asks for no {TPM_POP} - at `$.data.attributes.authentication_requested`"
    )


def parse_verdict(body: bytes) -> VerdictAttributes:
    """What a verifier says of a proof. Raises MalformedMessage, also for a pass without a token."""
    _, attributes, _ = parse_answer(body, VerdictAttributes)
    if attributes.evaluation == "pass" and not attributes.token:
        raise MalformedMessage("a proof that passed without a token - at `$.data.attributes.token`")
    return attributes
