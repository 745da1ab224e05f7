"""The TPM keys an agent lives by: the EK, and an AK that is kept between starts in agent_data.json."""

import base64
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import msgspec

from keylime.errors import ConfigError, KeylimeError, MalformedEvidence, TpmError, UnsuitableKey
from keylime.hashes import HashAlgorithm
from keylime.pki.files import read_private_key_file, write_atomically
from keylime.tpm.device import AkBlobs, LoadedKey, Tpm
from keylime.tpm.ek_certificates import EkCertificates
from keylime.tpm.keys import AttestationKey, EndorsementKey, parse_attestation_key, parse_endorsement_key
from keylime.tpm.templates import ak_label

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TpmAlgorithms:
    """What the operator chose: bank and hash of quotes, kind of EK, signature scheme of the AK."""

    hash_alg: HashAlgorithm
    encryption_alg: str
    signing_alg: str


class AgentData(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The content of agent_data.json. The AK's private part is encrypted by the TPM, for itself."""

    ak_public: bytes
    ak_private: bytes
    ek_sha256: str  # of the EK's TPM2B_PUBLIC: the AK is of use under this EK only
    boot_id: str = ""
    boottime: int = 0  # seconds since the epoch, as first seen in the boot with that id


@dataclass(frozen=True, slots=True)
class TpmIdentity:
    """EK and AK, loaded and parsed, the EK's certificates as PEM (its own first), and what is on disk."""

    ek: LoadedKey
    ak: LoadedKey
    ek_key: EndorsementKey
    ak_key: AttestationKey
    ek_certificates: str
    data: AgentData


def load_tpm_identity(
    tpm: Tpm, algorithms: TpmAlgorithms, ek_handle: str, data_path: Path | None
) -> TpmIdentity:
    """EK and AK ready for use; the AK is a new one, with a warning, when the kept one does not fit.

    What was kept for another TPM is put aside and taken up again when that TPM is back: a start with a wrong
    TCTI costs a machine nothing. Raises TpmError, and ConfigError for a bad `ek_handle` or a file that cannot
    be written.
    """
    ek = open_ek(tpm, algorithms, ek_handle)
    kept, other = _kept_data(data_path, _fingerprint(ek))
    if other is not None and data_path is not None:
        save_agent_data(other, _aside(data_path))
    reused = None if kept is None else _reuse_ak(tpm, ek, algorithms, kept)
    if kept is not None and reused is not None:
        if other is not None:
            save_agent_data(kept, data_path)
        return _identity(tpm, ek, reused, kept)
    if kept is None and other is not None:
        _warn_of_replacement(
            "it belongs to another endorsement key: the TPM or tpm_encryption_alg has changed"
        )
    blobs = tpm.create_ak(ek, algorithms.signing_alg, algorithms.encryption_alg, algorithms.hash_alg)
    ak = tpm.load_ak(ek, blobs)
    data = AgentData(ak_public=blobs.tpm2b_public, ak_private=blobs.tpm2b_private, ek_sha256=_fingerprint(ek))
    save_agent_data(data, data_path)
    return _identity(tpm, ek, ak, data)


def save_agent_data(data: AgentData, path: Path | None) -> None:
    """Keep `data` for the next start, unless the operator asked not to (None). Raises ConfigError."""
    if path is not None:
        write_atomically(path, msgspec.json.encode(data), 0o600)


def open_ek(tpm: Tpm, algorithms: TpmAlgorithms, ek_handle: str) -> LoadedKey:
    """The endorsement key that the options choose. Raises TpmError, and ConfigError for a bad `ek_handle`."""
    if ek_handle in ("", "generate"):
        return tpm.create_ek(algorithms.encryption_alg)
    try:
        handle = int(ek_handle, 0)
    except ValueError:
        raise ConfigError(
            f"[agent] ek_handle = {ek_handle}: expected `generate` or a handle such as 0x81010001"
        ) from None
    return tpm.persistent_ek(handle)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.other_tpm")


def _kept_data(path: Path | None, ek_sha256: str) -> tuple[AgentData | None, AgentData | None]:
    """What is kept for this EK, and what `path` holds if that is for another one."""
    if path is None:
        return None, None
    current = _read_data(path)
    if current is None or current.ek_sha256 == ek_sha256:
        return current, None
    former = _read_data(_aside(path))
    return (former if former is not None and former.ek_sha256 == ek_sha256 else None), current


def _read_data(path: Path) -> AgentData | None:
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(read_private_key_file(path), type=AgentData)
    except msgspec.DecodeError as error:
        log.warning("%s cannot be read, a new attestation key is made: %s", path, error)
        return None


def _reuse_ak(tpm: Tpm, ek: LoadedKey, algorithms: TpmAlgorithms, kept: AgentData) -> LoadedKey | None:
    """The kept AK, loaded; None, with a warning, if it belongs to other options."""
    reason = _misfit(algorithms, kept)
    if reason is None:
        try:
            return tpm.load_ak(ek, AkBlobs(kept.ak_public, kept.ak_private))
        except TpmError as error:
            reason = f"the TPM does not take it back: {error}"
    _warn_of_replacement(reason)
    return None


def _warn_of_replacement(reason: str) -> None:
    log.warning(
        "the kept attestation key is replaced by a new one (%s); the registrar refuses an id that it knows "
        "with another key, until an administrator deletes it there (keylime_tenant -c regdelete)",
        reason,
    )


def _misfit(algorithms: TpmAlgorithms, kept: AgentData) -> str | None:
    try:
        key = parse_attestation_key(kept.ak_public)
    except (MalformedEvidence, UnsuitableKey) as error:
        return str(error)
    has = (key.scheme.label, key.scheme_hash, key.encryption_label)
    wanted = (
        algorithms.signing_alg,
        algorithms.hash_alg,
        ak_label(algorithms.signing_alg, algorithms.encryption_alg),
    )
    return (
        None
        if has == wanted
        else "the options tpm_hash_alg, tpm_signing_alg or tpm_encryption_alg have changed"
    )


def _identity(tpm: Tpm, ek: LoadedKey, ak: LoadedKey, data: AgentData) -> TpmIdentity:
    try:
        ek_key, ak_key = parse_endorsement_key(ek.tpm2b_public), parse_attestation_key(ak.tpm2b_public)
    except KeylimeError as error:
        raise TpmError(f"the TPM made a key that cannot be used: {error}") from error
    return TpmIdentity(ek, ak, ek_key, ak_key, _certificates_text(tpm.ek_certificates(ek)), data)


def _certificates_text(stored: EkCertificates) -> str:
    if stored.certificate is None:
        log.warning(
            "the TPM holds no certificate for its endorsement key: tenants will have to check it by script"
        )
        return ""
    return "".join(_pem(der) for der in (stored.certificate, *stored.chain))


def _pem(der: bytes) -> str:
    # Not read: some manufacturers' are not strict DER, and the registrar gets the bytes that they signed.
    body = base64.b64encode(der).decode()
    lines = "\n".join(body[at : at + 64] for at in range(0, len(body), 64))
    return f"-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n"


def _fingerprint(ek: LoadedKey) -> str:
    return hashlib.sha256(ek.tpm2b_public).hexdigest()
