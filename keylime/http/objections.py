"""Whether whoever answers is the one who was called, by the certificate that was shown in the handshake.

Asked before a byte of a request is sent, by every client of ours.
"""

import logging

from cryptography.hazmat.primitives import hashes

from keylime.errors import CredentialError
from keylime.pki.agent_certificate import read_agent_certificate
from keylime.pki.certificates import parse_certificate
from keylime.pki.server_names import NameCheck, server_remark

log = logging.getLogger("keylime.http.server_check")

_SHOWN = 16  # hexadecimal digits of a pin
_MAX_REMEMBERED = 64


class HostDemands:
    """What is asked of the certificate of one host; the chain is TLS's business, checked before."""

    def __init__(self, host: str, names: NameCheck) -> None:
        self._host = host
        self._names = names
        self._told: dict[bytes, None] = {}

    def objection(self, certificate: bytes, port: int) -> str | None:
        """Why the server must not have it (DER); None if it may. Warns once of each with other names."""
        try:
            shown = parse_certificate(certificate)
            remark = server_remark(shown, self._host, self._names)
        except (CredentialError, ValueError, TypeError) as error:
            return str(error)
        if remark is not None:
            self._warn(shown.fingerprint(hashes.SHA256()), f"{self._host}:{port}", remark)
        return None

    def _warn(self, fingerprint: bytes, place: str, remark: str) -> None:
        if fingerprint not in self._told and len(self._told) < _MAX_REMEMBERED:
            self._told[fingerprint] = None
            log.warning("the server at %s: %s", place, remark)


def key_objection(certificate: bytes, pin: bytes) -> str | None:
    """Why whoever shows `certificate` (DER) is not the one whose key has the SHA-256 `pin`; None if it is."""
    try:
        found = read_agent_certificate(certificate).key_pin
    except CredentialError as error:
        return f"whoever answers shows no key: {error}"
    if found == pin:
        return None
    return (
        f"whoever answers holds another key (SHA-256 {found.hex()[:_SHOWN]}...) than the pinned one "
        f"({pin.hex()[:_SHOWN]}...)"
    )
