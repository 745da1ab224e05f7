"""What the holder of a certificate may be: the markers of this authority, and how older ones are read.

Pure. Two extended key usages of our own say more than those of RFC 5280 can: both an administrator and a
machine are TLS clients. Certificates made before there were markers are told by the form that they have.
"""

import re

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

# Below a GUID of our own, cut into arcs that every parser can hold (docs/adr/0006).
_OURS = "1.2.840.113556.1.8000.2554.40638.56276.11733.18118.34684.2138219.6228457"
ADMINISTRATOR = ObjectIdentifier(f"{_OURS}.1")
NODE = ObjectIdentifier(f"{_OURS}.2")

REVOCATION_NOTIFIER = "RevocationNotifier"
SERVER = "server"
CLIENT = "client"

# A comment that certificates of this kind of authority have always had; others wrote it without a DER type.
NETSCAPE_COMMENT = ObjectIdentifier("2.16.840.1.113730.1.13")
COMMENT = b"SSL Server"

IPSEC_IKE = ObjectIdentifier("1.3.6.1.5.5.7.3.17")  # RFC 4945
_UNMARKED_NODE = frozenset({ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH, IPSEC_IKE})
_SERVICE_NAMES = frozenset({SERVER, REVOCATION_NOTIFIER})
# What agents are called unless somebody chose a name: a UUID, or the hash of the endorsement key.
_AGENT_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{64}", re.IGNORECASE)


def is_administrators(certificate: x509.Certificate) -> bool:
    """Whether the certificate was issued for an administrator. Raises ValueError for damaged extensions."""
    return ADMINISTRATOR in (extended_usages(certificate) or ()) and not is_nodes(certificate)


def is_nodes(certificate: x509.Certificate) -> bool:
    """Whether the certificate was made for a machine, to be delivered with its payload.

    True also for those without a marker that show it: by the three usages that nothing else had, or, where
    there are no usages, by a name that is an agent's id. Raises ValueError for damaged extensions.
    """
    usages = extended_usages(certificate)
    if usages is not None and NODE in usages:
        return True
    if not _has_comment(certificate):
        return False
    if usages is None:
        return _AGENT_ID.fullmatch(common_name(certificate) or "") is not None
    return usages == _UNMARKED_NODE


def is_services(certificate: x509.Certificate) -> bool:
    """Whether the certificate identifies a server, or signs revocations, and nothing else.

    Where there are no usages, by its name. Raises ValueError for damaged extensions.
    """
    usages = extended_usages(certificate)
    if usages is None:
        return _has_comment(certificate) and common_name(certificate) in _SERVICE_NAMES
    return usages == {ExtendedKeyUsageOID.SERVER_AUTH}


def vouches_for_services(certificate: x509.Certificate) -> bool:
    """Whether who issued this certificate is trusted by services: it is a server's or an administrator's.

    Raises ValueError for damaged extensions.
    """
    usages = extended_usages(certificate)
    if usages is None:
        return _has_comment(certificate) and common_name(certificate) in (SERVER, CLIENT)
    return usages in ({ExtendedKeyUsageOID.SERVER_AUTH}, {ExtendedKeyUsageOID.CLIENT_AUTH}) or (
        ADMINISTRATOR in usages
    )


def common_name(certificate: x509.Certificate) -> str | None:
    """The first common name of the subject. Raises ValueError when the subject is damaged."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else None


def extended_usages(certificate: x509.Certificate) -> frozenset[ObjectIdentifier] | None:
    """The extended key usages; None where the certificate says nothing about them. Raises ValueError."""
    try:
        return frozenset(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return None
    except (x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ValueError(str(error)) from error


def _has_comment(certificate: x509.Certificate) -> bool:
    try:
        comment = certificate.extensions.get_extension_for_oid(NETSCAPE_COMMENT).value
    except x509.ExtensionNotFound:
        return False
    return isinstance(comment, x509.UnrecognizedExtension) and comment.value.endswith(COMMENT)
