"""Whose certificate is an administrator's: the rules for a client certificate that TLS has verified."""

import logging
from collections.abc import Callable
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from keylime.pki.roles import common_name, is_administrators, is_nodes, is_services

log = logging.getLogger(__name__)

AdminRule: TypeAlias = Callable[[x509.Certificate | None], str | None]

_CLIENT_USES = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
_MAX_REMEMBERED = 1024
_MAX_SUBJECT = 200


def administrator(certificate: x509.Certificate | None) -> str | None:
    """The name of the administrator who holds `certificate`; None when it is not an administrator's.

    Refused are certificates without a common name, self-signed ones (agents make theirs themselves, so an
    agent's certificate listed among the trusted ones still opens nothing), CA certificates, those made for
    machines or services, and those whose extended key usage leaves out client authentication. The chain is
    TLS's business, checked before.
    """
    if certificate is None:
        return None
    try:
        name = common_name(certificate)
        if not name or certificate.issuer == certificate.subject or not _for_clients(certificate.extensions):
            return None
        if is_nodes(certificate) or is_services(certificate):
            return None
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return None
    return name


def identification(certificate: x509.Certificate) -> str:
    """The subject and the serial number of a client's certificate, fit for a line of the log."""
    subject = ascii(certificate.subject.rfc4514_string()[:_MAX_SUBJECT])
    return f"{subject} (serial number {certificate.serial_number})"


class RoleRule:
    """A rule that also looks for the administrators' role, and tells once of each certificate without it."""

    def __init__(self, rule: AdminRule, *, require_role: bool, section: str) -> None:
        """`rule` says who a certificate's holder is, the option in `section` if the role is demanded."""
        self._rule = rule
        self._require_role = require_role
        self._option = f"[{section}] require_admin_role"
        self._told: dict[bytes, None] = {}

    def __call__(self, certificate: x509.Certificate | None) -> str | None:
        """Who holds `certificate`, as far as that gives rights; None when it gives none."""
        name = self._rule(certificate)
        if certificate is None or name is None or _has_role(certificate):
            return name
        if self._is_new(certificate):
            told = "gives no rights" if self._require_role else "is accepted for the time being"
            is_on = "on" if self._require_role else "off"
            log.warning(
                "the certificate of %s lacks the administrators' role and %s (%s is %s): "
                "make a new one on the host of the CA, `keylime_ca -c create -n NAME --role administrator -d "
                "DIR`",
                identification(certificate),
                told,
                self._option,
                is_on,
            )
        return None if self._require_role else name

    def _is_new(self, certificate: x509.Certificate) -> bool:
        fingerprint = certificate.fingerprint(hashes.SHA256())
        if fingerprint in self._told:
            return False
        if len(self._told) >= _MAX_REMEMBERED:
            del self._told[next(iter(self._told))]
        self._told[fingerprint] = None
        return True


def _has_role(certificate: x509.Certificate) -> bool:
    try:
        return is_administrators(certificate)
    except ValueError:
        return False


def _for_clients(extensions: x509.Extensions) -> bool:
    for extension in extensions:
        match extension.value:
            case x509.ExtendedKeyUsage() as usage if not _CLIENT_USES & set(usage):
                return False
            case x509.BasicConstraints(ca=True):
                return False
            case _:
                pass
    return True
