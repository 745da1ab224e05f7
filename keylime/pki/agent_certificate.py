"""An agent's certificate, read without the crypto library: its key, its names as they stand, its dates.

Agents make their certificates themselves, and what these prove is the key, which was registered by a proven
TPM and is pinned by who calls the agent (docs/adr/0016-agents-are-known-by-their-key.md). Of the rest nothing
counts. Some have the serial number 0, which libraries warn of, or refuse. Pure.
"""

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TypeAlias

from keylime.errors import CredentialError, MalformedEvidence
from keylime.pki.asn1 import BIT_STRING, CONSTRUCTED, INTEGER, SEQUENCE, Bounds, Element, Pass

RENEWAL_MARGIN = timedelta(days=30)
"""A certificate nearer to its end is made anew."""

OVERDUE_MARGIN = RENEWAL_MARGIN - timedelta(days=2)
"""One still nearer to it should have been: its agent had two days for that."""

_BOUNDS = Bounds(64 << 10, elements=10_000)
_PEM = re.compile(rb"-----BEGIN (?:X509 )?CERTIFICATE-----([A-Za-z0-9+/=\s]*)-----END ")
_VERSION = 0xA0
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_TIME = re.compile(rb"([0-9]{4})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})([0-9]{2})Z")
_LINE = 64  # characters, RFC 7468


@dataclass(frozen=True, slots=True)
class AgentCertificate:
    """What is read of it. Dates that are no dates are None: whoever goes by the key does not need them."""

    der: bytes = field(repr=False)
    public_key: bytes = field(repr=False)  # SubjectPublicKeyInfo, DER
    serial: int
    issuer: bytes
    subject: bytes
    not_before: datetime | None
    not_after: datetime | None

    @property
    def key_pin(self) -> bytes:
        """The SHA-256 of its public key."""
        return hashlib.sha256(self.public_key).digest()

    @property
    def pem(self) -> str:
        """The certificate as PEM with a final newline."""
        text = base64.b64encode(self.der).decode("ascii")
        lines = (text[start : start + _LINE] for start in range(0, len(text), _LINE))
        return "\n".join(("-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""))

    @property
    def is_self_signed(self) -> bool:
        """Whether it names itself as its issuer."""
        return self.issuer == self.subject

    def ends_soon(self, now: datetime) -> bool:
        """Whether it ends within the margin, or has ended.

        A clock that is before its beginning is wrong, or was when it was made: that says nothing of its end.
        """
        if self.not_after is None:
            return True
        return not self.begins_later(now) and self.not_after <= now + RENEWAL_MARGIN

    def begins_later(self, now: datetime) -> bool:
        """Whether it is not valid yet."""
        return self.not_before is not None and now < self.not_before


def read_agent_certificate(data: bytes) -> AgentCertificate:
    """The certificate in `data`, DER, or the first one in PEM text. Raises CredentialError."""
    if b"-----BEGIN" in data:
        data = _first_block(data)
    if len(data) > _BOUNDS.size:
        raise CredentialError(f"not a certificate: more than {_BOUNDS.size} bytes")
    try:
        outer = Pass(data, _BOUNDS).outermost()
        if outer.end != len(data):
            raise MalformedEvidence("not a certificate: bytes behind its end")
        return _fields(data, outer)
    except MalformedEvidence as error:
        raise CredentialError(str(error)) from error


DISABLED = "disabled"
"""What agents that serve plain HTTP register in place of a certificate."""


@dataclass(frozen=True, slots=True)
class PinnedKey:
    """HTTPS, by who holds the key with this SHA-256."""

    pin: bytes


class PlainHttp(Enum):
    """No HTTPS: because the agent says so, or because nothing is known of a certificate."""

    DISABLED = DISABLED
    UNKNOWN = ""


AgentTls: TypeAlias = PinnedKey | PlainHttp
"""How an agent is spoken to."""


def read_agent_tls(text: str | None) -> AgentTls:
    """What `mtls_cert` says, on the wire and in databases: PEM, "disabled", or nothing.

    Raises CredentialError for what is none of them.
    """
    if not text:
        return PlainHttp.UNKNOWN
    return PlainHttp.DISABLED if text == DISABLED else PinnedKey(key_pin(text))


def key_pin(pem: str) -> bytes:
    """What connections to the agent with the certificate in `pem` are pinned to. Raises CredentialError."""
    return read_agent_certificate(pem.encode("utf-8", "surrogatepass")).key_pin


def _first_block(data: bytes) -> bytes:
    block = _PEM.search(data)
    if block is None:
        raise CredentialError("not a certificate: no PEM block of one")
    try:
        return base64.b64decode(b"".join(block[1].split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise CredentialError("not a certificate: no base64 in the PEM text") from error


def _fields(data: bytes, outer: Element) -> AgentCertificate:
    """RFC 5280, 4.1: version, serial number, algorithm, issuer, validity, subject, key, and what follows."""
    parts = outer.children
    if outer.tag != SEQUENCE or [part.tag for part in parts] != [SEQUENCE, SEQUENCE, BIT_STRING]:
        raise MalformedEvidence("not a certificate: not a sequence of contents, algorithm and signature")
    contents = parts[0].children
    if contents and contents[0].tag == _VERSION:
        contents = contents[1:]
    if [element.tag for element in contents[:6]] != [INTEGER, *[SEQUENCE] * 5]:
        raise MalformedEvidence("not a certificate: its fields are not those of X.509")
    serial, _, issuer, validity, subject, key = contents[:6]
    if [child.tag for child in key.children] != [SEQUENCE, BIT_STRING]:
        raise MalformedEvidence("not a certificate: no public key")
    times = [_time(data, child) for child in validity.children]
    if len(times) != 2:
        raise MalformedEvidence("not a certificate: no beginning and end")
    return AgentCertificate(
        der=data,
        public_key=data[key.start : key.end],
        serial=int.from_bytes(data[serial.content : serial.content_end], signed=True),
        issuer=data[issuer.start : issuer.end],
        subject=data[subject.start : subject.end],
        not_before=times[0],
        not_after=times[1],
    )


def _time(data: bytes, element: Element) -> datetime | None:
    text = data[element.content : element.content_end]
    if element.tag == _UTC_TIME:  # RFC 5280, 4.1.2.5.1: 1950 to 2049
        text = (b"19" if text[:1] >= b"5" else b"20") + text
    elif element.tag != _GENERALIZED_TIME or element.tag & CONSTRUCTED:
        return None
    digits = _TIME.fullmatch(text)
    try:
        return None if digits is None else datetime(*map(int, digits.groups()), tzinfo=UTC)  # type: ignore[misc,arg-type]
    except ValueError:
        return None
