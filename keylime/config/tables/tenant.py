"""Options of the tenant, section `[tenant]` of tenant.conf."""

from functools import partial

from keylime.config.model import ComponentTable, Kind, Option
from keylime.config.tables import shared

_tenant = partial(Option, "tenant")

TENANT = ComponentTable(
    "tenant",
    "Keylime tenant",
    (
        _tenant("version", Kind.TEXT, "2.6", "Format of this file."),
        _tenant("verifier_ip", Kind.ADDRESS, "127.0.0.1", "Address of the verifier."),
        _tenant("verifier_port", Kind.INTEGER, 8881, "Port of the verifier.", minimum=1, maximum=65535),
        _tenant("registrar_ip", Kind.ADDRESS, "127.0.0.1", "Address of the registrar."),
        _tenant("registrar_port", Kind.INTEGER, 8891, "TLS port of the registrar.", minimum=1, maximum=65535),
        _tenant(
            "tls_dir",
            Kind.PATH,
            "default",
            "Directory of keys and certificates; default is the verifier's (cv_ca in the working directory).",
        ),
        _tenant("enable_agent_mtls", Kind.FLAG, True, "Talk to agents over mutual TLS."),
        *shared.client_tls("tenant", peer="verifier, registrar and agents"),
        _tenant(
            "tpm_cert_store",
            Kind.PATH,
            "/var/lib/keylime/tpm_cert_store",
            "Directory with the certificates of trusted TPM makers (PEM or DER). This default follows "
            "KEYLIME_DIR.",
        ),
        _tenant(
            "max_payload_size", Kind.INTEGER, 1_048_576, "Largest encrypted payload in bytes.", minimum=1
        ),
        _tenant(
            "accept_tpm_hash_algs",
            Kind.LIST,
            ("sha512", "sha384", "sha256"),
            "Hash algorithms that a quote may use; sha1 is weak.",
        ),
        _tenant(
            "accept_tpm_encryption_algs",
            Kind.LIST,
            ("ecc", "rsa"),
            "Key types that an attestation key may have.",
        ),
        _tenant(
            "accept_tpm_signing_algs",
            Kind.LIST,
            ("ecdsa", "ecschnorr", "rsassa", "rsapss"),
            "Signature schemes that a quote may use. ecschnorr is a known word without effect: no verifier "
            "here can check such quotes.",
        ),
        _tenant(
            "exponential_backoff",
            Kind.FLAG,
            True,
            "Let the pause before a retry grow: retry_interval to the power of the attempt.",
        ),
        _tenant("retry_interval", Kind.NUMBER, 2.0, "Seconds from one attempt to the next.", minimum=0),
        _tenant("max_retries", Kind.INTEGER, 5, "Attempts before the tenant gives up.", minimum=0),
        _tenant(
            "request_timeout",
            Kind.NUMBER,
            60.0,
            "Seconds that a request may take, and all attempts at one together.",
            minimum=0.001,
        ),
        _tenant(
            "connect_timeout",
            Kind.NUMBER,
            10.0,
            "Seconds of request_timeout in which a connection must come about. Where a firewall drops what "
            "is sent, nobody refuses it either.",
            minimum=0.001,
        ),
        _tenant(
            "require_ek_cert", Kind.FLAG, True, "Demand an endorsement certificate from a trusted TPM maker."
        ),
        _tenant(
            "ek_check_script",
            Kind.PATH,
            "",
            "Program that decides about an endorsement key; accepted when it exits with 0.",
        ),
        _tenant("mb_refstate", Kind.PATH, "", "Measured-boot reference state for --mb_refstate default."),
    ),
)
