"""SSL contexts of servers and clients, and which files they are made of.

Trust comes from the files an operator named and from pinned keys, never from the system's CA bundle.
"""

import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from keylime.errors import ConfigError, CredentialError
from keylime.pki.certificates import parse_certificate
from keylime.pki.der import unreadable
from keylime.pki.file_names import CA_CERTIFICATE
from keylime.pki.files import read_file
from keylime.pki.key_files import load_private_key
from keylime.pki.key_trial import signs_for
from keylime.pki.lifetimes import CertificateFile, Holder, Lifetime
from keylime.pki.roles import is_nodes
from keylime.pki.server_names import NameCheck
from keylime.safe_paths import Owners

# TLS 1.2 with forward secrecy and AEAD only; TLS 1.3 has nothing weaker to begin with.
_TLS12_CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


class TlsContext(ssl.SSLContext):
    """A context that knows its files, so that what goes wrong with it can be explained."""

    own: CertificateFile | None = None
    trusted: tuple[CertificateFile, ...] = ()


def server_context(
    *,
    certificate: Path,
    key: Path,
    key_password: str | None = None,
    client_ca: Sequence[Path],
    require_client: bool,
) -> ssl.SSLContext:
    """A server's context: TLS 1.2 or later. Raises ConfigError naming the file that cannot be used.

    With `require_client` a peer without a certificate from `client_ca` fails in the handshake. Without it
    such a peer is anonymous, while a certificate that does not verify still fails; with no `client_ca` none
    is asked for.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    _load_identity(context, certificate, key, key_password)
    _trust(context, client_ca)
    if require_client:
        context.verify_mode = ssl.CERT_REQUIRED
    elif client_ca:
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def client_context(
    *, certificate: Path | None, key: Path | None, key_password: str | None = None, trusted: Sequence[Path]
) -> ssl.SSLContext:
    """A client's context that accepts servers with a certificate from `trusted`. Raises ConfigError.

    Host names are compared after the handshake, as far as `check_server_names` says (`http.server_check`).
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    _load_client_identity(context, certificate, key, key_password)
    _trust(context, trusted)
    return context


def pinned_client_context(
    *, certificate: Path | None, key: Path | None, key_password: str | None = None
) -> ssl.SSLContext:
    """A client's context that verifies nothing: only for connections that compare a pin (`key_pin`)."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _load_client_identity(context, certificate, key, key_password)
    return context


def _context(protocol: int) -> TlsContext:
    context = TlsContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_TLS12_CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # A configured certificate is trusted as it stands, also when its own issuer is not configured.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def _load_client_identity(
    context: TlsContext, certificate: Path | None, key: Path | None, password: str | None
) -> None:
    if (certificate is None) != (key is None):
        raise ConfigError(
            f"a client certificate needs its key and vice versa; only {certificate or key} is given"
        )
    if certificate is not None and key is not None:
        _load_identity(context, certificate, key, password)


def _load_identity(context: TlsContext, certificate: Path, key: Path, password: str | None) -> None:
    private_key = load_private_key(key, password, is_tried=True)
    try:
        leaf = parse_certificate(read_file(certificate))
    except CredentialError as error:
        raise ConfigError(f"{certificate}: {error}") from error
    if leaf.public_key() != private_key.public_key():
        raise ConfigError(f"certificate {certificate} does not belong to key {key}")
    if not signs_for(private_key, private_key.public_key()):
        raise ConfigError(f"{key}: the key is damaged: restore it, or have it and its certificate made anew")
    try:
        # A callback, even for keys without a password: OpenSSL would ask on the terminal otherwise.
        context.load_cert_chain(certificate, key, password=lambda: password or "")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConfigError(f"certificate {certificate} with key {key} cannot be used: {error}") from error
    holder = Holder.SERVER if context.protocol == ssl.PROTOCOL_TLS_SERVER else Holder.CLIENT
    context.own = _certificate_file(holder, certificate, leaf)


def _trust(context: TlsContext, files: Sequence[Path]) -> None:
    for path in files:
        for certificate in load_trusted_certificates(path):
            context.load_verify_locations(cadata=certificate.public_bytes(Encoding.DER))
            context.trusted += (_certificate_file(Holder.AUTHORITY, path, certificate),)


def _certificate_file(
    holder: Holder, path: Path, certificate: x509.Certificate, option: str = ""
) -> CertificateFile:
    authority = path.parent if (path.parent / CA_CERTIFICATE).exists() else None
    return CertificateFile(holder, path, Lifetime.of(certificate), option, authority)


def load_trusted_certificates(path: Path, owners: Owners | None = None) -> tuple[x509.Certificate, ...]:
    """All certificates in the PEM or DER file `path`, at least one.

    Raises ConfigError, also when others than `owners` (by default those of a service) may change it.
    """
    data = read_file(path, owners)
    try:
        if b"-----BEGIN" in data:
            return tuple(x509.load_pem_x509_certificates(data))
        return (parse_certificate(data),)
    except (ValueError, x509.InvalidVersion) as error:
        raise ConfigError(f"{path}: no usable CA certificate: {unreadable(data, error)}") from error
    except CredentialError as error:
        raise ConfigError(f"{path}: no usable CA certificate: {error}") from error


class TlsSettings(Protocol):
    """What is needed of a component's settings; absent options have their documented defaults."""

    def text(self, option: str, /) -> str: ...

    def items(self, option: str, /) -> tuple[str, ...]: ...


@dataclass(frozen=True, slots=True)
class TlsSide:
    """The files for one side of a connection. `trusted` empty and `verify_peer` true: only pinned peers."""

    certificate: Path
    key: Path
    key_password: str | None = field(repr=False)
    trusted: tuple[Path, ...]
    verify_peer: bool
    label: str  # "[verifier] server_cert, server_key": what an error message names
    trust_label: str  # "[verifier] trusted_client_ca"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a component's TLS files are. With `generate` they must be made before a context is."""

    directory: Path
    generate: bool
    server: TlsSide | None
    client: TlsSide | None
    warnings: tuple[str, ...]
    name_check: NameCheck = NameCheck.WARN  # of servers that are called

    @property
    def sides(self) -> tuple[tuple[Holder, TlsSide], ...]:
        """What this component is: a server, a client, or both."""
        both = ((Holder.SERVER, self.server), (Holder.CLIENT, self.client))
        return tuple((holder, side) for holder, side in both if side is not None)

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files that contexts are made of."""
        return tuple(
            dict.fromkeys(
                path for _, side in self.sides for path in (side.certificate, side.key, *side.trusted)
            )
        )

    def certificates(self) -> tuple[CertificateFile, ...]:
        """The certificates in the files, with their dates. Raises ConfigError."""
        found: list[CertificateFile] = []
        for holder, side in self.sides:
            own = load_trusted_certificates(side.certificate)[0]
            found.append(_certificate_file(holder, side.certificate, own, side.label))
            for path in side.trusted:
                found += (
                    _certificate_file(Holder.AUTHORITY, path, one, side.trust_label)
                    for one in load_trusted_certificates(path)
                )
        return tuple(dict.fromkeys(found))

    def server_context(self, *, require_client: bool) -> ssl.SSLContext:
        """The context to listen with. Raises ConfigError naming option and path."""
        side = _present(self.server, "a server")
        _check_side(side)
        with _blaming(side.label):
            return server_context(
                certificate=side.certificate,
                key=side.key,
                key_password=side.key_password,
                client_ca=side.trusted,
                require_client=require_client and side.verify_peer,
            )

    def client_context(self) -> ssl.SSLContext:
        """The context to call other services with. Raises ConfigError naming option and path."""
        side = _present(self.client, "a client")
        _check_side(side)
        if not side.verify_peer:
            return self.pinned_client_context()
        with _blaming(side.label):
            return client_context(
                certificate=side.certificate,
                key=side.key,
                key_password=side.key_password,
                trusted=side.trusted,
            )

    def pinned_client_context(self) -> ssl.SSLContext:
        """The context to call agents with, whose keys are pinned. Raises ConfigError."""
        side = _present(self.client, "a client")
        with _blaming(side.label):
            return pinned_client_context(
                certificate=side.certificate, key=side.key, key_password=side.key_password
            )


@contextmanager
def _blaming(label: str) -> Iterator[None]:
    """Puts the options that are at fault before the reason."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{label}: {error}") from error


def _present(side: TlsSide | None, role: str) -> TlsSide:
    if side is None:
        raise ConfigError(f"this component has no TLS options for {role}")
    return side


def _check_side(side: TlsSide) -> None:
    """Reads every certificate, for the sake of errors that name the option; the key is read once, later."""
    for path in side.trusted:
        try:
            load_trusted_certificates(path)
        except ConfigError as error:
            remedy = ""
            if not path.exists() and path.parent.name == _VERIFIER_CA:
                remedy = "; it is made by keylime_verifier at its first start: copy it from that host"
            raise ConfigError(f"{side.trust_label}: {error}{remedy}") from error
    try:
        certificate = parse_certificate(read_file(side.certificate))
        made_for_node = is_nodes(certificate)
    except (ConfigError, CredentialError, ValueError) as error:
        where = "" if isinstance(error, ConfigError) else f"{side.certificate}: "
        raise ConfigError(f"{side.label}: {where}{error}") from error
    if made_for_node:
        raise ConfigError(
            f"{side.label}: {side.certificate} was made for a machine, and peers refuse it: make one on the "
            "host of the CA, `keylime_ca -c create -n NAME --role server` (or administrator) `-d DIR`"
        )


_VERIFIER_CA = "cv_ca"
_GENERATED_DIRECTORIES = {"verifier": _VERIFIER_CA, "registrar": "reg_ca"}
_SERVERS = frozenset({"agent", "verifier", "registrar"})
_CLIENTS = frozenset({"verifier", "tenant"})
_DEFAULT_NAMES = {
    "server_cert": "server-cert.crt",
    "server_key": "server-private.pem",
    "client_cert": "client-cert.crt",
    "client_key": "client-private.pem",
}


def resolve_tls_files(settings: TlsSettings, component: str, work_dir: Path) -> TlsFiles:
    """The paths behind the TLS options of `component`, keywords replaced.

    `component` is "agent", "verifier", "registrar" or "tenant". What the keywords mean stands in
    docs/reference/rest-api.md, 8.1. Raises ConfigError naming the option. Whether the files exist is found
    out when a context is made of them.
    """
    tls_dir = settings.text("tls_dir")
    generate = tls_dir == "generate"
    if generate:
        _require_generatable(settings, component)
    directory = _tls_directory(tls_dir, component, work_dir)
    warnings: list[str] = []
    server = client = None
    if component in _SERVERS:
        server = _resolve_side(
            settings, component, ("server", "trusted_client_ca"), directory, work_dir, warnings
        )
    if component in _CLIENTS:
        client = _resolve_side(
            settings, component, ("client", "trusted_server_ca"), directory, work_dir, warnings
        )
    name_check = NameCheck.WARN
    if component in _CLIENTS:
        name_check = NameCheck(settings.text("check_server_names"))
    return TlsFiles(directory, generate, server, client, tuple(warnings), name_check)


def _tls_directory(tls_dir: str, component: str, work_dir: Path) -> Path:
    if tls_dir == "generate":
        return work_dir / _GENERATED_DIRECTORIES[component]
    if tls_dir == "default":
        # An agent makes its own certificate, in the working directory; the others share the verifier's.
        return work_dir if component == "agent" else work_dir / _VERIFIER_CA
    if not tls_dir:
        raise ConfigError(f"[{component}] tls_dir is empty; use `default` or a directory")
    return work_dir / tls_dir


def _require_generatable(settings: TlsSettings, component: str) -> None:
    if component not in _GENERATED_DIRECTORIES:
        raise ConfigError(
            f"[{component}] tls_dir = generate works for verifier and registrar only; use `default`"
        )
    files, trust = ["server_cert", "server_key"], ["trusted_client_ca"]
    if component in _CLIENTS:
        files += ["client_cert", "client_key"]
        trust += ["trusted_server_ca"]
    wrong = [option for option in files if settings.text(option) != "default"]
    wrong += [option for option in trust if settings.items(option) != ("default",)]
    if wrong:
        raise ConfigError(f"[{component}] tls_dir = generate needs {', '.join(wrong)} to be `default`")


def _resolve_side(
    settings: TlsSettings,
    component: str,
    names: tuple[str, str],
    directory: Path,
    work_dir: Path,
    warnings: list[str],
) -> TlsSide:
    side, trust_option = names
    paths = {}
    for option in (f"{side}_cert", f"{side}_key"):
        value = settings.text(option)
        if not value:
            raise ConfigError(f"[{component}] {option} is empty; use `default` or a file name")
        paths[option] = directory / (_DEFAULT_NAMES[option] if value == "default" else value)
    trusted, verify_peer = _resolve_trust(settings, component, trust_option, directory, work_dir, warnings)
    return TlsSide(
        certificate=paths[f"{side}_cert"],
        key=paths[f"{side}_key"],
        key_password=settings.text(f"{side}_key_password") or None,
        trusted=trusted,
        verify_peer=verify_peer,
        label=f"[{component}] {side}_cert, {side}_key",
        trust_label=f"[{component}] {trust_option}",
    )


def _resolve_trust(
    settings: TlsSettings, component: str, option: str, directory: Path, work_dir: Path, warnings: list[str]
) -> tuple[tuple[Path, ...], bool]:
    files = tuple(item for item in settings.items(option) if item)
    if files == ("default",):
        # The verifier's CA, whatever `tls_dir` is.
        return (work_dir / _VERIFIER_CA / "cacert.crt",), True
    if files == ("all",):
        if component == "agent":
            raise ConfigError(
                "[agent] trusted_client_ca = all would let anybody send keys and payloads; name a CA"
            )
        warnings.append(f"[{component}] {option} = all: certificates of peers are not verified")
        return (), False
    if "all" in files or "default" in files:
        raise ConfigError(
            f"[{component}] {option}: the keywords `default` and `all` stand alone, without files"
        )
    if not files:
        warnings.append(f"[{component}] {option} is empty: no certificate authority is trusted")
    return tuple(directory / file for file in files), True
