"""The URL of a webhook, checked before anything starts; what posts to it is the module `webhook`."""

import urllib.parse
from dataclasses import dataclass, field

from keylime.errors import ConfigError

_MAX_ORIGIN = 255  # characters: the column of the outbox
_NAME = "[revocations] webhook_url"


@dataclass(frozen=True, slots=True)
class WebhookUrl:
    """A checked URL. Paths and queries of webhooks often are secrets: only `origin` is shown."""

    url: str = field(repr=False)
    origin: str
    is_secure: bool


def parse_webhook_url(url: str, *, allow_http: bool) -> WebhookUrl:
    """The URL to post to. Raises ConfigError: empty, no http(s) URL, or plain HTTP that is not allowed."""
    if not url:
        raise ConfigError(f"{_NAME} is empty, but webhook is among the enabled_revocation_notifications")
    import yarl  # what posts reads it in this way; most verifiers have no webhook

    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
        yarl.URL(url)
    except ValueError as error:
        raise ConfigError(f"{_NAME} is not a URL: {error}") from error
    if parts.scheme not in ("https", "http") or not host:
        raise ConfigError(f"{_NAME} must be like https://host/path")
    if parts.scheme == "http" and not allow_http:
        raise ConfigError(
            f"{_NAME} is plain HTTP: use https, or set [revocations] webhook_allow_http = True "
            "to send revocations unprotected"
        )
    is_secure = parts.scheme == "https"
    name = f"[{host}]" if ":" in host else host
    origin = f"{parts.scheme}://{name}:{port or (443 if is_secure else 80)}"
    if len(origin) > _MAX_ORIGIN:
        raise ConfigError(f"{_NAME}: the host name is too long")
    return WebhookUrl(url, origin, is_secure)
