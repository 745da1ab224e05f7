"""Who is let in.

The page stands for an operator's certificate. So nothing but the browser that was given the link may use it:
not other sites that the browser visits (cookies of the same site only, the origin of what is sent, a token in
every form), not names that were made to lead here (the Host header), not other users of the machine (the link
works once; cookies are not told apart by ports, so each page has a loopback address of its own).
"""

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto

SECURITY_HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Without any referrer browsers would say that forms come from nowhere.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


def own_address() -> str:
    """A loopback address that probably nobody else on this machine uses."""
    low = int(ipaddress.IPv4Address("127.1.0.1"))
    high = int(ipaddress.IPv4Address("127.254.255.254"))
    return str(ipaddress.IPv4Address(low + secrets.randbelow(high - low)))


@dataclass(frozen=True, slots=True)
class PageAddress:
    """Where the page is, as browsers call it."""

    address: str
    port: int

    @property
    def host(self) -> str:
        """The Host header of who means it."""
        return f"{self.address}:{self.port}"

    def is_named_by(self, host: str) -> bool:
        """Whether a request with this Host header was meant for us, and not for a name that leads here."""
        return host == self.host or (self.address == "127.0.0.1" and host == f"localhost:{self.port}")

    def url(self, path: str) -> str:
        """`path` as it is typed into a browser."""
        return f"http://{self.host}{path}"


class LinkUse(Enum):
    """What comes of a link."""

    WRONG = auto()
    OPENED = auto()
    USED_BEFORE = auto()  # two have the link: nobody is let in any more


class Door:
    """One link, one session, and the secret of its forms."""

    def __init__(self, chance: str | None = None) -> None:
        self.link_token = chance or secrets.token_urlsafe(32)
        self._session = secrets.token_urlsafe(32)
        self._is_used = self._is_shut = False

    def enter(self, token: str) -> LinkUse:
        """Takes the token of a link; whoever comes second shows that the link was seen by others."""
        if not _equal(token, self.link_token):
            return LinkUse.WRONG
        if self._is_used:
            self._is_shut = True
            return LinkUse.USED_BEFORE
        self._is_used = True
        return LinkUse.OPENED

    @property
    def session(self) -> str:
        """What the browser shows from now on."""
        return self._session

    def admits(self, session: str) -> bool:
        """Whether a browser with this cookie is the one that was let in."""
        return self._is_used and not self._is_shut and _equal(session, self._session)

    @property
    def form_token(self) -> str:
        """What every form of the page sends with it."""
        return hmac.new(self._session.encode(), b"form", hashlib.sha256).hexdigest()

    def takes_form(self, token: str) -> bool:
        """Whether a form is from our page."""
        return _equal(token, self.form_token)


def is_own_origin(place: PageAddress, host: str, origin: str | None, fetch_site: str | None) -> bool:
    """Whether what changes something was sent by our own page, as far as the browser says."""
    if fetch_site not in (None, "same-origin"):
        return False
    return place.is_named_by(host) and origin == f"http://{host}"


def _equal(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode())
