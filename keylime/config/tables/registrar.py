"""Options of the registrar, section `[registrar]` of registrar.conf."""

from functools import partial

from keylime.config.model import ComponentTable, Kind, Option
from keylime.config.tables import shared

_registrar = partial(Option, "registrar")
_ignored = partial(Option, "registrar", ignored=True)

REGISTRAR = ComponentTable(
    "registrar",
    "Keylime registrar",
    (
        _registrar("version", Kind.TEXT, "2.6", "Format of this file."),
        _registrar(
            "ip",
            Kind.ADDRESS,
            "127.0.0.1",
            "Address to listen on with both ports; 0.0.0.0 means every IPv4 address.",
            packaged=shared.EVERYWHERE,
        ),
        _registrar(
            "port", Kind.INTEGER, 8890, "TCP port for agents that register (HTTP).", minimum=0, maximum=65535
        ),
        _registrar(
            "tls_port", Kind.INTEGER, 8891, "TCP port for administrators (HTTPS).", minimum=0, maximum=65535
        ),
        *shared.server_tls("registrar", tls_dir="default"),
        *shared.database("registrar"),
        _registrar(
            "tpm_identity",
            Kind.TEXT,
            "default",
            "What proves a TPM's identity: default (that is ek_cert_or_iak_idevid), ek_cert, iak_idevid.",
            choices=("default", "ek_cert_or_iak_idevid", "ek_cert", "iak_idevid"),
        ),
        _registrar(
            "malformed_cert_action",
            Kind.TEXT,
            "warn",
            "What happens to certificates that are not strict DER.",
            choices=("warn", "reject", "ignore"),
        ),
        shared.max_workers("registrar"),
        _registrar(
            "audit_retention",
            Kind.NUMBER,
            31536000.0,
            "Seconds for which it is kept who did what to registrations; 0: for good.",
            minimum=0,
        ),
        *shared.metrics("registrar"),
        _registrar(
            "max_upload_size",
            Kind.INTEGER,
            104_857_600,
            "Largest accepted request body in bytes.",
            minimum=1024,
        ),
        # Known from existing files, without effect today.
        _ignored(
            "authorization_provider",
            Kind.TEXT,
            "simple",
            "Access-control module.",
            refusal="this release has no other access control than administrators' certificates",
        ),
        *shared.durable_attestation("registrar", signed_attributes=("ek_tpm", "aik_tpm", "ekcert")),
        _ignored("prov_db_filename", Kind.TEXT, "provider_reg_data.sqlite", "Withdrawn option."),
        _ignored("log_destination", Kind.TEXT, "", "Log file; messages go to standard output."),
    ),
)
