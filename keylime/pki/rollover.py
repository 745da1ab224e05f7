"""A certificate authority gets another key, in three steps between which operators distribute cacert.crt.

First both are trusted and the old one issues, then the new one does, then the old one is dropped. Each step
can be repeated after a crash. All of it is done by who holds the lock of the directory.
"""

from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from keylime.errors import ConfigError
from keylime.pki.authority_files import STORE
from keylime.pki.certificates import MAX_COMMON_NAME, encode_private_key, parse_private_key, public_key_text
from keylime.pki.file_names import CA_CERTIFICATE
from keylime.pki.issuance import ca_certificate, new_key
from keylime.pki.keystore import FORMER_CA, NEXT_CA
from keylime.pki.renewal import Renewal

_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Switched:
    """The names whose certificates the new authority has issued, and why others are left with the old one."""

    renewed: tuple[str, ...]
    left: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rollover:
    """The steps in one directory, at one time."""

    renewal: Renewal

    def begin(self) -> x509.Certificate:
        """Makes the next authority, which is trusted from now on; returns its certificate.

        Raises ConfigError, also when a change is under way.
        """
        files, now = self.renewal.files, self.renewal.now
        store = files.load()
        if FORMER_CA in store.keys:
            raise ConfigError(self._step("the former CA is still trusted", "roll --drop"))
        if NEXT_CA not in store.keys:
            key = new_key(self.renewal.subject)
            store = store.with_next_ca(encode_private_key(key, None))
            files.save(store)
        key_of_next = parse_private_key(store.keys[NEXT_CA], None)
        for certificate in files.trusted:
            if certificate.public_key() == key_of_next.public_key():
                raise ConfigError(self._step("the next CA is there and trusted already", "roll --switch"))
        # Another name than the old one's: a certificate says by it which of them has issued it.
        name = f"{self.renewal.subject.ca_name[: MAX_COMMON_NAME - 11]} {now:%Y-%m-%d}"
        made = ca_certificate(key_of_next, replace(self.renewal.subject, ca_name=name), now)
        files.write_trusted((files.issuer(store), made, *self.renewal.still_trusted(store)))
        return made

    def switch(self) -> Switched:
        """Lets the next authority issue, first what there is in the directory. Raises ConfigError."""
        files = self.renewal.files
        store = files.load()
        if NEXT_CA in store.keys:
            store = store.switched()
            files.issuer(store)  # raises ConfigError where its certificate is missing
            files.save(store)
        elif FORMER_CA not in store.keys:
            raise ConfigError(self._step("there is no next CA", "roll"))
        issuer = files.issuer(store)
        files.write_trusted((issuer, *self.renewal.still_trusted(store)))
        public = public_key_text(files.ca_key(store).public_key())
        files.write("ca-public.pem", public.encode("ascii"))
        renewed, left = [], []
        for name in self._issued_by_others(issuer):
            try:
                self.renewal.leaf(name)
                renewed.append(name)
            except ConfigError as error:
                left.append(f"{name}: {error}")
        return Switched(tuple(renewed), tuple(left))

    def drop(self, *, force: bool) -> int:
        """Trusts the issuing authority alone from now on; how many others were trusted.

        Raises ConfigError, unless forced also where certificates of others are in the directory.
        """
        files = self.renewal.files
        store = files.load()
        if NEXT_CA in store.keys:
            raise ConfigError(self._step("the next CA does not issue yet", "roll --switch"))
        issuer = files.issuer(store)
        left = self._issued_by_others(issuer)
        if left and not force:
            names = ", ".join(left[:_MOST_NAMED]) + (", ..." if len(left) > _MOST_NAMED else "")
            raise ConfigError(
                f"certificates of the former CA are in {files.path}: {names}; make them anew with "
                f"`keylime_ca -c create -n NAME -d {files.path}`, or drop it all the same with --force"
            )
        count = len(files.trusted) - 1
        if not count and FORMER_CA not in store.keys:
            raise ConfigError(f"{files.path / CA_CERTIFICATE} holds one CA: there is nothing to drop")
        files.write_trusted((issuer,))
        files.save(store.without_former_ca())
        return count

    def _issued_by_others(self, issuer: x509.Certificate) -> tuple[str, ...]:
        files, now = self.renewal.files, self.renewal.now
        found = []
        for name in files.issued_names():
            certificate = files.certificate_of(name)
            if certificate.not_valid_after_utc > now and not is_issued_by(certificate, issuer):
                found.append(name)
        return tuple(found)

    def _step(self, problem: str, step: str) -> str:
        directory = self.renewal.files.path
        return f"{problem} in {directory / STORE}: the next step is `keylime_ca -c {step} -d {directory}`"


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether `issuer` has signed the certificate."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
