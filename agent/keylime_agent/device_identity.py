"""The device's identity: IDevID and IAK with the certificates that the device's maker gave them.

Both keys are made anew from their templates, or are persistent in the TPM; the IAK certifies this agent's AK,
so that the registrar knows the AK to be in the device that the certificates name. Neither key stays loaded.
"""

import base64
import binascii
import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from keylime.errors import ConfigError, MalformedEvidence, TpmError, TpmLost, UnsuitableKey
from keylime.messages.registrar import RegisterRequest
from keylime.messages.versions import version_key
from keylime.pki.der import TolerantCertificate, header_size, read_certificate
from keylime.pki.files import read_file
from keylime.tpm.device import Certified, LoadedKey, Tpm
from keylime.tpm.device_key_templates import (
    DEVICE_CERTIFICATE_INDICES,
    DeviceKey,
    DeviceKeyKind,
    device_key_template,
    kind_for,
)
from keylime.tpm.ek_certificates import der_items
from keylime.tpm.keys import parse_attestation_key, parse_device_key

log = logging.getLogger(__name__)

_DIGEST_SINCE = (2, 6)  # the API version from which the agent id is hashed before the IAK signs it
_MOST_QUALIFYING = 66  # bytes of a TPM2B_DATA at most, a TPMT_HA of SHA-512; less where the TPM has none
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----([^-]*)-----END CERTIFICATE-----")


@dataclass(frozen=True, slots=True)
class DeviceKeyOptions:
    """Where one of the keys is, and its certificate: first the file, then the TPM's NV memory."""

    certificate: Path | None  # None: in NV memory only
    must_exist: bool  # the operator named the file
    handle: int | None = None  # None: made from the template
    authorisation: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class DeviceIdentityOptions:
    """What the operator says about both keys; without a kind, it is that of the certificate."""

    kind: DeviceKeyKind | None
    idevid: DeviceKeyOptions
    iak: DeviceKeyOptions


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """What a registration says about the device: TPM2B_PUBLICs, certificates as their maker wrote them."""

    idevid_tpm: bytes
    idevid_cert: bytes
    iak_tpm: bytes
    iak_cert: bytes
    plain: Certified  # of the AK by the IAK, qualified with the agent id itself
    hashed: Certified  # qualified with its SHA-256

    def added_to(self, request: RegisterRequest, version: str) -> RegisterRequest:
        """`request` with this identity, as API `version` wants the AK to be certified."""
        is_hashed = (version_key(version) or (0, 0)) >= _DIGEST_SINCE
        proof = self.hashed if is_hashed else self.plain
        return msgspec.structs.replace(
            request,
            idevid_tpm=_base64(self.idevid_tpm),
            idevid_cert=_base64(self.idevid_cert),
            iak_tpm=_base64(self.iak_tpm),
            iak_cert=_base64(self.iak_cert),
            iak_attest=_base64(proof.attest),
            iak_sign=_base64(proof.signature),
        )


@dataclass(frozen=True, slots=True)
class _Found:
    """A certificate, its own bytes, and where it was."""

    read: TolerantCertificate
    encoded: bytes
    place: str


def load_device_identity(
    tpm: Tpm, ak: LoadedKey, agent_id: str, options: DeviceIdentityOptions
) -> DeviceIdentity:
    """IDevID and IAK of this TPM, and the IAK's word for `ak`. Raises ConfigError, TpmError."""
    digest = hashlib.sha256(agent_id.encode()).digest()
    with _own_key(tpm, DeviceKey.IDEVID, options.kind, options.idevid) as (idevid, idevid_certificate):
        pass  # its public part is all that is wanted
    with _own_key(tpm, DeviceKey.IAK, options.kind, options.iak) as (iak, iak_certificate):
        try:
            parse_attestation_key(iak.tpm2b_public)
        except (MalformedEvidence, UnsuitableKey) as error:
            raise ConfigError(f"[agent] iak_handle: this is no attestation key: {error}") from error
        hashed = tpm.certify(ak, iak, digest)
        plain = _certified_plainly(tpm, ak, iak, agent_id) or hashed
    log.info(
        "device identity: IDevID %s (%s), IAK %s (%s)",
        _subject(idevid_certificate),
        idevid_certificate.place,
        _subject(iak_certificate),
        iak_certificate.place,
    )
    return DeviceIdentity(
        idevid_tpm=idevid.tpm2b_public,
        idevid_cert=idevid_certificate.encoded,
        iak_tpm=iak.tpm2b_public,
        iak_cert=iak_certificate.encoded,
        plain=plain,
        hashed=hashed,
    )


def _certified_plainly(tpm: Tpm, ak: LoadedKey, iak: LoadedKey, agent_id: str) -> Certified | None:
    """The IAK's word, qualified with the id itself; None for an id that is longer than this TPM signs.

    Registrars of today take the digest under every API version.
    """
    if len(agent_id.encode()) > _MOST_QUALIFYING:
        return None
    try:
        return tpm.certify(ak, iak, agent_id.encode())
    except TpmLost:
        raise
    except TpmError as error:
        log.info("registrars before API version 2.6 get the digest of the agent's id certified: %s", error)
        return None


@contextmanager
def _own_key(
    tpm: Tpm, key: DeviceKey, kind: DeviceKeyKind | None, options: DeviceKeyOptions
) -> Iterator[tuple[LoadedKey, _Found]]:
    """One of the keys, loaded as long as the block runs, and the certificate that is its own."""
    name = key.value.lower()
    certificates = _certificates(tpm, name, options)
    tried = []
    for source, loading in _sources(tpm, key, kind, options, certificates):
        with ExitStack() as stack:
            try:
                loaded = stack.enter_context(loading)
            except TpmError as error:
                option = "iak_idevid_template" if options.handle is None else f"{name}_handle"
                raise TpmError(f"[agent] {option}: there is no {key.value} of {source}: {error}") from error
            own = next((found for found in certificates if _certifies(found, loaded)), None)
            if own is not None:
                yield loaded, own
                return
        tried.append(source)
    places = ", ".join(dict.fromkeys(found.place for found in certificates))
    raise ConfigError(
        f"[agent] {name}_cert: what is in {places} does not certify the {key.value} of "
        f"{' or '.join(tried) or 'any template'}; check that it is this machine's certificate, "
        f"iak_idevid_template and {name}_handle"
    )


def _sources(
    tpm: Tpm,
    key: DeviceKey,
    kind: DeviceKeyKind | None,
    options: DeviceKeyOptions,
    certificates: Sequence[_Found],
) -> Iterator[tuple[str, AbstractContextManager[LoadedKey]]]:
    """Where the key may come from, in words and ready to be loaded."""
    if options.handle is not None:
        yield f"handle {options.handle:#x}", tpm.persistent_key(options.handle, options.authorisation)
        return
    detected = (kind_for(found.read.certificate.public_key()) for found in certificates)
    for each in (kind,) if kind is not None else dict.fromkeys(detected):
        if each is not None:
            template = device_key_template(key, each)
            yield str(each), tpm.primary_key(template, f"{key.value}, {each}")


def _certificates(tpm: Tpm, name: str, options: DeviceKeyOptions) -> tuple[_Found, ...]:
    """What may be the certificate of a key: the file's, else all that the maker left in the TPM."""
    path = options.certificate
    if path is not None and (options.must_exist or path.exists()):
        data = read_file(path)
        try:
            return (_found(_der(data), str(path)),)
        except MalformedEvidence as error:
            raise ConfigError(f"[agent] {name}_cert: {path}: {error}; expected PEM or DER") from error
    stored = []
    for content in tpm.nv_contents(DEVICE_CERTIFICATE_INDICES):
        with suppress(MalformedEvidence):
            stored.append(_found(content, "the TPM's NV memory"))
    if not stored:
        first, last = DEVICE_CERTIFICATE_INDICES[0], DEVICE_CERTIFICATE_INDICES[-1]
        nowhere = f"{path} does not exist, and " if path is not None else ""
        raise ConfigError(
            f"[agent] {name}_cert: {nowhere}the TPM's NV memory holds no certificate ({first:#x} to "
            f"{last:#x}); name the file of the device's certificate, or switch enable_iak_idevid off"
        )
    return tuple(stored)


def _der(data: bytes) -> bytes:
    """The first certificate of a file: as it is, or out of its PEM text."""
    block = _PEM.search(data)
    if block is None:
        return data
    try:
        return base64.b64decode(block[1])
    except binascii.Error as error:
        raise MalformedEvidence("no base64 in the PEM text") from error


def _found(content: bytes, place: str) -> _Found:
    """The certificate at the start of `content`, with its maker's own bytes. Raises MalformedEvidence."""
    body = content[header_size(content) :]
    return _Found(read_certificate(content), next(iter(der_items(body)), body), place)


def _certifies(found: _Found, key: LoadedKey) -> bool:
    try:
        return found.read.certificate.public_key() == parse_device_key(key.tpm2b_public)
    except (MalformedEvidence, UnsuitableKey):
        return False


def _subject(found: _Found) -> str:
    return found.read.certificate.subject.rfc4514_string() or "without a name"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
