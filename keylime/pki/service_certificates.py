"""The certificates that a service makes for itself and renews (`tls_dir = generate`), and their names."""

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from keylime.errors import ConfigError
from keylime.pki.authority import DEFAULT_SUBJECT, Authority
from keylime.pki.ca_directory import CaDirectory, locked
from keylime.pki.file_names import CA_CERTIFICATE
from keylime.pki.files import ensure_private_directory
from keylime.pki.issuance import CertificateSubject
from keylime.pki.lifetimes import RenewalPlan
from keylime.pki.renewal import Renewal


class RenewalImpossible(ConfigError):
    """Certificates that cannot be renewed here, but can be used until they end; the text says why."""


@dataclass(frozen=True, slots=True)
class Done:
    """What was made, and what has new dates: "ca", "server", "client"."""

    created: tuple[str, ...] = ()
    renewed: tuple[str, ...] = ()


def ensure_service_certificates(
    directory: Path,
    password: str,
    subject: CertificateSubject = DEFAULT_SUBJECT,
    *,
    server_sans: Sequence[str],
    client: bool,
    server_key_password: str | None = None,
    client_key_password: str | None = None,
    now: datetime | None = None,
) -> Done:
    """Makes what a service lacks in its CA directory, and renews what is near its end or beyond.

    When nothing is to be done the password is not needed. However many processes call it, each thing is done
    once. Raises RenewalImpossible, when nothing is missing, and ConfigError.
    """
    moment = now or datetime.now(UTC)
    wanted = {"server": (tuple(server_sans), server_key_password)}
    if client:
        wanted["client"] = ((), client_key_password)
    if not (directory / CA_CERTIFICATE).exists():
        ensure_private_directory(directory)
    with locked(directory):
        if (directory / CA_CERTIFICATE).exists():
            created = [name for name in wanted if _is_missing(directory, name)]
            if created:
                Authority.open(directory, password, subject)
        else:
            Authority.create_locked(directory, password, subject, moment)
            created = ["ca", *wanted]
        authority = Authority(directory, password, subject)
        for name in [one for one in wanted if one in created]:
            names, key_password = wanted[name]
            authority.issue_locked(name, names, None, key_password)
        renewal = Renewal(CaDirectory(directory, password), subject, moment)
        plan = renewal.plan([name for name in wanted if name not in created])
        if plan:
            left = _renew(renewal, plan, {name: names for name, (names, _) in wanted.items()})
            if len(left) < len(plan.subjects):
                authority.refresh_crl_locked()
            _demand_none(left, directory)
        return Done(tuple(created), plan.subjects)


def _renew(renewal: Renewal, plan: RenewalPlan, sans: dict[str, tuple[str, ...]]) -> dict[str, ConfigError]:
    """Renews what it can: one that was revoked must not keep the others from it. Why some are left."""
    left: dict[str, ConfigError] = {}
    for subject in plan.subjects:
        try:
            if subject in sans:
                renewal.leaf(subject, sans[subject])
            else:
                renewal.authority()
        except ConfigError as error:
            left[subject] = error
    return left


def _demand_none(left: dict[str, ConfigError], directory: Path) -> None:
    if left:
        reasons = "; ".join(dict.fromkeys(str(error) for error in left.values()))
        raise RenewalImpossible(
            f"{', '.join(left)} in {directory} should be renewed now, which is not possible: "
            f"{reasons}; where the CA's key is kept elsewhere, run `keylime_ca -c renew -d {directory}` "
            "there and copy the certificates back"
        ) from next(iter(left.values()))


def server_names(bind_address: str, extra: Iterable[str]) -> tuple[str, ...]:
    """The names for a generated server certificate: this host's, the address it listens on, and `extra`."""
    names = {"localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn(), *extra}
    if bind_address not in ("", "0.0.0.0", "::"):  # noqa: S104 - compared with, not bound to
        names.add(bind_address)
    return tuple(sorted(names - {""}))


def _is_missing(directory: Path, name: str) -> bool:
    return not ((directory / f"{name}-cert.crt").exists() and (directory / f"{name}-private.pem").exists())
