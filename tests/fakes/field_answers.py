"""Answers of a verifier of the push model as agents in the field read them: they must be whole.

Written from docs/reference/push-model.md, section 8, and apart from `keylime.messages`: unknown members are
passed over, known ones must be as they are here.
"""

import base64
from datetime import datetime
from typing import Annotated, Any, TypeVar

import msgspec

KindT = TypeVar("KindT")
Count = Annotated[int, msgspec.Meta(ge=0)]
BANKS = frozenset({"sha1", "sha256", "sha384", "sha512", "sm3_256"})
STAGES = frozenset({"awaiting_evidence", "evaluating_evidence", "verification_complete"})


class UnusableAnswer(AssertionError):
    """An answer that an agent in the field could not go on with."""


class _Challenge(msgspec.Struct):
    challenge: str


class _Requested(msgspec.Struct):
    authentication_class: str
    authentication_type: str
    chosen_parameters: _Challenge


class _SessionAttributes(msgspec.Struct):
    agent_id: str
    authentication_requested: list[_Requested]
    created_at: str
    challenges_expire_at: str


class _Proof(msgspec.Struct):
    message: str
    signature: str


class _Authentication(msgspec.Struct):
    authentication_class: str
    authentication_type: str
    chosen_parameters: _Challenge
    data: _Proof


class _VerdictAttributes(msgspec.Struct):
    agent_id: str
    evaluation: str
    authentication: list[_Authentication]
    created_at: str
    challenges_expire_at: str
    response_received_at: str
    token: str | None = None
    token_expires_at: str | None = None


class _Key(msgspec.Struct):
    key_algorithm: str
    key_class: str
    key_size: Count
    server_identifier: str
    local_identifier: str
    public: str


class QuoteParameters(msgspec.Struct):
    """What is to be quoted."""

    signature_scheme: str
    challenge: str
    hash_algorithm: str
    selected_subjects: dict[str, list[Count] | None]
    certification_key: _Key | None = None


class LogParameters(msgspec.Struct):
    """What is to be read."""

    format: str
    starting_offset: Count | None = None
    entry_count: Count | None = None


class _Item(msgspec.Struct):
    evidence_class: str
    evidence_type: str
    chosen_parameters: msgspec.Raw = msgspec.Raw(b"null")


class _NegotiationAttributes(msgspec.Struct):
    stage: str
    evidence_requested: list[_Item]


class _QuoteCapabilities(msgspec.Struct):
    component_version: str
    hash_algorithms: list[str]
    signature_schemes: list[str]
    available_subjects: dict[str, list[Count]]
    certification_keys: list[_Key]


class _LogCapabilities(msgspec.Struct):
    entry_count: Count
    supports_partial_access: bool
    appendable: bool
    formats: list[str]


class _BootData(msgspec.Struct):
    entries: str


class _ImaData(msgspec.Struct):
    entry_count: Count


class _QuoteData(msgspec.Struct):
    subject_data: str
    message: str
    signature: str


class _Shown(msgspec.Struct):
    evidence_class: str
    evidence_type: str
    capabilities: msgspec.Raw
    data: msgspec.Raw


class _TakenAttributes(msgspec.Struct):
    stage: str
    evidence: list[_Shown]


class _Resource(msgspec.Struct):
    type: str
    attributes: msgspec.Raw
    id: str | None = None


class _JsonApi(msgspec.Struct):
    version: str


class _Meta(msgspec.Struct):
    seconds_to_next_attestation: Count


class _Document(msgspec.Struct):
    data: _Resource
    meta: msgspec.Raw = msgspec.Raw(b"{}")
    jsonapi: _JsonApi | None = None


def read_challenge(body: bytes, agent_id: str) -> tuple[str, bytes]:
    """The session's id, and the challenge."""
    document = _read(body, _Document)
    attributes = _read(document.data.attributes, _SessionAttributes)
    _demand(document.data.type == "session" and bool(document.data.id), "no session")
    _demand(attributes.agent_id == agent_id, "another agent")
    _times(attributes.created_at, attributes.challenges_expire_at)
    _demand(bool(attributes.authentication_requested), "nothing is requested")
    asked = attributes.authentication_requested[0]
    _demand((asked.authentication_class, asked.authentication_type) == ("pop", "tpm_pop"), "no tpm_pop")
    challenge = _base64(asked.chosen_parameters.challenge)
    _demand(len(challenge) == 16, "a challenge of another size")
    return document.data.id or "", challenge


def read_token(body: bytes, agent_id: str, session_id: str) -> str | None:
    """The token; None when the proof was not taken."""
    document = _read(body, _Document)
    attributes = _read(document.data.attributes, _VerdictAttributes)
    _demand((document.data.type, document.data.id) == ("session", session_id), "another session")
    _demand(attributes.agent_id == agent_id, "another agent")
    _times(attributes.created_at, attributes.challenges_expire_at, attributes.response_received_at)
    _demand(len(attributes.authentication) == 1, "the proof is not repeated")
    _demand(attributes.evaluation in ("pass", "fail"), "no evaluation")
    if attributes.evaluation == "fail":
        _demand(attributes.token is None, "a token for nothing")
        return None
    if attributes.token_expires_at is not None:
        _times(attributes.token_expires_at)
    session, _, secret = (attributes.token or "").partition(".")
    _demand((session, len(secret)) == (session_id, 43), "a token of another form")
    return attributes.token


def read_requests(body: bytes) -> list[tuple[str, QuoteParameters | LogParameters]]:
    """What is asked for, by type."""
    document = _read(body, _Document)
    attributes = _read(document.data.attributes, _NegotiationAttributes)
    _demand(document.data.type == "attestation", "no attestation")
    _demand(attributes.stage == "awaiting_evidence", "another stage")
    return [(item.evidence_type, _parameters(item)) for item in attributes.evidence_requested]


def _parameters(item: _Item) -> QuoteParameters | LogParameters:
    parameters = item.chosen_parameters
    if bytes(parameters) == b"null":
        raise UnusableAnswer(f"{item.evidence_type} without parameters")
    # Agents of the field go by this member alone, not by the type.
    if isinstance(_read(parameters, dict[str, Any]).get("format"), str):
        _demand(item.evidence_class == "log", "parameters of a log")
        return _read(parameters, LogParameters)
    _demand(item.evidence_class == "certification", "parameters of a quote")
    quote = _read(parameters, QuoteParameters)
    _demand(quote.selected_subjects.keys() <= BANKS, "an unknown bank")
    return quote


def read_pace(body: bytes) -> int:
    """The seconds to the next attestation; only an answer that is read as a whole has them."""
    document = _read(body, _Document)
    attributes = _read(document.data.attributes, _TakenAttributes)
    _demand(attributes.stage in STAGES, "another stage")
    for item in attributes.evidence:
        if item.evidence_class == "certification":
            _read(item.capabilities, _QuoteCapabilities)
            _read(item.data, _QuoteData)
        else:
            _read(item.capabilities, _LogCapabilities)
            _read(item.data, _ImaData if item.evidence_type == "ima_log" else _BootData)
    return _read(document.meta, _Meta).seconds_to_next_attestation


def _read(body: bytes | msgspec.Raw, kind: type[KindT]) -> KindT:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise UnusableAnswer(str(error)) from error


def _times(*texts: str) -> None:
    for text in texts:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError as error:
            raise UnusableAnswer(f"{text!r} is no time") from error
        _demand(moment.tzinfo is not None, f"{text!r} has no offset")


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise UnusableAnswer(f"{text!r} is not base64") from error


def _demand(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise UnusableAnswer(otherwise)
