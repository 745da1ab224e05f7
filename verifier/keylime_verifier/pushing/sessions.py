"""Sessions of agents that attest by themselves: challenges, proofs of possession, tokens. Pure.

Chance and time come in as values.
"""

import hashlib
import hmac
import re
import uuid
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec

from keylime.appraisal.reference import canonical_algorithm
from keylime.errors import KeylimeError, MalformedEvidence, MalformedMessage, UnsuitableKey
from keylime.messages.push_document import decode_binary
from keylime.messages.push_session import ProofData
from keylime.tpm.keys import AttestationKey
from keylime.tpm.signature import SignatureInvalid, parse_signature, verify_signature
from keylime.tpm.structures import CertifyInfo, parse_attest
from keylime_verifier.agents.records import Enrolment
from keylime_verifier.policies.demands import decode_attestation_key

CHALLENGE_SIZE = 16  # bytes
SECRET_SIZE = 32
SALT_SIZE = 16
_MOST_PROOF = 8192  # characters of each part of a proof: four times what the largest key takes
_SESSION_ID = 36
_SECRET = re.compile(r"[A-Za-z0-9_-]{43}")  # base64url of SECRET_SIZE bytes
CLOCK_SLACK_S = 2.0
"""By so much a time of the same clock may lie ahead; one further off is of before it was set back."""

State = Literal["pending", "failed", "active"]
PENDING: State = "pending"
FAILED: State = "failed"
ACTIVE: State = "active"


class ProofRefused(KeylimeError):
    """Whoever sent it has not shown that it holds the agent's AK; the text is for the log."""


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How long sessions last and how many may be begun; seconds."""

    challenge_s: float
    token_s: float
    extends: bool  # whether a pass lengthens a token's life
    per_address: int
    address_window_s: float
    per_agent: int
    agent_window_s: float

    @property
    def longest_window_s(self) -> float:
        """How long a session that was not proven counts."""
        return max(self.challenge_s, self.address_window_s, self.agent_window_s)


class PushSession(msgspec.Struct, frozen=True):
    """A session as it is stored; times are seconds since the epoch."""

    session_id: str
    agent_id: str
    state: State
    challenge: bytes
    created_at: float
    address: str  # the prefixes that it was asked for from, see `keylime.http.sources`
    network: str
    key_hash: str | None = None
    token_salt: str | None = None
    token_hash: str | None = None
    token_expires_at: float | None = None

    def __repr__(self) -> str:
        return f"Session({self.session_id}, {self.agent_id}, {self.state})"


class Token(msgspec.Struct, frozen=True):
    """What an agent shows: the session's id, and with it a secret that only the agent knows."""

    session_id: str
    text: str

    def __repr__(self) -> str:
        return f"Token({self.session_id})"


@dataclass(frozen=True, slots=True)
class StoredToken:
    """What is kept of a token."""

    salt: str
    digest: str


TokenFault: TypeAlias = Literal[
    "Invalid authentication token",
    "Authentication session not active",
    "Authentication token expired",
]


def key_hash(ak_tpm: str) -> str:
    """What a session remembers of the AK that it was proven with: the hex SHA-256 of its base64."""
    return hashlib.sha256(ak_tpm.encode()).hexdigest()


def read_token(text: str) -> Token | None:
    """A token as it was shown; None for what can be none."""
    session_id, _, secret = text.partition(".")
    if not _SECRET.fullmatch(secret):
        return None
    return Token(session_id, text) if parse_session_id(session_id) else None


def parse_session_id(text: str) -> bool:
    """Whether `text` is a UUID in its usual form."""
    if len(text) != _SESSION_ID:
        return False
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def make_token(session_id: str, secret: str, salt: bytes) -> tuple[Token, StoredToken]:
    """The token of a session, whose `secret` nobody can guess, and what is kept of it.

    One hash suffices where the secret has 256 bits: slowness would help with secrets that people choose.
    """
    text = f"{session_id}.{secret}"
    return Token(session_id, text), StoredToken(salt.hex(), _digest(text, salt))


def _digest(token: str, salt: bytes) -> str:
    return hashlib.sha256(salt + token.encode()).hexdigest()


def judge_token(token: Token, session: PushSession | None, now: float) -> TokenFault | None:
    """What is wrong with a token, beside `session`, which has its id; None when it is valid."""
    if session is None or session.token_salt is None or session.token_hash is None:
        return "Invalid authentication token"
    if not hmac.compare_digest(_digest(token.text, bytes.fromhex(session.token_salt)), session.token_hash):
        return "Invalid authentication token"
    if session.state != ACTIVE:
        return "Authentication session not active"
    # Nobody can tell how old a token is that was given before the clock was set back.
    is_of_the_future = session.created_at > now + CLOCK_SLACK_S
    if session.token_expires_at is None or now >= session.token_expires_at or is_of_the_future:
        return "Authentication token expired"
    return None


def check_proof(proof: ProofData, challenge: bytes, enrolment: Enrolment) -> None:
    """Returns when the TPM of the AK has certified that AK with this challenge. Raises ProofRefused."""
    try:
        key = decode_attestation_key(enrolment.ak_tpm)
        attest_bytes, signature = (_decoded(part) for part in (proof.message, proof.signature))
        attest, signed = parse_attest(attest_bytes), parse_signature(signature)
        _demand_accepted(key, enrolment)
        verify_signature(key, signed, attest_bytes)
    except (MalformedMessage, MalformedEvidence, UnsuitableKey, SignatureInvalid) as error:
        raise ProofRefused(str(error)) from error
    if not isinstance(attest.attested, CertifyInfo):
        raise ProofRefused(f"the TPM signed a {attest.type.name.lower()} structure, not a certification")
    if not hmac.compare_digest(attest.extra_data, challenge):
        raise ProofRefused("the challenge in it is not the one that was given")
    if not hmac.compare_digest(attest.attested.name, key.name):
        raise ProofRefused("it certifies another key than the agent's AK")


def _decoded(text: str) -> bytes:
    if not text or len(text) > _MOST_PROOF:
        raise MalformedMessage("a part of the proof is missing or too long")
    return decode_binary(text)


def _demand_accepted(key: AttestationKey, enrolment: Enrolment) -> None:
    """What is accepted in the agent's quotes is accepted in its proof."""
    accepted = {canonical_algorithm(label) for label in enrolment.accept_tpm_encryption_algs}
    for what, label, labels in (
        ("hash algorithm", key.scheme_hash.label, set(enrolment.accept_tpm_hash_algs)),
        ("signature scheme", key.scheme.label, set(enrolment.accept_tpm_signing_algs)),
        ("key algorithm", key.encryption_label, accepted),
    ):
        if label not in labels:
            raise ProofRefused(f"{what} {label} is not accepted for the agent")


@dataclass(frozen=True, slots=True)
class Begun:
    """Sessions that were begun and not proven, within their windows: how many, and when the first of them."""

    from_address: int
    first_from_address: float | None
    for_agent: int  # from the same address: from elsewhere nobody is kept from his own sessions
    first_for_agent: float | None


def wait_s(begun: Begun, limits: SessionLimits, now: float) -> float | None:
    """How long nobody may begin another session from there; None when one may be begun."""
    waits = []
    if begun.from_address >= limits.per_address and begun.first_from_address is not None:
        waits.append(begun.first_from_address + limits.address_window_s - now)
    if begun.for_agent >= limits.per_agent and begun.first_for_agent is not None:
        waits.append(begun.first_for_agent + limits.agent_window_s - now)
    return max(*waits, 1.0) if waits else None
