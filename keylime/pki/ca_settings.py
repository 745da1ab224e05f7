"""The options of `[ca]`, as the certificate authority takes them."""

from dataclasses import dataclass, field

from keylime.config.settings import Settings
from keylime.pki.issuance import CertificateSubject

SHIPPED_PASSWORD = "default"  # noqa: S105  # of `[ca] password`


@dataclass(frozen=True, slots=True)
class CaSettings:
    """What certificates say, and the password of the key store; `default` is a password like another here.

    `is_shipped` tells whether it is only what files are shipped with, which means that people are asked.
    """

    subject: CertificateSubject
    password: str = field(repr=False)
    is_shipped: bool


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
    password = settings.text("password")
    # Whoever sets the variable has chosen the word: it is the password of CAs that services made with it.
    is_shipped = password == SHIPPED_PASSWORD and not settings.is_of_environment("password")
    return CaSettings(subject, password, is_shipped)
