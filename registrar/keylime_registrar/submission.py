"""A registration request read field by field: base64, hexadecimal and PEM in, bytes out. Pure."""

import base64
import binascii
import ipaddress
import re
from dataclasses import dataclass
from typing import TypeVar

from keylime.errors import CredentialError, MalformedEvidence
from keylime.identifiers import AgentId
from keylime.messages.registrar import RegisterRequest
from keylime.pki.certificates import certificate_text, parse_certificate
from keylime.pki.der import read_certificate
from keylime_registrar.identity import Certification, Registration, RegistrationRefused

MTLS_DISABLED = "disabled"

_HEX = re.compile(r"(?:0x)?((?:[0-9a-fA-F]{2})+)")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----([A-Za-z0-9+/=\s]+)-----END CERTIFICATE-----")
_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,253}")
_IPV6 = re.compile(r"\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9_.-]{1,32})?")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Submission:
    """A registration as read; `irregular` names the certificates that are not strict DER."""

    registration: Registration
    certification: Certification | None
    irregular: tuple[str, ...]


def read_submission(agent_id: AgentId, request: RegisterRequest) -> Submission:
    """The content of a request. An empty text means that a field is absent. Raises RegistrationRefused."""
    irregular: list[str] = []
    certificates = {
        name: _certificate(name, getattr(request, name), irregular)
        for name in ("ekcert", "iak_cert", "idevid_cert")
    }
    attest, signature = _blob("iak_attest", request.iak_attest), _blob("iak_sign", request.iak_sign)
    registration = Registration(
        agent_id=agent_id,
        ek_tpm=_required("ek_tpm", _blob("ek_tpm", request.ek_tpm)),
        aik_tpm=_required("aik_tpm", _blob("aik_tpm", request.aik_tpm)),
        iak_tpm=_blob("iak_tpm", request.iak_tpm),
        idevid_tpm=_blob("idevid_tpm", request.idevid_tpm),
        ip=_host(request.ip),
        port=_port(request.port),
        mtls_cert=_mtls_certificate(request.mtls_cert),
        **certificates,
    )
    certification = Certification(attest, signature) if attest is not None and signature is not None else None
    return Submission(registration, certification, tuple(irregular))


def _required(name: str, value: _T | None) -> _T:
    if value is None:
        raise RegistrationRefused(f"{name} is missing")
    return value


def _blob(name: str, text: str | None) -> bytes | None:
    """A TPM structure: base64, or hexadecimal as some agents write it."""
    if not text:
        return None
    # A TPM structure in base64 never consists of hexadecimal digits alone.
    if match := _HEX.fullmatch(text):
        return bytes.fromhex(match[1])
    return _base64(name, text)


def _base64(name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RegistrationRefused(f"{name} is not base64") from error


def _certificate(name: str, text: str | None, irregular: list[str]) -> bytes | None:
    """A certificate's own bytes, from base64 or from the first block of PEM."""
    if not text:
        return None
    if "-----BEGIN" in text:
        match = _PEM.search(text)
        if match is None:
            raise RegistrationRefused(f"{name} holds no PEM certificate")
        text = "".join(match[1].split())
    data = _base64(name, text)
    try:
        if read_certificate(data).normalised:
            irregular.append(name)
    except MalformedEvidence as error:
        raise RegistrationRefused(f"{name}: {error}") from error
    return data


def _mtls_certificate(text: str | None) -> str | None:
    if not text:
        return None
    if text == MTLS_DISABLED:
        return text
    data = text.encode("utf-8", "surrogatepass") if "-----BEGIN" in text else _base64("mtls_cert", text)
    try:
        return certificate_text(parse_certificate(data))
    except CredentialError as error:
        raise RegistrationRefused(f"mtls_cert: {error}") from error


def _host(text: str | None) -> str | None:
    if not text:
        return None
    if _HOST_NAME.fullmatch(text) or (_IPV6.fullmatch(text) and _is_address(text.strip("[]"))):
        return text
    raise RegistrationRefused("ip is neither an address nor a host name")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _port(value: int | str | None) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,5}", value):
        raise RegistrationRefused("port is not a number")
    port = int(value)
    if not 0 < port <= 65535:
        raise RegistrationRefused("port is not between 1 and 65535")
    return port
