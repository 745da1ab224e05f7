"""Runtime policies as they arrive: base64 of a policy or of a signed envelope, checked before being kept."""

import base64
import binascii

import msgspec

from keylime.errors import CredentialError, MalformedMessage, PolicyError
from keylime.http.server import HttpError
from keylime.policy.dsse import open_envelope
from keylime.policy.runtime import RuntimePolicy, parse_runtime_policy


def accept_runtime_policy(policy: str, key: str | None, *, signature_required: bool) -> str:
    """The text to keep, as it came; `key` is base64 of the PEM key that an envelope must be signed with.

    Raises MalformedMessage and PolicyError (400), HttpError 401 for a signature that is missing or wrong.
    """
    text = _decoded(policy, "runtime_policy")
    keys = (_decoded(key, "runtime_policy_key").encode(),) if key else ()
    try:
        payload = open_envelope(text, keys, required=signature_required)
    except CredentialError as error:
        status = f"Runtime policy failed DSSE signature verification! {error}"
        raise HttpError(401, status) from error
    try:
        parse_runtime_policy(payload)
    except PolicyError as error:
        raise PolicyError(f"Runtime policy is malformatted: {error}") from error
    return text


def compile_stored_policy(text: str) -> RuntimePolicy:
    """A kept policy, compiled; an envelope's signature was verified when it arrived. Raises PolicyError."""
    return parse_runtime_policy(open_envelope(text))


def release_of(text: str) -> int:
    """The operator's own number in a kept policy; a higher one is a later version (L2)."""
    return msgspec.json.decode(open_envelope(text), type=_Released).release


class _Released(msgspec.Struct):
    release: int = 0


def _decoded(text: str, field: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise MalformedMessage(f"{field} is not base64 of UTF-8 text") from error
