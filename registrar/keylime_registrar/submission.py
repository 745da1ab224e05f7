"""A registration request read field by field: base64, hexadecimal and PEM in, bytes out. Pure."""

import base64
import binascii
import ipaddress
import re
from dataclasses import dataclass
from typing import TypeVar

from keylime.errors import CredentialError, MalformedEvidence, UnsuitableKey
from keylime.identifiers import AgentId
from keylime.messages.registrar import RegisterRequest
from keylime.pki.agent_certificate import DISABLED, read_agent_certificate
from keylime.pki.der import MAX_CERTIFICATE_SIZE, TolerantCertificate, read_certificate
from keylime.tpm.default_ek import default_ek
from keylime_registrar.identity import (
    Certification,
    RegisteredCertificates,
    Registration,
    RegistrationRefused,
)

EMULATOR = "emulator"  # what agents before Keylime 7 send as the EK certificate of a software TPM: none

_HEX = re.compile(r"(?:0x)?((?:[0-9a-fA-F]{2})+)")
_PEM_BEGIN, _PEM_END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
# Characters. What a field may hold is bounded before any of it is read.
_MAX_BLOB = 8 * 1024  # in hexadecimal, a key of 4096 bits has 1.3 KiB
_MAX_CERTIFICATE = 2 * MAX_CERTIFICATE_SIZE  # base64, in lines
_MAX_MTLS_CERTIFICATE = 32 * 1024
_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,253}")
_IPV6 = re.compile(r"\[[0-9A-Fa-f:.]{2,45}\]|[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9_.-]{1,32})?")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Submission:
    """A registration as read, and what vouches for it but is not kept."""

    registration: Registration
    certificates: RegisteredCertificates
    certification: Certification | None


def read_submission(agent_id: AgentId, request: RegisterRequest) -> Submission:
    """The content of a request. An empty text means that a field is absent. Raises RegistrationRefused."""
    ekcert = None if request.ekcert == EMULATOR else certificate_bytes("ekcert", request.ekcert)
    ek_certificate = _certificate("ekcert", ekcert)
    iak_cert = certificate_bytes("iak_cert", request.iak_cert)
    idevid_cert = certificate_bytes("idevid_cert", request.idevid_cert)
    attest, signature = read_blob("iak_attest", request.iak_attest), read_blob("iak_sign", request.iak_sign)
    registration = Registration(
        agent_id=agent_id,
        ek_tpm=read_blob("ek_tpm", request.ek_tpm) or _ek_of(ek_certificate),
        aik_tpm=_required("aik_tpm", read_blob("aik_tpm", request.aik_tpm)),
        ekcert=ekcert,
        iak_tpm=read_blob("iak_tpm", request.iak_tpm),
        iak_cert=iak_cert,
        idevid_tpm=read_blob("idevid_tpm", request.idevid_tpm),
        idevid_cert=idevid_cert,
        ip=read_host(request.ip),
        port=read_port(request.port),
        mtls_cert=mtls_certificate(request.mtls_cert),
    )
    certificates = RegisteredCertificates(
        ekcert=ek_certificate,
        iak_cert=_certificate("iak_cert", iak_cert),
        idevid_cert=_certificate("idevid_cert", idevid_cert),
    )
    certification = Certification(attest, signature) if attest is not None and signature is not None else None
    return Submission(registration, certificates, certification)


def _required(name: str, value: _T | None) -> _T:
    if value is None:
        raise RegistrationRefused(f"{name} is missing")
    return value


def _ek_of(certificate: TolerantCertificate | None) -> bytes:
    """The public area of the EK in its certificate, for agents that send nothing else."""
    if certificate is None:
        raise RegistrationRefused("ek_tpm is missing, and there is no ekcert to derive it from")
    try:
        return default_ek(certificate.certificate.public_key())
    except UnsuitableKey as error:
        raise RegistrationRefused(f"ek_tpm is missing, and does not follow from ekcert: {error}") from error


def read_blob(name: str, text: str | None) -> bytes | None:
    """A TPM structure: base64, or hexadecimal as some agents write it."""
    if not text:
        return None
    _demand_length(name, text, _MAX_BLOB)
    # A TPM structure in base64 never consists of hexadecimal digits alone.
    if match := _HEX.fullmatch(text):
        return bytes.fromhex(match[1])
    return _base64(name, text)


def _demand_length(name: str, text: str, most: int) -> None:
    if len(text) > most:
        raise RegistrationRefused(f"{name} has {len(text)} characters, at most {most} are read")


def _base64(name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RegistrationRefused(f"{name} is not base64") from error


def certificate_bytes(name: str, text: str | None) -> bytes | None:
    """A certificate's own bytes, from base64 or from the first block of PEM."""
    if not text:
        return None
    begin = text.find(_PEM_BEGIN)
    if begin >= 0 or "-----BEGIN" in text:
        end = text.find(_PEM_END, begin)
        if begin < 0 or end < 0:
            raise RegistrationRefused(f"{name} holds no PEM certificate")
        text = text[begin + len(_PEM_BEGIN) : end]
        _demand_length(name, text, _MAX_CERTIFICATE)
        text = "".join(text.split())
    _demand_length(name, text, _MAX_CERTIFICATE)
    return _base64(name, text)


def _certificate(name: str, data: bytes | None) -> TolerantCertificate | None:
    if data is None:
        return None
    try:
        return read_certificate(data)
    except MalformedEvidence as error:
        raise RegistrationRefused(f"{name}: {error}") from error


def mtls_certificate(text: str | None) -> str | None:
    if not text:
        return None
    if text == DISABLED:
        return text
    _demand_length("mtls_cert", text, _MAX_MTLS_CERTIFICATE)
    data = text.encode("utf-8", "surrogatepass") if "-----BEGIN" in text else _base64("mtls_cert", text)
    try:
        return read_agent_certificate(data).pem
    except CredentialError as error:
        raise RegistrationRefused(f"mtls_cert: {error}") from error


def read_host(text: str | None) -> str | None:
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


def read_port(value: int | str | None) -> int | None:
    if value is None or value == "":
        return None
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,5}", value):
        raise RegistrationRefused("port is not a number")
    port = int(value)
    if not 0 < port <= 65535:
        raise RegistrationRefused("port is not between 1 and 65535")
    return port
