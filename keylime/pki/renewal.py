"""New dates for what an authority has issued, and for the authority itself. Keys stay as they are.

A certificate is one file and is replaced in one step, so that there is no moment at which it does not fit its
key. All of it is done by who holds the lock of the directory. What is due is decided in `lifetimes`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from cryptography import x509

from keylime.errors import ConfigError
from keylime.pki.authority_files import CERTIFICATE_END, AuthorityFiles, checked_name
from keylime.pki.certificates import PublicKey, certificate_text
from keylime.pki.issuance import (
    CertificateSubject,
    LeafRequest,
    Usage,
    leaf_certificate,
    renewed_ca_certificate,
    usage_of,
)
from keylime.pki.keystore import KeyStore
from keylime.pki.lifetimes import Lifetime, RenewalPlan, plan_renewal


@dataclass(frozen=True, slots=True)
class Renewal:
    """Renews in one directory, at one time."""

    files: AuthorityFiles
    subject: CertificateSubject
    now: datetime

    def plan(self, names: Sequence[str]) -> RenewalPlan:
        """What is due of the authority and of the certificates with these names. Raises ConfigError."""
        leaves = {name: Lifetime.of(self.files.certificate_of(name)) for name in names}
        authority = self.files.certificate
        return plan_renewal(
            Lifetime.of(authority),
            leaves,
            leaf_days=self.subject.lifetime_days,
            now=self.now,
            is_issued_elsewhere=authority.issuer != authority.subject,
        )

    def leaf(self, name: str, sans: Sequence[str] = ()) -> x509.Certificate:
        """The certificate of `name` with new dates; without `sans` for the names that it has.

        Raises ConfigError, also for one that was revoked.
        """
        old = self.files.certificate_of(checked_name(name))
        store, key = self.files.load(), old.public_key()
        if old.serial_number in store.revoked or not isinstance(key, PublicKey):
            raise ConfigError(
                f"the certificate of {name} was revoked, or its key is of an unknown kind; "
                f"`keylime_ca -c create -n {name} -d {self.files.path}` makes another"
            )
        usage, serial = usage_of(name, old), store.last_serial + 1
        request = LeafRequest(name, key, serial, usage, sans or _names(old, name, usage))
        issuer, ca_key = self.files.issuer(store), self.files.ca_key(store)
        made = leaf_certificate(request, issuer, ca_key, self.subject, self.now)
        # The store goes first: a serial number is spent even if the file is never written.
        self.files.save(replace(store, last_serial=serial))
        self.files.write(f"{name}{CERTIFICATE_END}", certificate_text(made).encode("ascii"))
        return made

    def authority(self) -> x509.Certificate:
        """The authority's own certificate with new dates; those who have the old one trust it as before.

        Raises ConfigError.
        """
        store = self.files.load()
        old, serial = self.files.issuer(store), store.last_serial + 1
        made = renewed_ca_certificate(old, self.files.ca_key(store), serial, self.subject, self.now)
        self.files.save(replace(store, last_serial=serial))
        self.files.write_trusted((made, *self.still_trusted(store)))
        return made

    def still_trusted(self, store: KeyStore) -> tuple[x509.Certificate, ...]:
        """The other authorities that are trusted, without those that have ended."""
        issuer = self.files.issuer(store)
        return tuple(
            one for one in self.files.trusted if one != issuer and one.not_valid_after_utc > self.now
        )


def _names(certificate: x509.Certificate, name: str, usage: Usage) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    texts = [*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))]
    # The name alone is what a certificate has that was made without names.
    return () if texts == [name] and usage is not Usage.SERVER else tuple(texts)
