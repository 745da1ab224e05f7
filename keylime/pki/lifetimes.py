"""From when to when certificates are valid: which to renew, what to warn of, and in which words.

Pure: dates and the time come in as values. Who has which certificate is told in docs/certificates.md.
"""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import assert_never

from cryptography import x509

RENEWAL_MARGIN = timedelta(days=30)  # before its end a certificate is renewed, and warned of

_DAY = timedelta(days=1)
# What lives for less than three months is renewed when a third of its life is left.
_SHARE_OF_LIFE = 3


class Validity(enum.Enum):
    """A certificate's life, as seen at some time."""

    NOT_YET_VALID = enum.auto()
    GOOD = enum.auto()
    ENDS_SOON = enum.auto()
    ENDED = enum.auto()

    @property
    def is_usable(self) -> bool:
        """Whether peers accept it."""
        return self in (Validity.GOOD, Validity.ENDS_SOON)


@dataclass(frozen=True, slots=True)
class Lifetime:
    """From when to when a certificate is valid."""

    begins: datetime
    ends: datetime

    @classmethod
    def of(cls, certificate: x509.Certificate) -> "Lifetime":
        """The lifetime of a certificate."""
        return cls(certificate.not_valid_before_utc, certificate.not_valid_after_utc)

    def margin(self, longest: timedelta = RENEWAL_MARGIN) -> timedelta:
        """How long before its end it is renewed."""
        return min(longest, (self.ends - self.begins) / _SHARE_OF_LIFE)

    def validity(self, now: datetime, longest: timedelta = RENEWAL_MARGIN) -> Validity:
        """Whether it is valid, and for how long."""
        if now < self.begins:
            return Validity.NOT_YET_VALID
        if now >= self.ends:
            return Validity.ENDED
        return Validity.ENDS_SOON if now >= self.ends - self.margin(longest) else Validity.GOOD

    def days_left(self, now: datetime) -> int:
        """Whole days until its end; negative when that is over."""
        return (self.ends - now) // _DAY

    def is_renewed_now(self, now: datetime, longest: timedelta = RENEWAL_MARGIN) -> bool:
        """Whether it ends soon, or has ended. One that is not valid yet shows a wrong clock, now or then."""
        return self.validity(now, longest) in (Validity.ENDS_SOON, Validity.ENDED)


@dataclass(frozen=True, slots=True)
class RenewalPlan:
    """What to renew in the directory of an authority: its own certificate first, then others by name."""

    authority: bool
    names: tuple[str, ...]

    @property
    def subjects(self) -> tuple[str, ...]:
        """What is due, the authority as "ca"."""
        return ("ca", *self.names) if self.authority else self.names

    def __bool__(self) -> bool:
        return bool(self.subjects)


def authority_margin(leaf_days: int) -> timedelta:
    """How long before its end an authority is renewed: no certificate is ever cut short by it.

    That leaves a year, by default, in which its new certificate is brought to whoever trusts the old one.
    """
    return timedelta(days=leaf_days) + RENEWAL_MARGIN


def plan_renewal(
    authority: Lifetime,
    leaves: Mapping[str, Lifetime],
    *,
    leaf_days: int,
    now: datetime,
    is_issued_elsewhere: bool = False,
) -> RenewalPlan:
    """What is due at the time `now`, where certificates are made for `leaf_days`.

    An authority that another one has issued is renewed there, and others as long as they get a longer life.
    Among them is what begins only later than its authority: it was made while the clock was ahead, and nobody
    would accept it until then.
    """
    renews_authority = not is_issued_elsewhere and authority.is_renewed_now(now, authority_margin(leaf_days))
    is_usable = renews_authority or authority.validity(now).is_usable
    names = tuple(
        name
        for name, lifetime in leaves.items()
        if (lifetime.validity(now) is Validity.NOT_YET_VALID and is_usable)
        # Where the authority ends as soon, and is not renewed, a new certificate would be no better.
        or (lifetime.is_renewed_now(now) and (renews_authority or authority.ends > lifetime.ends))
    )
    return RenewalPlan(renews_authority, names)


class Holder(enum.Enum):
    """Whose a certificate is, seen from the program that has its file."""

    SERVER = "server certificate"
    CLIENT = "client certificate"
    AUTHORITY = "trusted CA"


@dataclass(frozen=True, slots=True)
class CertificateFile:
    """A certificate in use: whose, where, by which option; `authority` is the directory that can renew it."""

    holder: Holder
    path: Path
    lifetime: Lifetime
    option: str = ""
    authority: Path | None = None

    def __str__(self) -> str:
        return f"{self.holder.value} {self.path}"


def when(moment: datetime) -> str:
    """A date and time as messages show it."""
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def life_remark(certificate: CertificateFile, now: datetime) -> str | None:
    """What is to be said of its dates, without the remedy; None when all is well."""
    life = certificate.lifetime
    match life.validity(now):
        case Validity.GOOD:
            return None
        case Validity.ENDS_SOON:
            return f"the {certificate} ends on {when(life.ends)}, in {_days(life.days_left(now))}"
        case Validity.ENDED:
            return f"the {certificate} ended on {when(life.ends)}"
        case Validity.NOT_YET_VALID:
            return (
                f"the {certificate} is not valid before {when(life.begins)}, and here it is {when(now)}: "
                "check the clock of this machine (timedatectl)"
            )
        case _ as never:
            assert_never(never)


def remedy(certificate: CertificateFile) -> str:
    """What an operator types to renew it."""
    if certificate.authority is None:
        new = "put a new one in its place"
        if certificate.holder is not Holder.AUTHORITY:
            new += ", and its key"
        return f"{new}; it is taken up by itself, or at once with SIGHUP (systemctl reload)"
    name = "ca" if certificate.holder is Holder.AUTHORITY else certificate.path.name.removesuffix("-cert.crt")
    done = f"`keylime_ca -c renew -n {name} -d {certificate.authority}`"
    if certificate.holder is Holder.AUTHORITY:
        return f"{done}, and copy {certificate.path.name} to all who trust it"
    return f"{done}, where the CA's key (private.yml) is"


def remark(certificate: CertificateFile, now: datetime) -> str | None:
    """What is to be said of a certificate, with the remedy; None when all is well."""
    said = life_remark(certificate, now)
    if said is None or certificate.lifetime.validity(now) is Validity.NOT_YET_VALID:
        return said
    return f"{said}; {remedy(certificate)}"


def short_remark(certificate: CertificateFile, now: datetime) -> str | None:
    """The same in words fit for anyone: no folder and no command."""
    validity, life = certificate.lifetime.validity(now), certificate.lifetime
    words = {
        Validity.ENDS_SOON: f"ends on {life.ends:%Y-%m-%d}",
        Validity.ENDED: f"ended on {life.ends:%Y-%m-%d}",
        Validity.NOT_YET_VALID: f"is not valid before {when(life.begins)}: is this machine's clock right?",
    }.get(validity)
    return None if words is None else f"{certificate.holder.value} {certificate.path.name} {words}"


def unusable(certificates: Iterable[CertificateFile], now: datetime) -> tuple[CertificateFile, ...]:
    """Those because of which this program cannot do its work: its own, and an option's last authority."""
    found = tuple(certificates)
    own = [
        one
        for one in found
        if one.holder is not Holder.AUTHORITY and not one.lifetime.validity(now).is_usable
    ]
    trusted: dict[str, list[CertificateFile]] = {}
    for one in found:
        if one.holder is Holder.AUTHORITY:
            trusted.setdefault(one.option, []).append(one)
    for group in trusted.values():
        if not any(one.lifetime.validity(now).is_usable for one in group):
            own += group
    return tuple(dict.fromkeys(own))


def _days(count: int) -> str:
    return "less than a day" if count < 1 else "1 day" if count == 1 else f"{count} days"
