"""`keylime_ca -c list`, `renew` and `roll`: what there is, until when, and how it lives on."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from keylime.errors import ConfigError
from keylime.pki.authority import Authority
from keylime.pki.ca_directory import CaDirectory, certificate_of, issued_names, locked, read_certificates
from keylime.pki.ca_settings import CaSettings
from keylime.pki.file_names import CA_CERTIFICATE
from keylime.pki.files import require_directory
from keylime.pki.lifetimes import Lifetime, Validity, authority_margin
from keylime.pki.renewal import Renewal
from keylime.pki.roles import common_name
from keylime.pki.rollover import Rollover, is_issued_by

Say = Callable[[str], None]

_CA = "ca"
_WORDS = {
    Validity.GOOD: "good",
    Validity.ENDS_SOON: "ends soon",
    Validity.ENDED: "ENDED",
    Validity.NOT_YET_VALID: "NOT VALID YET",
}


def list_certificates(directory: Path, leaf_days: int, say: Say, now: datetime | None = None) -> None:
    """A line for each certificate of the authority, the authority's own first. Raises ConfigError."""
    require_directory(directory)
    moment = now or datetime.now(UTC)
    trusted = read_certificates(directory / CA_CERTIFICATE)
    rows = [("NAME", "SERIAL", "ENDS", "DAYS LEFT", "STATE", "ISSUED BY")]
    for number, authority in enumerate(trusted):
        margin = authority_margin(leaf_days)
        state = _WORDS[Lifetime.of(authority).validity(moment, margin)]
        rows.append(_row(_CA if not number else "ca (also trusted)", authority, moment, state, ""))
    for name in issued_names(directory):
        certificate = certificate_of(directory, name)
        issuer = next((one for one in trusted if is_issued_by(certificate, one)), None)
        by = "a CA that is not in cacert.crt" if issuer is None else common_name(issuer) or ""
        state = _WORDS[Lifetime.of(certificate).validity(moment)]
        rows.append(_row(name, certificate, moment, state, by))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        say("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _row(
    name: str, certificate: x509.Certificate, now: datetime, state: str, by: str
) -> tuple[str, str, str, str, str, str]:
    ends = certificate.not_valid_after_utc
    left = str(Lifetime.of(certificate).days_left(now))
    return (name, str(certificate.serial_number), f"{ends:%Y-%m-%d}", left, state, by)


def renew(directory: Path, settings: CaSettings, password: str, name: str | None, say: Say) -> None:
    """Gives new dates to the certificate of `name` ("ca": the authority's own), or to all that are due.

    Keys stay as they are. Raises ConfigError.
    """
    authority, renewal = _open(directory, settings, password)
    with locked(directory):
        if name is None:
            plan = renewal.plan(issued_names(directory))
            due, renews_authority = plan.names, plan.authority
        else:
            due, renews_authority = (() if name == _CA else (name,)), name == _CA
        if renews_authority:
            made = renewal.authority()
            say(f"Renewed the CA in {directory}, until {made.not_valid_after_utc:%Y-%m-%d}")
            say(f"Copy {directory / CA_CERTIFICATE} to registrars, tenants and agents that trust this CA")
        failed = _renew_all(renewal, due, say)
        if not renews_authority and not due:
            say(f"Nothing in {directory} is due; -n NAME renews a certificate all the same")
        else:
            authority.refresh_crl_locked()
    if failed:
        raise ConfigError("; ".join(failed))


def _renew_all(renewal: Renewal, names: Sequence[str], say: Say) -> list[str]:
    failed = []
    for name in names:
        try:
            made = renewal.leaf(name)
        except ConfigError as error:
            failed.append(str(error))
        else:
            say(f"Renewed the certificate of {name}, until {made.not_valid_after_utc:%Y-%m-%d}")
    return failed


def roll(
    directory: Path, settings: CaSettings, password: str, step: str | None, say: Say, *, force: bool = False
) -> None:
    """The next step of giving the authority another key: None, "switch" or "drop". Raises ConfigError."""
    authority, renewal = _open(directory, settings, password)
    rollover = Rollover(renewal)
    cacert = directory / CA_CERTIFICATE
    with locked(directory):
        if step is None:
            rollover.begin()
            say(f"Both the CA that issues and the next one are trusted now, in {cacert}")
            say(
                f"Copy {cacert} to all who trust this CA (trusted_client_ca, trusted_server_ca), reload them,"
            )
            say(f"then let the next one issue: `keylime_ca -c roll --switch -d {directory}`")
        elif step == "switch":
            done = rollover.switch()
            authority.refresh_crl_locked()
            say(f"The next CA issues now; renewed by it: {', '.join(done.renewed) or 'nothing'}")
            for reason in done.left:
                say(f"Still from the former CA: {reason}")
            command = f"keylime_ca -c roll --drop -d {directory}"
            say(f"When nobody shows a certificate of the former CA any more, drop it: `{command}`")
        else:
            count = rollover.drop(force=force)
            authority.refresh_crl_locked()
            say(f"Dropped {count} former CA from {cacert}; copy it to all who trust this CA")


def _open(directory: Path, settings: CaSettings, password: str) -> tuple[Authority, Renewal]:
    authority = Authority.open(directory, password, settings.subject)
    renewal = Renewal(CaDirectory(directory, password), settings.subject, datetime.now(UTC))
    return authority, renewal
