"""Whether a server's certificate may be that of the server which was called: what it is for, and its names.

Pure. Names are compared as RFC 9525 says: addresses with addresses, host names with host names, one wildcard
for the whole leftmost label; the common name of the subject is no name of a host.
"""

import enum
import ipaddress
from dataclasses import dataclass
from typing import Self

from cryptography import x509

from keylime.errors import CredentialError
from keylime.pki.roles import is_nodes

_MAX_SHOWN = 10


class NameCheck(enum.Enum):
    """What becomes of a server whose certificate has another name than it is called by."""

    OFF = "off"
    WARN = "warn"
    STRICT = "strict"


@dataclass(frozen=True, slots=True)
class ServerNames:
    """The names in a certificate, in the form that is compared: in lower case and without a final dot."""

    hosts: tuple[str, ...]
    addresses: tuple[str, ...]

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Self:
        """The subject alternative names. Raises CredentialError when they cannot be read."""
        try:
            found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return cls((), ())
        except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
            raise CredentialError("the certificate's names cannot be read") from error
        hosts = tuple(_plain(name) for name in found.get_values_for_type(x509.DNSName))
        return cls(hosts, tuple(str(address) for address in found.get_values_for_type(x509.IPAddress)))

    def __bool__(self) -> bool:
        return bool(self.hosts or self.addresses)

    def __str__(self) -> str:
        names = (*self.hosts, *self.addresses)
        more = f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
        return ", ".join(ascii(name)[1:-1] for name in names[:_MAX_SHOWN]) + more

    def cover(self, host: str) -> bool:
        """Whether one of them is `host`, an address or a host name (in its ASCII form)."""
        address = _address(host)
        if address is not None:
            return address in self.addresses
        called = _plain(host)
        return any(_covers(name, called) for name in self.hosts)


def server_remark(certificate: x509.Certificate, host: str, check: NameCheck) -> str | None:
    """What to tell the operator about the server called `host` that presents `certificate`, if anything.

    Raises CredentialError when it must not be talked to: its certificate was made for a machine, or the names
    are checked strictly and do not fit.
    """
    try:
        if is_nodes(certificate):
            raise CredentialError(
                "its certificate was made for a machine and is no server's of the control plane; give the "
                "server one of its own (keylime_ca -c create -n NAME --role server)"
            )
    except ValueError as error:
        raise CredentialError("its certificate's extensions cannot be read") from error
    if check is NameCheck.OFF:
        return None
    names = ServerNames.of(certificate)
    if names.cover(host):
        return None
    if names:
        problem = f"its certificate is for {names} and not for {host}"
        remedy = "call it by one of these names, or add the name with cert_subject_alternative_names"
    else:
        problem = f"its certificate has no subject alternative names, so nothing says that it is {host}"
        remedy = "give it a certificate with its names"
    if check is NameCheck.STRICT:
        raise CredentialError(f"{problem}; {remedy} (or relax check_server_names)")
    return f"{problem}; {remedy}" if names else None


def _covers(pattern: str, host: str) -> bool:
    if not pattern.startswith("*."):
        return pattern == host and "*" not in pattern
    first, _, rest = host.partition(".")
    # Never the whole of a top-level domain; and no part of a label.
    return bool(first) and "." in rest and "*" not in rest and rest == pattern[2:]


def _plain(name: str) -> str:
    return name.lower().removesuffix(".")


def _address(host: str) -> str | None:
    try:
        return str(ipaddress.ip_address(host.strip("[]").partition("%")[0]))
    except ValueError:
        return None
