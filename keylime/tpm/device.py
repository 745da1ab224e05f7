"""The machine's TPM 2.0: the only module that opens one.

Blocking, and for one thread at a time: the agent gives it an executor with a single worker. Keys come back
loaded, `close` flushes them and `reopen` loads them again; everything else is bytes and the values of
keylime.tpm.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, Self

from tpm2_pytss.constants import (  # type: ignore[import-untyped]  # ships no types
    ESYS_TR,
    TPM2_ALG,
    TPM2_CAP,
    TPM2_SE,
    TPMA_SESSION,
)
from tpm2_pytss.ESAPI import ESAPI  # type: ignore[import-untyped]
from tpm2_pytss.TSS2_Exception import TSS2_Exception  # type: ignore[import-untyped]
from tpm2_pytss.types import (  # type: ignore[import-untyped]
    TPM2B_DATA,
    TPM2B_DIGEST,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_PRIVATE,
    TPM2B_PUBLIC,
    TPML_DIGEST,
    TPML_DIGEST_VALUES,
    TPML_PCR_SELECTION,
    TPMS_ATTEST,
    TPMS_PCR_SELECTION,
    TPMT_HA,
    TPMT_SIG_SCHEME,
    TPMT_SYM_DEF,
    TPMU_HA,
)
from tpm2_pytss.utils import NoSuchIndex, create_ek_template  # type: ignore[import-untyped]

from keylime.errors import TpmError, TpmLost
from keylime.hashes import HashAlgorithm
from keylime.tpm.ek_certificates import EkCertificates, choose_certificates
from keylime.tpm.pcr import DATA_PCR, IMA_PCR, PcrSelection, PcrValues, data_pcr_value, quoted_values
from keylime.tpm.templates import (
    EK_CERTIFICATE_INDICES,
    EK_CHAIN_INDICES,
    EK_TEMPLATES,
    ak_template,
    key_label,
    policy_branches,
)
from keylime.tpm.tss_errors import NotOpen, tpm_command

log = logging.getLogger(__name__)

QUOTE_ATTEMPTS = 5
_FAMILY_2_0 = b"2.0\0"
_NV_FIRST = 0x01000000
_TRANSIENT_FIRST = 0x80000000
_RC_OBJECT_MEMORY = 0x902

# TPM_PT constants (TPM 2.0 Library part 2, table 28); tpm2_pytss names only some of them.
_FIXED_PROPERTIES = _FAMILY = 0x100
_MANUFACTURER = 0x105
_VENDOR_STRING = 0x106  # four words
_FIRMWARE_VERSION = 0x10B  # two words
_NV_BUFFER_MAX = 0x12C
_PCR_READ_MOST = 8  # TPM2_PCR_Read answers at most eight digests


@dataclass(frozen=True, slots=True)
class LoadedKey:
    """A key that the `Tpm` which gave it can use, by its TPM2B_PUBLIC."""

    tpm2b_public: bytes


@dataclass(frozen=True, slots=True)
class AkBlobs:
    """An AK as it is stored between starts: TPM2B_PUBLIC and TPM2B_PRIVATE, of use under its EK only."""

    tpm2b_public: bytes
    tpm2b_private: bytes


@dataclass(frozen=True, slots=True)
class QuoteParts:
    """One TPM2_Quote: TPMS_ATTEST, TPMT_SIGNATURE, and the PCR values whose digest it signed."""

    attest: bytes
    signature: bytes
    pcrs: PcrValues


@dataclass(frozen=True, slots=True)
class Certified:
    """One TPM2_Certify: TPMS_ATTEST and TPMT_SIGNATURE."""

    attest: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class TpmProperties:
    """Who made the TPM: manufacturer ("IBM"), vendor text ("SW   TPM") and firmware version."""

    manufacturer: str
    vendor: str
    firmware: int

    @property
    def is_emulator(self) -> bool:
        """Whether this is one of the known software TPMs (swtpm, the IBM and Microsoft simulators)."""
        return self.vendor.startswith(("SW", "xCG"))


class Measurements(Protocol):
    """The kernel's list of what it extends PCR 10 by."""

    def mark(self) -> None:
        """Remembers where the list ends now."""

    def later_values(self, bank: HashAlgorithm, value: bytes) -> Iterable[bytes]:
        """What PCR 10 may hold by now if it held `value` soon after the mark."""


def choose_tcti(environ: Mapping[str, str], exists: Callable[[str], bool] = os.path.exists) -> str:
    """The TCTI string to open: the variable TCTI, else the kernel's resource manager, else the raw device.

    Raises TpmError when there is none of them.
    """
    if environ.get("TCTI"):
        return environ["TCTI"]
    for device in ("/dev/tpmrm0", "/dev/tpm0"):
        if exists(device):
            return f"device:{device}"
    raise TpmError("no TPM 2.0 found: there is neither /dev/tpmrm0 nor /dev/tpm0, and TCTI is not set")


class Tpm:
    """An open TPM 2.0. Every method raises TpmError, which names the TPM command that failed.

    TpmLost of these, when the connection or a key is gone that `reopen` may bring back.
    """

    def __init__(self, tcti: str, endorsement_auth: bytes) -> None:
        """Use `open`."""
        self._tcti = tcti
        self._endorsement_auth = endorsement_auth
        self._transient: list[Any] = []
        self._handles: dict[bytes, Any] = {}  # of the keys, by TPM2B_PUBLIC
        self._loaders: dict[bytes, Callable[[], LoadedKey]] = {}  # in the order in which they were loaded
        self._esapi = self._connect()

    @classmethod
    def open(cls, tcti: str, *, endorsement_auth: bytes = b"") -> Self:
        """The TPM behind `tcti` ("device:/dev/tpmrm0", "swtpm:host=..."), checked to be a TPM 2.0.

        `endorsement_auth` is the authorisation of the endorsement hierarchy, empty unless an owner set one.
        """
        tpm = cls(tcti, endorsement_auth)
        try:
            tpm._greet()
        except BaseException:
            tpm.close()
            raise
        return tpm

    def close(self) -> None:
        """Flush the keys that were loaded here and let go of the TPM."""
        for handle in reversed(self._transient):
            with suppress(TSS2_Exception):  # gone with a TPM that was reset meanwhile
                self._esapi.flush_context(handle)
        self._transient.clear()
        self._handles.clear()
        esapi, self._esapi = self._esapi, NotOpen()
        with suppress(TSS2_Exception):
            esapi.close()

    def reopen(self) -> None:
        """Open the TPM anew, and load the keys again that were loaded here: each LoadedKey stays of use.

        TpmError when that does not work, also because it is another TPM. It can be tried again then.
        """
        loaders = dict(self._loaders)
        self.close()
        self._esapi = self._connect()
        self._greet()
        for tpm2b_public, load in loaders.items():
            if load().tpm2b_public != tpm2b_public:
                raise TpmError(
                    f"{self._tcti!r} is another TPM than before: its endorsement key is another one"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Properties

    def properties(self) -> TpmProperties:
        """Manufacturer, vendor text and firmware version."""
        values = self._fixed_properties()
        vendor = b"".join(_text(values.get(_VENDOR_STRING + i, 0)) for i in range(4))
        firmware = values.get(_FIRMWARE_VERSION, 0) << 32 | values.get(_FIRMWARE_VERSION + 1, 0)
        maker = _text(values.get(_MANUFACTURER, 0))
        return TpmProperties(
            maker.rstrip(b"\0 ").decode(errors="replace"),
            vendor.rstrip(b"\0 ").decode(errors="replace"),
            firmware,
        )

    def banks(self) -> frozenset[HashAlgorithm]:
        """The PCR banks that are allocated; hashes without a name in Keylime are left out."""
        with tpm_command("TPM2_GetCapability(PCRS)"):
            _, capability = self._esapi.get_capability(TPM2_CAP.PCRS, 0, 64)
        known = {int(algorithm) for algorithm in HashAlgorithm}
        return frozenset(
            HashAlgorithm(int(bank.hash))
            for bank in capability.data.assignedPCR
            if any(bytes(bank.pcrSelect)) and int(bank.hash) in known
        )

    # Keys

    def create_ek(self, encryption_alg: str) -> LoadedKey:
        """The EK of `encryption_alg` ("rsa", "ecc384"), by the template and nonce in NV if there are any."""
        try:
            templates = EK_TEMPLATES[key_label(encryption_alg)]
        except ValueError as error:
            raise TpmError(str(error)) from error
        defined = self._nv_indices()
        name = next((name for name, index in templates if index in defined), templates[0][0])

        def read(index: int) -> bytes:
            if index in EK_CERTIFICATE_INDICES:
                return b""  # create_ek_template insists on a certificate for the high range; we do not
            if index not in defined:
                raise NoSuchIndex(index)
            return self._nv_read(index)

        _, template = create_ek_template(name, read)
        with tpm_command(f"TPM2_CreatePrimary({name})"):
            handle, public, *_ = self._with_room(
                lambda: self._esapi.create_primary(None, template, primary_handle=ESYS_TR.ENDORSEMENT)
            )
        self._transient.append(handle)
        return self._loaded(handle, public.marshal(), lambda: self.create_ek(encryption_alg))

    def persistent_ek(self, handle: int) -> LoadedKey:
        """The EK that an owner made persistent at `handle` (0x81000000 and up); it is never flushed."""
        with tpm_command(f"TPM2_ReadPublic({handle:#x})"):
            loaded = self._esapi.tr_from_tpmpublic(handle)
            public, _, _ = self._esapi.read_public(loaded)
        return self._loaded(loaded, public.marshal(), lambda: self.persistent_ek(handle))

    def ek_certificates(self, ek: LoadedKey) -> EkCertificates:
        """The certificate in NV whose key is `ek`, if there is one, and the certificates above it."""
        defined = self._nv_indices()
        stored = [self._nv_read(index) for index in EK_CERTIFICATE_INDICES if index in defined]
        chain = b"".join(self._nv_read(index) for index in EK_CHAIN_INDICES if index in defined)
        return choose_certificates(ek.tpm2b_public, stored, chain)

    def create_ak(
        self, ek: LoadedKey, signing_alg: str, encryption_alg: str, hash_alg: HashAlgorithm
    ) -> AkBlobs:
        """A new AK under `ek`, of its kind where `signing_alg` fits that; `hash_alg` is the scheme's hash."""
        try:
            template = ak_template(signing_alg, encryption_alg, hash_alg)
        except ValueError as error:
            raise TpmError(str(error)) from error
        with self._authorise(ek) as session, tpm_command("TPM2_Create(AK)"):
            private, public, *_ = self._with_room(
                lambda: self._esapi.create(self._handle(ek), None, template, session1=session)
            )
        return AkBlobs(public.marshal(), private.marshal())

    def load_ak(self, ek: LoadedKey, blobs: AkBlobs) -> LoadedKey:
        """The stored AK, ready for use. TpmError when `ek` is not its parent, or the TPM was cleared."""
        try:
            public, _ = TPM2B_PUBLIC.unmarshal(blobs.tpm2b_public)
            private, _ = TPM2B_PRIVATE.unmarshal(blobs.tpm2b_private)
        except (TSS2_Exception, ValueError) as error:
            raise TpmError(f"the stored AK is damaged: {error}") from error
        with self._authorise(ek) as session, tpm_command("TPM2_Load(AK)"):
            parent = self._handle(ek)
            handle = self._with_room(lambda: self._esapi.load(parent, private, public, session1=session))
        self._transient.append(handle)
        return self._loaded(handle, public.marshal(), lambda: self.load_ak(ek, blobs))

    def tpm_handle(self, key: LoadedKey) -> int:
        """The TPM's own number for `key` (0x80... transient, 0x81... persistent)."""
        with tpm_command("Esys_TR_GetTpmHandle"):
            return int(self._esapi.tr_get_tpm_handle(self._handle(key)))

    @contextmanager
    def primary_key(self, template: Any, name: str) -> Iterator[LoadedKey]:
        """The key that `template` gives in the endorsement hierarchy, loaded as long as the block runs."""
        with tpm_command(f"TPM2_CreatePrimary({name})"):
            handle, public, *_ = self._with_room(
                lambda: self._esapi.create_primary(None, template, primary_handle=ESYS_TR.ENDORSEMENT)
            )
        self._transient.append(handle)
        try:
            with self._for_now(handle, public.marshal()) as key:
                yield key
        finally:
            self._transient.remove(handle)
            with suppress(TSS2_Exception):
                self._esapi.flush_context(handle)

    @contextmanager
    def persistent_key(self, handle: int, authorisation: bytes) -> Iterator[LoadedKey]:
        """The key that is persistent at `handle`, for use with `authorisation` as long as the block runs."""
        with tpm_command(f"TPM2_ReadPublic({handle:#x})"):
            loaded = self._esapi.tr_from_tpmpublic(handle)
            public, _, _ = self._esapi.read_public(loaded)
        self._esapi.tr_set_auth(loaded, authorisation or None)
        try:
            with self._for_now(loaded, public.marshal()) as key:
                yield key
        finally:
            with suppress(TSS2_Exception):
                self._esapi.tr_close(loaded)

    def certify(self, key: LoadedKey, signer: LoadedKey, qualifying: bytes) -> Certified:
        """What `signer` says about `key`: that it is in the same TPM. `qualifying` is signed with it."""
        with tpm_command("TPM2_Certify"):
            attest, signature = self._esapi.certify(
                self._handle(key),
                self._handle(signer),
                TPM2B_DATA(qualifying),
                TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL),
                session1=ESYS_TR.PASSWORD,
                session2=ESYS_TR.PASSWORD,
            )
        return Certified(bytes(attest), signature.marshal())

    def nv_contents(self, indices: range) -> list[bytes]:
        """What the defined ones of `indices` hold, in order; those that may not be read are left out."""
        contents = []
        for index in sorted(index for index in self._nv_indices() if index in indices):
            try:
                contents.append(self._nv_read(index))
            except TpmLost:
                raise
            except TpmError as error:
                log.info("NV index %#x is passed over: %s", index, error)
        return contents

    def activate_credential(self, ek: LoadedKey, ak: LoadedKey, id_object: bytes, secret: bytes) -> bytes:
        """The secret that was encrypted to `ek` for `ak`; see credential.parse_credential_blob."""
        try:
            sealed = TPM2B_ID_OBJECT(credential=id_object)
            seed = TPM2B_ENCRYPTED_SECRET(secret=secret)
        except (AttributeError, TypeError, ValueError) as error:  # longer than the structures hold
            raise TpmError(f"TPM2_ActivateCredential: {error}") from error
        with self._authorise(ek) as session, tpm_command("TPM2_ActivateCredential"):
            return bytes(
                self._esapi.activate_credential(
                    self._handle(ak),
                    self._handle(ek),
                    sealed,
                    seed,
                    session1=ESYS_TR.PASSWORD,
                    session2=session,
                )
            )

    # PCRs and quotes

    def quote(
        self,
        ak: LoadedKey,
        selection: PcrSelection,
        nonce: bytes,
        pubkey_pem: str | None,
        measurements: Measurements | None = None,
    ) -> QuoteParts:
        """A quote over `selection` and PCR 16, which holds nothing but the binding of `pubkey_pem`.

        Without a `pubkey_pem` PCR 16 is left alone, as any other. The values are read before the quote, and
        any program may extend PCR 16 in between: then all is done again, up to five times. The kernel may
        extend PCR 10 faster than that. Its value in the quote then follows from the value read and from the
        kernel's list, `measurements`.
        """
        bound = None
        if pubkey_pem is not None:
            selection = PcrSelection(selection.bank, selection.indices | {DATA_PCR})
            bound = data_pcr_value(selection.bank, pubkey_pem)
        for attempt in range(QUOTE_ATTEMPTS):
            if pubkey_pem is not None:
                self._bind(selection.bank, pubkey_pem)
            # At first, PCR 10 probably does not move, and to look where a long list ends takes its time.
            moving = measurements if attempt and IMA_PCR in selection.indices else None
            if moving is not None:
                moving.mark()
            pcrs = self.read_pcrs(selection)
            with tpm_command("TPM2_Quote"):
                quoted, signature = self._esapi.quote(self._handle(ak), _tpm_selection(selection), nonce)
            attest = bytes(quoted)
            if bound is not None and pcrs.values[DATA_PCR] != bound:
                continue
            later = moving.later_values(selection.bank, pcrs.values[IMA_PCR]) if moving is not None else ()
            signed = _signed_digest(attest)
            found = quoted_values(pcrs, signed, _signature_hash(signature), later)
            if found is not None:
                return QuoteParts(attest, signature.marshal(), found)
        raise TpmError(f"TPM2_Quote: the PCRs changed during each of {QUOTE_ATTEMPTS} attempts")

    def read_pcrs(self, selection: PcrSelection) -> PcrValues:
        """The values of `selection`. A bank or PCR that the TPM does not have is a TpmError."""
        values: dict[int, bytes] = {}
        wanted = sorted(selection.indices)
        for start in range(0, len(wanted), _PCR_READ_MOST):
            part = PcrSelection(selection.bank, frozenset(wanted[start : start + _PCR_READ_MOST]))
            with tpm_command("TPM2_PCR_Read"):
                _, _, digests = self._esapi.pcr_read(_tpm_selection(part))
            if len(digests) != len(part.indices):
                raise TpmError(f"TPM2_PCR_Read: the {selection.bank.label} bank has no such PCRs")
            values.update(zip(sorted(part.indices), (bytes(digest) for digest in digests), strict=True))
        return PcrValues(selection.bank, values)

    def extend_pcr(self, index: int, digests: Mapping[HashAlgorithm, bytes]) -> None:
        """Extend PCR `index` with one digest for each bank."""
        entries = [
            TPMT_HA(hashAlg=int(bank), digest=TPMU_HA(**{bank.label: digest}))
            for bank, digest in digests.items()
        ]
        with tpm_command(f"TPM2_PCR_Extend({index})"):
            self._esapi.pcr_extend(ESYS_TR(index), TPML_DIGEST_VALUES(entries))

    def reset_pcr(self, index: int) -> None:
        """Set a resettable PCR (16 and 23 at locality 0) to its start value."""
        with tpm_command(f"TPM2_PCR_Reset({index})"):
            self._esapi.pcr_reset(ESYS_TR(index))

    def _bind(self, bank: HashAlgorithm, pubkey_pem: str) -> None:
        self.reset_pcr(DATA_PCR)
        self.extend_pcr(DATA_PCR, {bank: bank.digest(pubkey_pem.encode())})

    # Inside

    def _connect(self) -> Any:
        try:
            return ESAPI(self._tcti)
        except (RuntimeError, ValueError) as error:  # TSS2_Exception is a RuntimeError
            raise TpmError(f"cannot reach the TPM through {self._tcti!r}: {error}") from error

    def _greet(self) -> None:
        self._check_family(self._tcti)
        self._esapi.tr_set_auth(ESYS_TR.ENDORSEMENT, self._endorsement_auth or None)

    def _check_family(self, tcti: str) -> None:
        try:
            family = _text(self._fixed_properties().get(_FAMILY, 0))
        except TpmError as error:
            raise TpmError(
                f"{tcti!r} does not answer as a TPM 2.0 (TPM 1.2 is not supported): {error}"
            ) from error
        if family != _FAMILY_2_0:
            raise TpmError(f"{tcti!r} is not a TPM 2.0: it names its family {family!r}")

    def _fixed_properties(self) -> dict[int, int]:
        with tpm_command("TPM2_GetCapability(TPM_PROPERTIES)"):
            _, capability = self._esapi.get_capability(TPM2_CAP.TPM_PROPERTIES, _FIXED_PROPERTIES, 256)
        return {int(entry.property): int(entry.value) for entry in capability.data.tpmProperties}

    def _loaded(self, handle: Any, tpm2b_public: bytes, again: Callable[[], LoadedKey]) -> LoadedKey:
        """A key under `handle`, which `again` loads once more."""
        self._handles[tpm2b_public], self._loaders[tpm2b_public] = handle, again
        return LoadedKey(tpm2b_public)

    @contextmanager
    def _for_now(self, handle: Any, tpm2b_public: bytes) -> Iterator[LoadedKey]:
        """A key under `handle` that is not loaded again after a loss."""
        known = self._handles.get(tpm2b_public)
        self._handles[tpm2b_public] = handle
        try:
            yield LoadedKey(tpm2b_public)
        finally:
            del self._handles[tpm2b_public]
            if known is not None:
                self._handles[tpm2b_public] = known

    def _handle(self, key: LoadedKey) -> Any:
        handle = self._handles.get(key.tpm2b_public)
        if handle is None:  # an attempt to open the TPM again failed half way
            raise TpmLost("the key is not loaded")
        return handle

    def _with_room(self, command: Callable[[], Any]) -> Any:
        """What `command` gives, with the slots of an agent that was killed freed if the TPM is full.

        A resource manager shows each program its own keys only. Without one there is one program, so what is
        loaded and is not ours is what an earlier run could not flush.
        """
        try:
            return command()
        except TSS2_Exception as error:
            if int(error.rc) != _RC_OBJECT_MEMORY:
                raise
        ours = {int(self._esapi.tr_get_tpm_handle(handle)) for handle in self._transient}
        for handle in self._tpm_handles(_TRANSIENT_FIRST):
            if handle not in ours:
                log.warning("the TPM is full: key %#x of an earlier run is flushed", handle)
                self._esapi.flush_context(self._esapi.tr_from_tpmpublic(handle))
        return command()

    @contextmanager
    def _authorise(self, ek: LoadedKey) -> Iterator[Any]:
        """A policy session that may use `ek` once, or the password session where its template allows one."""
        area: Any = TPM2B_PUBLIC.unmarshal(ek.tpm2b_public)[0].publicArea
        name_alg = HashAlgorithm(int(area.nameAlg))
        branches = policy_branches(name_alg, bytes(area.authPolicy))
        if branches is None:  # an owner's own template behind `ek_handle`
            yield ESYS_TR.PASSWORD
            return
        with tpm_command("TPM2_StartAuthSession"):
            session = self._esapi.start_auth_session(
                ESYS_TR.NONE,
                ESYS_TR.NONE,
                TPM2_SE.POLICY,
                TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL),
                int(name_alg),
            )
        try:
            self._esapi.trsess_set_attributes(session, TPMA_SESSION.CONTINUESESSION)
            with tpm_command("TPM2_PolicySecret(endorsement)"):
                self._esapi.policy_secret(ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0)
            if branches:
                with tpm_command("TPM2_PolicyOR"):
                    self._esapi.policy_or(session, TPML_DIGEST([TPM2B_DIGEST(branch) for branch in branches]))
            yield session
        finally:
            with suppress(TSS2_Exception):
                self._esapi.flush_context(session)

    def _nv_indices(self) -> frozenset[int]:
        return self._tpm_handles(_NV_FIRST)

    def _tpm_handles(self, first: int) -> frozenset[int]:
        """All handles of one kind: of NV indices, or of transient keys."""
        found: set[int] = set()
        more = True
        while more:
            with tpm_command("TPM2_GetCapability(HANDLES)"):
                more, capability = self._esapi.get_capability(TPM2_CAP.HANDLES, first, 254)
            handles = [int(handle) for handle in capability.data.handles]
            found.update(handles)
            more = bool(more) and bool(handles)
            first = max(handles, default=first) + 1
        return frozenset(found)

    def _nv_read(self, index: int) -> bytes:
        with tpm_command(f"TPM2_NV_Read({index:#x})"):
            handle = self._esapi.tr_from_tpmpublic(index)
            try:
                public, _ = self._esapi.nv_read_public(handle)
                size, most = int(public.nvPublic.dataSize), self._nv_buffer_max()
                return b"".join(
                    bytes(self._esapi.nv_read(handle, min(most, size - offset), offset, auth_handle=handle))
                    for offset in range(0, size, most)
                )
            finally:
                self._esapi.tr_close(handle)

    def _nv_buffer_max(self) -> int:
        return min(self._fixed_properties().get(_NV_BUFFER_MAX, 512), 1024) or 512


def _text(value: int) -> bytes:
    return value.to_bytes(4, "big")


def _tpm_selection(selection: PcrSelection) -> Any:
    bits = sum(1 << index for index in selection.indices)
    pcrs = TPMS_PCR_SELECTION(hash=int(selection.bank), sizeofSelect=3, pcrSelect=bits.to_bytes(3, "little"))
    return TPML_PCR_SELECTION([pcrs])


def _signed_digest(attest: bytes) -> bytes:
    return bytes(TPMS_ATTEST.unmarshal(attest)[0].attested.quote.pcrDigest)


def _signature_hash(signature: Any) -> HashAlgorithm:
    return HashAlgorithm(int(signature.signature.any.hashAlg))
