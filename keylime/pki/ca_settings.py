"""The options of `[ca]`, as the certificate authority takes them."""

from dataclasses import dataclass, field

from keylime.config.settings import Settings
from keylime.pki.issuance import CertificateSubject


@dataclass(frozen=True, slots=True)
class CaSettings:
    """What certificates say, and the password of the key store; `default` is a password like another here."""

    subject: CertificateSubject
    password: str = field(repr=False)


def ca_settings(settings: Settings) -> CaSettings:
    """The values of component "ca"."""
    subject = CertificateSubject(
        country=settings.text("cert_country"),
        state=settings.text("cert_state"),
        locality=settings.text("cert_locality"),
        organization=settings.text("cert_organization"),
        org_unit=settings.text("cert_org_unit"),
        ca_name=settings.text("cert_ca_name"),
        ca_lifetime_days=settings.integer("cert_ca_lifetime"),
        lifetime_days=settings.integer("cert_lifetime"),
        key_bits=settings.integer("cert_bits"),
        crl_url=settings.text("cert_crl_dist"),
    )
    return CaSettings(subject, settings.text("password"))
