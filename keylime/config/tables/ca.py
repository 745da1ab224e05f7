"""Options of the certificate authority, section `[ca]` of ca.conf; read by servers, tenant and keylime_ca."""

from functools import partial

from keylime.config.model import ComponentTable, Kind, Option

_ca = partial(Option, "ca")

CA = ComponentTable(
    "ca",
    "Keylime certificate authority",
    (
        _ca("version", Kind.TEXT, "2.6", "Format of this file."),
        _ca(
            "password",
            Kind.SECRET,
            "default",
            "Protects the authority's private key (private.yml); with default, servers use the word itself "
            "and interactive programs ask.",
        ),
        _ca("cert_country", Kind.TEXT, "US", "Country of every certificate's subject."),
        _ca("cert_ca_name", Kind.TEXT, "Keylime Certificate Authority", "Common name of the authority."),
        _ca("cert_state", Kind.TEXT, "MA", "State of every certificate's subject."),
        _ca("cert_locality", Kind.TEXT, "Lexington", "Locality of every certificate's subject."),
        _ca("cert_organization", Kind.TEXT, "Keylime", "Organisation of every certificate's subject."),
        _ca("cert_org_unit", Kind.TEXT, "53", "Organisational unit of every certificate's subject."),
        _ca(
            "cert_ca_lifetime",
            Kind.INTEGER,
            3650,
            "Days that the authority's certificate is valid.",
            minimum=1,
        ),
        _ca("cert_lifetime", Kind.INTEGER, 365, "Days that every other certificate is valid.", minimum=1),
        _ca("cert_bits", Kind.INTEGER, 2048, "Size of RSA keys.", minimum=2048, maximum=16384),
        _ca(
            "cert_crl_dist",
            Kind.TEXT,
            "http://localhost:38080/crl",
            "Where certificates say that the revocation list is found.",
        ),
    ),
)
