"""A machine that measures without a pause: its IMA list, and a TPM whose PCR 10 moves at every command.

The TPM is what `keylime.tpm.device.Tpm` calls ESAPI, as far as a quote needs it.
"""

import hashlib
from functools import partial
from itertools import accumulate
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from keylime.hashes import HashAlgorithm
from keylime.ima.measurement_list import ima_ng_line, parse_line, violation_line
from keylime.ima.replay import ExtendMode, extend_value
from keylime.ima.templates import FileDigest
from keylime.tpm.device import LoadedKey, Tpm
from keylime.tpm.pcr import IMA_PCR, PcrSelection, PcrValues, extend, start_value
from tests.fakes.software_ak import pcr_selection, quote_attest

BANK = HashAlgorithm.SHA256


class _Signature:
    signature = SimpleNamespace(any=SimpleNamespace(hashAlg=int(BANK)))

    def marshal(self) -> bytes:
        return b"a signature"


def all_values(
    ima_list: Path,
    bank: HashAlgorithm,
    mode: ExtendMode = ExtendMode.NATIVE,
    start: bytes | None = None,
) -> set[bytes]:
    """What PCR 10 has held so far by the list; `start` is what it held before."""
    text = ima_list.read_bytes()
    entries = [parse_line(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]
    digests = (extend_value(entry, bank, mode) for entry in entries)
    return set(accumulate(digests, partial(extend, bank), initial=start or bytes(bank.size)))


class BusyMachine:
    """`burst` is the most that is measured while the TPM works on one command.

    `before` is what PCR 10 held before the list began, as after a kernel that another one started.
    """

    def __init__(
        self,
        ima_list: Path,
        *,
        burst: int,
        mode: ExtendMode = ExtendMode.NATIVE,
        seed: int = 0,
        before: bytes | None = None,
    ) -> None:
        self.quoted: PcrValues | None = None
        self._list = ima_list
        self._burst = burst
        self._mode = mode
        self._random = Random(seed)  # noqa: S311
        self._pcrs = {index: start_value(BANK, index) for index in range(24)}
        if before is not None:
            self._pcrs[IMA_PCR] = before
        self._count = 0
        self._under_way: bytes | None = None
        ima_list.touch()

    def measure(self, count: int) -> None:
        """As the kernel does: into the list, then into the PCR. The last one may still be under way."""
        with self._list.open("ab") as file:
            for _ in range(count):
                self._finish()
                line = self._new_line()
                file.write(line + b"\n")
                self._under_way = extend_value(parse_line(line), BANK, self._mode)
        if self._random.random() < 0.5:
            self._finish()

    def extend(self, index: int, digest: bytes) -> None:
        """What another program does."""
        self._pcrs[index] = extend(BANK, self._pcrs[index], digest)

    def _finish(self) -> None:
        if self._under_way is not None:
            self.extend(IMA_PCR, self._under_way)
            self._under_way = None

    def _new_line(self) -> bytes:
        self._count += 1
        if self._random.random() < 0.1:
            return violation_line(f"/var/log/{self._count}")
        digest = hashlib.sha256(str(self._count).encode()).digest()
        return ima_ng_line(FileDigest("sha256", digest), f"/usr/bin/program {self._count}")

    # ESAPI

    def pcr_reset(self, index: int) -> None:
        self._pcrs[int(index)] = start_value(BANK, int(index)) if int(index) != 23 else bytes(BANK.size)

    def pcr_extend(self, index: int, digests: Any) -> None:
        self.extend(int(index), bytes(digests[0].digest.sha256))

    def pcr_read(self, selection: Any) -> tuple[int, Any, list[bytes]]:
        self._work()
        return 0, selection, [self._pcrs[index] for index in sorted(_indices(selection))]

    def quote(self, _handle: Any, selection: Any, nonce: bytes) -> tuple[bytes, _Signature]:
        self._work()
        indices = frozenset(_indices(selection))
        self.quoted = PcrValues(BANK, {index: self._pcrs[index] for index in indices})
        attest = quote_attest(
            nonce=nonce,
            selections=[pcr_selection(int(BANK), indices)],
            digest=self.quoted.digest(BANK),
        )
        self._work()
        return attest, _Signature()

    def _work(self) -> None:
        self.measure(self._random.randint(1, self._burst) if self._burst else 0)


class BusyTpm(Tpm):
    """A Tpm that is connected to a BusyMachine."""

    def __init__(self, machine: BusyMachine) -> None:
        self._machine = machine
        super().__init__("busy machine", b"")

    def _connect(self) -> Any:
        return self._machine

    def attestation_key(self) -> LoadedKey:
        """The key that signs its quotes."""
        return self._loaded(1, b"AK", self.attestation_key)


def _indices(selection: Any) -> set[int]:
    chosen = selection.pcrSelections[0]
    mask = int.from_bytes(bytes(chosen.pcrSelect)[: int(chosen.sizeofSelect)], "little")
    return set(PcrSelection.from_mask(BANK, mask).indices)
