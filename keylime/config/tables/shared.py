"""Groups of options that several components have."""

from functools import partial

from keylime.config.model import Kind, Option

# Where packaged daemons listen: where documentation of Keylime has always expected them.
EVERYWHERE = "0.0.0.0"  # noqa: S104 - what a file says


def server_tls(section: str, *, tls_dir: str) -> tuple[Option, ...]:
    """Key, certificate and trusted clients of a server."""
    option = partial(Option, section)
    return (
        option(
            "tls_dir",
            Kind.PATH,
            tls_dir,
            "Directory of keys and certificates: generate creates an authority of its own there, default is "
            "the verifier's (cv_ca), anything else is a path (relative to the working directory).",
        ),
        option("server_key", Kind.PATH, "default", "Private key; default is server-private.pem in tls_dir."),
        option(
            "server_key_password", Kind.SECRET, "", "Pass-phrase of server_key; empty means not encrypted."
        ),
        option("server_cert", Kind.PATH, "default", "Certificate; default is server-cert.crt in tls_dir."),
        option(
            "trusted_client_ca",
            Kind.LIST,
            ("default",),
            "Certificates of the authorities whose clients are administrators; default is cv_ca/cacert.crt.",
        ),
        require_admin_role(section),
        option(
            "cert_subject_alternative_names",
            Kind.LIST,
            (),
            "Further names and addresses for a generated server certificate.",
        ),
    )


def require_admin_role(section: str) -> Option:
    """Whether clients need the role that certificates of administrators carry."""
    return Option(
        section,
        "require_admin_role",
        Kind.FLAG,
        False,
        "Accept only client certificates that carry the administrators' role; without it others of "
        "trusted_client_ca are accepted too, and named in the log. Those made for machines never are.",
    )


def check_server_names(section: str) -> Option:
    """What becomes of servers whose certificate has other names."""
    return Option(
        section,
        "check_server_names",
        Kind.TEXT,
        "warn",
        "Whether a server's certificate must be for the name or address it is called by: off, warn (once, "
        "where it has names), strict (refuse others, and certificates without names). Agents are known by "
        "the certificate they registered instead.",
        choices=("off", "warn", "strict"),
    )


def client_tls(section: str, *, peer: str) -> tuple[Option, ...]:
    """Key, certificate and trusted servers of a client."""
    option = partial(Option, section)
    return (
        option(
            "client_key",
            Kind.PATH,
            "default",
            f"Private key shown to {peer}; default is client-private.pem in tls_dir.",
        ),
        option(
            "client_key_password", Kind.SECRET, "", "Pass-phrase of client_key; empty means not encrypted."
        ),
        option(
            "client_cert",
            Kind.PATH,
            "default",
            f"Certificate shown to {peer}; default is client-cert.crt in tls_dir.",
        ),
        option(
            "trusted_server_ca",
            Kind.LIST,
            ("default",),
            "Certificates of the authorities that vouch for servers; default is cv_ca/cacert.crt.",
        ),
        check_server_names(section),
    )


def database(section: str) -> tuple[Option, ...]:
    """Where a server keeps its tables."""
    option = partial(Option, section)
    return (
        option(
            "database_url",
            Kind.TEXT,
            "sqlite",
            "Database: sqlite is a file in the working directory, or a URL such as "
            "postgresql://user:password@host/name (several hosts, a primary and its standbys, are separated "
            "by commas) or mysql+pymysql://user:password@host/name (MariaDB 10.6 or newer). The drivers that "
            "are used are psycopg and PyMySQL, whichever the URL names.",
        ),
        option(
            "database_pool_sz_ovfl",
            Kind.TEXT,
            "5,10",
            "Connections kept open, and how many more may be opened for a while (not for SQLite).",
        ),
        option(
            "auto_migrate_db",
            Kind.FLAG,
            True,
            "Bring the tables up to date at every start; if not, do it by hand with the program's --migrate.",
        ),
    )


def metrics(section: str) -> tuple[Option, ...]:
    """Where measurements are served."""
    option = partial(Option, section)
    return (
        option(
            "metrics_ip",
            Kind.ADDRESS,
            "127.0.0.1",
            "Address of GET /metrics for Prometheus, without TLS and open to whoever reaches it: an address "
            "of the public network is refused.",
        ),
        option("metrics_port", Kind.INTEGER, 0, "TCP port of it; 0: no metrics.", minimum=0, maximum=65535),
    )


def max_workers(section: str) -> Option:
    """The upper limit for the number of processes."""
    return Option(
        section,
        "max_workers",
        Kind.INTEGER,
        16,
        "The most processes that are started, however many CPUs there are; 0 means no limit.",
        minimum=0,
    )


def durable_attestation(section: str, *, signed_attributes: tuple[str, ...]) -> tuple[Option, ...]:
    """Back-ends of durable attestation: known from existing files, without effect today."""
    option = partial(Option, section, ignored=True)
    return (
        option(
            "durable_attestation_import",
            Kind.TEXT,
            "",
            "Durable attestation.",
            refusal="this release keeps no durable attestation records",
        ),
        option("persistent_store_url", Kind.TEXT, "", "Durable attestation."),
        option("transparency_log_url", Kind.TEXT, "", "Durable attestation."),
        option("time_stamp_authority_url", Kind.TEXT, "", "Durable attestation."),
        option("time_stamp_authority_certs_path", Kind.PATH, "", "Durable attestation."),
        option("persistent_store_format", Kind.TEXT, "json", "Durable attestation."),
        option("persistent_store_encoding", Kind.TEXT, "", "Durable attestation."),
        option("transparency_log_sign_algo", Kind.TEXT, "sha256", "Durable attestation."),
        option("signed_attributes", Kind.LIST, signed_attributes, "Durable attestation."),
    )
