"""Options of the agent, section `[agent]` of agent.conf."""

from functools import partial

from keylime.config.model import ComponentTable, Kind, Option
from keylime.config.tables import shared

_agent = partial(Option, "agent")
_ignored = partial(Option, "agent", ignored=True)

_HASHES = ("sha1", "sha256", "sha384", "sha512")
_UUID_HELP = (
    "Identity of this agent: a fixed id, or generate (new at every start), hash_ek (SHA-256 of the "
    "endorsement key), hostname (fully qualified), environment (KEYLIME_AGENT_UUID), dmidecode (the "
    "machine's system UUID)."
)

AGENT = ComponentTable(
    "agent",
    "Keylime agent",
    (
        _agent("version", Kind.TEXT, "2.6", "Format of this file."),
        _agent("uuid", Kind.TEXT, "generate", _UUID_HELP),
        _agent(
            "ip",
            Kind.ADDRESS,
            "127.0.0.1",
            "Address to listen on; 0.0.0.0 means every IPv4 address.",
            packaged=shared.EVERYWHERE,
        ),
        _agent("port", Kind.INTEGER, 9002, "TCP port to listen on.", minimum=0, maximum=65535),
        _agent(
            "contact_ip",
            Kind.ADDRESS,
            "127.0.0.1",
            "Address under which verifier and tenant reach this agent.",
        ),
        _agent(
            "contact_port",
            Kind.INTEGER,
            9002,
            "Port under which verifier and tenant reach this agent.",
            minimum=1,
            maximum=65535,
        ),
        _agent("registrar_ip", Kind.ADDRESS, "127.0.0.1", "Address of the registrar."),
        _agent(
            "registrar_port",
            Kind.INTEGER,
            8890,
            "Port of the registrar for agents (plain HTTP; the exchange is protected by the TPM).",
            minimum=1,
            maximum=65535,
        ),
        _agent("registrar_tls_enabled", Kind.FLAG, False, "Register over TLS, at registrar_tls_port."),
        _agent(
            "registrar_tls_port",
            Kind.INTEGER,
            8891,
            "TLS port of the registrar.",
            minimum=1,
            maximum=65535,
        ),
        _agent(
            "registrar_tls_ca_cert",
            Kind.PATH,
            "default",
            "Certificate of the authority that vouches for the registrar; default is cv_ca/cacert.crt in the "
            "working directory.",
        ),
        shared.check_server_names("agent"),
        _agent(
            "enable_agent_mtls",
            Kind.FLAG,
            True,
            "Serve HTTPS and demand client certificates; without it everybody can talk to the agent.",
        ),
        _agent(
            "keylime_dir",
            Kind.PATH,
            "/var/lib/keylime",
            "Working directory; the variable KEYLIME_DIR goes first.",
        ),
        _agent(
            "tls_dir",
            Kind.PATH,
            "default",
            "Directory of key and certificate: default, or a path (relative to the working directory).",
        ),
        _agent(
            "server_key",
            Kind.PATH,
            "default",
            "Private key of the agent, made when missing; default is server-private.pem in tls_dir.",
        ),
        _agent(
            "server_key_password", Kind.SECRET, "", "Pass-phrase of server_key; empty means not encrypted."
        ),
        _agent(
            "server_cert",
            Kind.PATH,
            "default",
            "Self-signed certificate of the agent, made when missing; default is server-cert.crt in tls_dir.",
        ),
        _agent(
            "trusted_client_ca",
            Kind.LIST,
            ("default",),
            "Certificates of the authorities whose clients may talk to the agent; default is "
            "cv_ca/cacert.crt in the working directory, a copy of the verifier's.",
        ),
        shared.require_admin_role("agent"),
        _agent(
            "enc_keyname", Kind.TEXT, "derived_tci_key", "File for the payload key in the secure directory."
        ),
        _agent(
            "dec_payload_file",
            Kind.TEXT,
            "decrypted_payload",
            "File for the decrypted payload in the secure directory.",
        ),
        _agent("secure_size", Kind.TEXT, "1m", "Size of the secure tmpfs when the agent mounts it itself."),
        _agent(
            "tpm_ownerpassword",
            Kind.SECRET,
            "",
            "Authorisation of the TPM's owner and endorsement hierarchies; a hex: prefix gives raw bytes.",
        ),
        _agent("extract_payload_zip", Kind.FLAG, True, "Unpack a payload that is a zip archive."),
        _agent(
            "enable_revocation_notifications",
            Kind.FLAG,
            True,
            "Subscribe to the verifier's ZeroMQ publisher; notifications over HTTPS arrive in any case.",
        ),
        _agent(
            "revocation_notification_ip",
            Kind.ADDRESSES,
            ("127.0.0.1",),
            "Address of the ZeroMQ publisher, the verifier's; of several verifiers, a list.",
        ),
        _agent(
            "revocation_notification_port",
            Kind.INTEGER,
            8992,
            "Port of the ZeroMQ publisher.",
            minimum=1,
            maximum=65535,
        ),
        _agent(
            "revocation_cert",
            Kind.PATH,
            "default",
            "Certificate that verifies revocation messages; default is RevocationNotifier-cert.crt of the "
            "payload.",
        ),
        _agent(
            "revocation_actions",
            Kind.LIST,
            (),
            "Installed actions that run on a revocation, before the payload's.",
        ),
        _agent(
            "revocation_actions_dir", Kind.PATH, "/usr/libexec/keylime", "Directory of the installed actions."
        ),
        _agent(
            "allow_payload_revocation_actions",
            Kind.FLAG,
            True,
            "Also run actions that came with the payload.",
        ),
        _agent(
            "payload_script",
            Kind.TEXT,
            "autorun.sh",
            "Script of the payload that runs once it is unpacked; empty means none.",
        ),
        _agent(
            "payload_script_timeout",
            Kind.NUMBER,
            600.0,
            "Seconds after which payload_script is ended with all that it started; 0 means never. No later "
            "payload is installed while it runs.",
            minimum=0,
        ),
        _agent(
            "enable_insecure_payload",
            Kind.FLAG,
            False,
            "Allow a payload_script although enable_agent_mtls is off.",
        ),
        _agent(
            "measure_payload_pcr",
            Kind.INTEGER,
            -1,
            "PCR that is extended with the hash of the payload; -1 means none.",
            minimum=-1,
            maximum=23,
        ),
        _agent(
            "exponential_backoff_initial_delay",
            Kind.INTEGER,
            10_000,
            "First pause, in milliseconds, between attempts to reach the registrar.",
            minimum=1,
        ),
        _agent(
            "exponential_backoff_max_retries",
            Kind.INTEGER,
            5,
            "Attempts after the first one to reach the registrar.",
            minimum=0,
        ),
        _agent(
            "exponential_backoff_max_delay",
            Kind.INTEGER,
            300_000,
            "Longest pause, in milliseconds, between attempts to reach the registrar.",
            minimum=1,
        ),
        _agent(
            "tpm_hash_alg",
            Kind.TEXT,
            "sha256",
            "PCR bank and hash of quotes; sha1 is weak, and refused unless the tenant accepts it.",
            choices=_HASHES,
        ),
        _agent(
            "tpm_encryption_alg", Kind.TEXT, "rsa", "Type of the endorsement key: rsa, ecc, or with a size."
        ),
        _agent(
            "tpm_signing_alg",
            Kind.TEXT,
            "rsassa",
            "Signature scheme of the attestation key: rsassa, rsapss or ecdsa.",
        ),
        _agent(
            "ek_handle",
            Kind.TEXT,
            "generate",
            "Endorsement key: generate creates it, a persistent handle such as 0x81010001 uses a stored one.",
        ),
        _agent(
            "enable_iak_idevid",
            Kind.FLAG,
            False,
            "Register with the identity that the device's maker gave it: IDevID and IAK (TCG, TPM 2.0 Keys "
            "for Device Identity and Attestation).",
        ),
        _agent(
            "iak_idevid_template",
            Kind.TEXT,
            "detect",
            "Template that both keys are made from: H-1 (RSA-2048), H-2 (P-256), H-3 (P-384), H-4 (P-521), "
            "manual (of the next two options), or detect, which goes by the key in the certificate.",
            choices=("", "default", "detect", "H-1", "H-2", "H-3", "H-4", "H-5", "manual"),
        ),
        _agent(
            "iak_idevid_asymmetric_alg",
            Kind.TEXT,
            "rsa",
            "Type of both keys with the template manual: rsa or ecc.",
        ),
        _agent(
            "iak_idevid_name_alg",
            Kind.TEXT,
            "sha256",
            "Hash of both keys with the template manual: sha256, sha384 or sha512; the size follows from it.",
        ),
        _agent(
            "idevid_cert",
            Kind.PATH,
            "default",
            "Certificate of the IDevID, PEM or DER: default is idevid-cert.crt in the working directory or, "
            "without that file, what the TPM's NV memory holds; empty means NV memory only.",
        ),
        _agent("iak_cert", Kind.PATH, "default", "Certificate of the IAK likewise; default: iak-cert.crt."),
        _agent(
            "idevid_handle",
            Kind.TEXT,
            "",
            "Handle of an IDevID that is persistent in the TPM, such as 0x81020000; empty makes it from its "
            "template.",
        ),
        _agent(
            "idevid_password",
            Kind.SECRET,
            "",
            "Authorisation of the persistent IDevID; a hex: prefix gives raw bytes.",
        ),
        _agent("iak_handle", Kind.TEXT, "", "Handle of a persistent IAK, likewise."),
        _agent("iak_password", Kind.SECRET, "", "Authorisation of the persistent IAK, likewise."),
        _agent(
            "run_as",
            Kind.TEXT,
            "keylime:tss",
            "User and group (user:group) to become after the start as root; empty means stay root.",
        ),
        _agent(
            "agent_data_path",
            Kind.PATH,
            "default",
            "File that keeps the attestation key; default is agent_data.json in the working directory, "
            "empty means do not keep it.",
        ),
        _agent("ima_ml_path", Kind.PATH, "default", "IMA measurement list; default is the kernel's."),
        _agent("measuredboot_ml_path", Kind.PATH, "default", "Boot event log; default is the firmware's."),
        _agent(
            "os_ml_path",
            Kind.PATH,
            "default",
            "Log of what the operating system measured; default is systemd's, "
            "/run/log/systemd/tpm2-measure.log.",
        ),
        # Of keylime_push_model_agent alone.
        _agent(
            "verifier_url",
            Kind.LIST,
            ("https://localhost:8881",),
            "Verifier that keylime_push_model_agent attests to; of several, a list, in which they are tried.",
        ),
        _agent(
            "verifier_tls_ca_cert",
            Kind.PATH,
            "default",
            "Certificate of the authority that vouches for the verifier of keylime_push_model_agent; default "
            "is cv_ca/cacert.crt in the working directory.",
        ),
        _agent(
            "attestation_interval_seconds",
            Kind.INTEGER,
            60,
            "Seconds between attestations of keylime_push_model_agent where the verifier does not say (its "
            "quote_interval), and before it asks again a verifier to which it was not added.",
            minimum=1,
            maximum=86400,
        ),
        _agent(
            "certification_keys_server_identifier",
            Kind.TEXT,
            "ak",
            "What keylime_push_model_agent calls its attestation key to the verifier.",
        ),
        _agent(
            "uefi_logs_evidence_version",
            Kind.TEXT,
            "2.1",
            "Version of the boot log that keylime_push_model_agent announces.",
        ),
        # Known from existing files, without effect today.
        _ignored("api_versions", Kind.LIST, ("default",), "REST versions to offer."),
        _ignored(
            "registrar_api_versions", Kind.LIST, ("default",), "REST versions to try with the registrar."
        ),
        _ignored("payload_key", Kind.PATH, "default", "Separate key for payload shares."),
        _ignored("payload_key_password", Kind.SECRET, "", "Pass-phrase of payload_key."),
        _ignored("exponential_backoff", Kind.FLAG, True, "Growing pauses between TPM commands."),
        _ignored("retry_interval", Kind.NUMBER, 2.0, "Pause between TPM commands."),
        _ignored("max_retries", Kind.INTEGER, 4, "Attempts for TPM commands."),
        _ignored(
            "tls_accept_invalid_certs",
            Kind.FLAG,
            False,
            "Testing aid of the push model: servers are always checked.",
        ),
        _ignored("tls_accept_invalid_hostnames", Kind.FLAG, False, "Testing aid of the push model."),
        _ignored("disabled_signing_algorithms", Kind.LIST, (), "Withdrawn option."),
        _ignored("ima_ml_count_file", Kind.PATH, "default", "Withdrawn option."),
        _ignored("enable_authentication", Kind.FLAG, False, "Withdrawn option."),
    ),
)
