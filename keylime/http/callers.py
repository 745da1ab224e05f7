"""Whose certificate is an administrator's: the rule for a client certificate that TLS has verified."""

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_CLIENT_USES = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}


def administrator(certificate: x509.Certificate | None) -> str | None:
    """The name of the administrator who holds `certificate`; None when it is not an administrator's.

    Refused are certificates without a common name, self-signed ones (agents make theirs themselves, so an
    agent's certificate listed among the trusted ones still opens nothing), CA certificates, and certificates
    whose extended key usage leaves out client authentication. The chain is TLS's business, checked before.
    """
    if certificate is None:
        return None
    try:
        names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        name = str(names[0].value) if names else ""
        if not name or certificate.issuer == certificate.subject or not _for_clients(certificate.extensions):
            return None
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return None
    return name


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
