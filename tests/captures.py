"""Typed access to the captured evidence in tests/data/vm-debian12 (its README tells how it was made).

Everything is read lazily and nothing is interpreted: the bytes are what the guests' TPMs, kernels and
firmware produced. `expected` holds the numbers that a correct reader must reach. Tests import this module,
programs do not.
"""

import base64
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
VM_DEBIAN12 = DATA / "vm-debian12"
CA_DIRECTORY = VM_DEBIAN12 / "ca"
IMA_KEYS_DIRECTORY = VM_DEBIAN12 / "ima-keys"

CAPTURE_NAMES = (
    "direct-critical-data-4banks",
    "direct-efistub",
    "direct-ima-legacy-template",
    "direct-ima-ng",
    "grub-secureboot",
    "seabios-no-uefi",
)
AK_LABELS = ("rsassa", "rsapss", "ecdsa")


@dataclass(frozen=True, slots=True)
class CapturedQuote:
    """One quote of PCR 0-15 of one bank, signed with SHA-256 by one AK."""

    capture: str
    stage: str
    ak: str  # "rsassa", "rsapss" or "ecdsa": also the label of the scheme
    bank: str  # "sha1", "sha256", "sha384" or "sha512"
    nonce: str
    attest: bytes  # TPMS_ATTEST
    signature: bytes  # TPMT_SIGNATURE
    pcr_blob: bytes  # tpm2-tools' serialized form
    ak_public: bytes  # TPM2B_PUBLIC

    @property
    def id(self) -> str:
        """A short name for test reports: "grub-secureboot/s1-clean/ecdsa/sha256"."""
        return f"{self.capture}/{self.stage}/{self.ak}/{self.bank}"

    @property
    def text(self) -> str:
        """The quote in the wire form, `r<attest>:<signature>:<pcrs>` in base64."""
        return "r" + ":".join(
            base64.b64encode(part).decode() for part in (self.attest, self.signature, self.pcr_blob)
        )


@dataclass(frozen=True, slots=True)
class Stage:
    """One coherent set of evidence: IMA list, PCRs and quotes belong together."""

    capture: str
    name: str
    path: Path
    expected: Mapping[str, Any]  # expected.json, "stages" / name

    @property
    def nonce(self) -> str:
        """The text whose bytes are the quotes' extraData."""
        return (self.path / "nonce.txt").read_text("ascii")

    @property
    def ascii_list(self) -> bytes:
        """`ascii_runtime_measurements`, the IMA list as agents send it."""
        return (self.path / "ascii_runtime_measurements").read_bytes()

    @property
    def binary_list(self) -> bytes:
        """`binary_runtime_measurements`."""
        return (self.path / "binary_runtime_measurements").read_bytes()

    @property
    def entries(self) -> int:
        """How many entries the IMA list has."""
        return int(self.expected["ima_entries"])

    @property
    def violations(self) -> int:
        """How many of them are violations."""
        return int(self.expected["violations"])

    @property
    def banks(self) -> tuple[str, ...]:
        """The active PCR banks, "sha1" first."""
        return tuple(self.expected["pcrs"])

    def pcrs(self, bank: str) -> dict[int, bytes]:
        """All 24 PCRs of `bank` as the guest read them."""
        return {int(index): bytes.fromhex(value) for index, value in self.expected["pcrs"][bank].items()}

    def pcr10_extension(self, bank: str) -> str:
        """How this kernel extended PCR 10 in `bank`: "native" or "sha1-zero-padded"."""
        return str(self.expected["pcr10_extend"][bank])

    def quote(self, ak: str, bank: str) -> CapturedQuote:
        """The quote of `bank` ("sha256") by `ak` ("ecdsa")."""
        stem = self.path / f"quote_{ak}_{bank}"
        return CapturedQuote(
            capture=self.capture,
            stage=self.name,
            ak=ak,
            bank=bank,
            nonce=self.nonce,
            attest=stem.with_suffix(".msg").read_bytes(),
            signature=stem.with_suffix(".sig").read_bytes(),
            pcr_blob=stem.with_suffix(".pcrs").read_bytes(),
            ak_public=(self.path.parent / f"ak_{ak}.tpm2b_public").read_bytes(),
        )

    def quotes(self) -> tuple[CapturedQuote, ...]:
        """Every quote of this stage, by AK and bank."""
        return tuple(self.quote(ak, bank) for ak in AK_LABELS for bank in self.banks)


@dataclass(frozen=True, slots=True)
class Capture:
    """One boot of one guest."""

    name: str
    path: Path
    expected: Mapping[str, Any]  # expected.json

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages in the order in which they happened."""
        return tuple(
            Stage(self.name, stage, self.path / stage, expected)
            for stage, expected in sorted(self.expected["stages"].items())
        )

    def stage(self, name: str) -> Stage:
        """The stage called `name` ("s1-clean"). Raises KeyError."""
        return Stage(self.name, name, self.path / name, self.expected["stages"][name])

    def read(self, file: str) -> bytes:
        """The bytes of one file of the capture, e.g. "ak_ecdsa.tpm2b_public"."""
        return (self.path / file).read_bytes()

    @property
    def boot_log(self) -> bytes:
        """`binary_bios_measurements`, the firmware's event log."""
        return self.read("binary_bios_measurements")

    @property
    def boot_log_expected(self) -> Mapping[str, Any]:
        """Counts of events per PCR and type."""
        return dict(self.expected["boot_log"])

    def ak_public(self, ak: str) -> bytes:
        """TPM2B_PUBLIC of the AK "rsassa", "rsapss" or "ecdsa"."""
        return self.read(f"ak_{ak}.tpm2b_public")

    def ak_name(self, ak: str) -> bytes:
        """The TPM's name of that AK."""
        return self.read(f"ak_{ak}.name")

    def ek_public(self, kind: str) -> bytes:
        """TPM2B_PUBLIC of the EK "rsa" or "ecc"."""
        return self.read(f"ek_{kind}.tpm2b_public")

    @property
    def ek_certificate(self) -> bytes:
        """The DER certificate of the RSA EK (NV index 0x1c00002), as stored there."""
        return self.read("nv_1c00002.der")

    def efi_variable(self, prefix: str) -> bytes:
        """The value of the UEFI variable whose file name starts with `prefix`, without its attributes."""
        (file,) = (self.path / "efivars").glob(f"{prefix}*")
        return file.read_bytes()[4:]


@functools.cache
def captures() -> tuple[Capture, ...]:
    """All captures, in the order of their names."""
    return tuple(capture(name) for name in CAPTURE_NAMES)


@functools.cache
def capture(name: str) -> Capture:
    """The capture in the folder `name` ("grub-secureboot")."""
    path = VM_DEBIAN12 / name
    return Capture(name, path, json.loads((path / "expected.json").read_text("utf-8")))


def stages() -> tuple[Stage, ...]:
    """All stages of all captures."""
    return tuple(stage for one in captures() for stage in one.stages)


@functools.cache
def captured_quotes() -> tuple[CapturedQuote, ...]:
    """All captured quotes."""
    return tuple(quote for stage in stages() for quote in stage.quotes())
