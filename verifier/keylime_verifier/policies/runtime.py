"""Runtime policies as they arrive: base64 of a policy or of a signed envelope, checked before being kept."""

from dataclasses import dataclass

import msgspec

from keylime.base64_text import decode_base64
from keylime.documents.dsse import open_envelope
from keylime.errors import CredentialError, MalformedMessage, PolicyError
from keylime.ima.policy_union import covers
from keylime.ima.runtime_policy import PolicyHash, RuntimePolicy, parse_runtime_policy
from keylime_verifier.agents.refusals import NotApproved


@dataclass(frozen=True, slots=True)
class ReceivedPolicy:
    """A checked runtime policy: the text to keep, as it came, and what it means."""

    text: str
    compiled: RuntimePolicy

    @property
    def demands_ima(self) -> bool:
        """Whether it demands anything."""
        return self.compiled.demands_ima

    @property
    def policy_hash(self) -> PolicyHash:
        """What its version is told by."""
        return self.compiled.content_hash


def accept_runtime_policy(policy: str, key: str | None, *, signature_required: bool) -> ReceivedPolicy:
    """The policy to keep; `key` is base64 of the PEM key that an envelope must be signed with.

    Raises MalformedMessage and PolicyError, NotApproved for a signature that is missing or wrong.
    """
    text = _decoded(policy, "runtime_policy")
    keys = (_decoded(key, "runtime_policy_key").encode(),) if key else ()
    try:
        payload = open_envelope(text, keys, required=signature_required)
    except CredentialError as error:
        status = f"Runtime policy failed DSSE signature verification! {error}"
        raise NotApproved(status) from error
    try:
        compiled = parse_runtime_policy(payload)
    except PolicyError as error:
        raise PolicyError(f"Runtime policy is malformatted: {error}") from error
    return ReceivedPolicy(text, compiled)


def compile_stored_policy(text: str) -> RuntimePolicy:
    """A kept policy, compiled; an envelope's signature was verified when it arrived. Raises PolicyError."""
    return parse_runtime_policy(open_envelope(text), is_stored=True)


def covers_text(new: str, old: str) -> bool:
    """Whether what one kept policy accepts is all accepted by another, too."""
    try:
        return covers(compile_stored_policy(new), compile_stored_policy(old))
    except (PolicyError, CredentialError):
        return False


def release_of(text: str) -> int:
    """The operator's own number in a kept policy; a higher one is a later version (L2)."""
    return msgspec.json.decode(open_envelope(text), type=_Released).release


class _Released(msgspec.Struct):
    release: int = 0


def _decoded(text: str, field: str) -> str:
    try:
        return decode_base64(text).decode()
    except ValueError as error:
        raise MalformedMessage(f"{field} is not base64 of UTF-8 text") from error
