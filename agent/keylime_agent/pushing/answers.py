"""What a verifier's answers mean for an agent that attests by itself. Pure.

Statuses are those of docs/reference/push-model.md, 4 and 5.
"""

from datetime import datetime
from urllib.parse import urljoin, urlsplit

from keylime.errors import MalformedMessage
from keylime.http.peer_text import printable
from keylime.messages.push_document import parse_errors
from keylime.messages.push_session import VerdictAttributes
from keylime_agent.pushing.course import (
    Forbidden,
    LoggedIn,
    NotAdded,
    Outcome,
    PutOff,
    TokenOver,
    VerifierRefused,
    VerifierUnreachable,
)
from keylime_agent.pushing.pace import retry_after

_SHOWN_ERRORS = 3
_ADD = "add it with `keylime_tenant -c add --push-model -u {}`"
_UPDATE = "after a change of TPM or agent_data.json: `keylime_tenant -c update --push-model -u {}`"


def what_was_said(code: int, body: bytes) -> str:
    """The status with the details of its errors, fit for a log."""
    said = []
    for error in parse_errors(body)[:_SHOWN_ERRORS]:
        about = "" if error.source is None else f" ({error.source.pointer})"
        said.append(f"{error.detail or error.title or error.code or error.status}{about}")
    return printable(f"{code} {'; '.join(said)}".strip())


def refusal(code: int, body: bytes, retry: str | None, now: datetime) -> Outcome:
    """What an answer means that is not the one that was hoped for; `retry` is its Retry-After."""
    reason = what_was_said(code, body)
    after_s = retry_after(retry, now)
    if code == 401:
        return TokenOver()
    if code in (403, 404):  # 404: the agent was deleted
        return Forbidden(reason)
    if after_s is not None and code in (409, 429, 503):
        return PutOff(after_s, reason)
    if code in (408, 500, 502, 503, 504):
        return VerifierUnreachable(reason)
    return VerifierRefused(reason)


def refusal_of_session(code: int, body: bytes, retry: str | None, now: datetime) -> Outcome:
    """The same for a request about a session, where there is no token that could be over."""
    reason = what_was_said(code, body)
    if code in (404, 405, 501):
        return VerifierRefused(
            f"{reason}: this verifier takes no attestations of agents; see [verifier] mode there"
        )
    found = refusal(code, body, retry, now)
    return VerifierRefused(reason) if isinstance(found, TokenOver | Forbidden) else found


def verdict(attributes: VerdictAttributes, code: int, agent_id: str) -> Outcome:
    """What a verifier says of a proof."""
    if attributes.evaluation == "pass" and isinstance(attributes.token, str):
        return LoggedIn(attributes.token)
    if code == 401:
        return VerifierRefused(
            "the verifier knows this agent with another attestation key; " + _UPDATE.format(agent_id)
        )
    return NotAdded("the verifier does not know this agent (yet); " + _ADD.format(agent_id))


def evidence_path(location: str | None, url: str) -> str:
    """Where evidence goes, as a path at the verifier with `url`. Raises MalformedMessage.

    The token goes with it, so that it leads nowhere else.
    """
    if not location:
        raise MalformedMessage("the answer says with no Location where evidence goes")
    base, found = urlsplit(url), urlsplit(urljoin(url, location))
    is_plain = location.isascii() and location.isprintable() and " " not in location
    if not is_plain or (found.scheme, found.netloc) != (base.scheme, base.netloc) or found.query:
        raise MalformedMessage(f"evidence would go elsewhere: Location {printable(location)!r}")
    return found.path
