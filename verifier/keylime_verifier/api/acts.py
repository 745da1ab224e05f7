"""Whose act a request is, for the history."""

from keylime import request_id
from keylime.http.exchange import Request
from keylime_verifier.agents.events import Actor


def actor(request: Request) -> Actor:
    """The administrator who asks, and the id under which the logs have the request."""
    return Actor(str(request.caller), request_id.handled())
