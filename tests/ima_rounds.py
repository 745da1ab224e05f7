"""Rounds of IMA appraisal for tests: lists that hang together, and the appraisal run to its end."""

import hashlib
from collections.abc import Generator
from dataclasses import dataclass, field, replace

from keylime.hashes import HashAlgorithm
from keylime.ima.appraisal import ImaResult, appraise_list
from keylime.ima.boot_aggregate import BootAggregates
from keylime.ima.checkpoint import ImaCheckpoint
from keylime.ima.keyrings import Keyring
from keylime.ima.measurement_list import BOOT_AGGREGATE, Entry, parse_line, split_lines, violation_line
from keylime.ima.memo import EntryMemo
from keylime.ima.names import name_bytes
from keylime.ima.replay import ExtendMode, extend_value
from keylime.ima.runtime_policy import RuntimePolicy
from keylime.ima.templates import TEMPLATES, pack_fields

SHA256 = HashAlgorithm.SHA256


def finish(steps: Generator[None, None, ImaResult]) -> ImaResult:
    """The result of an appraisal, run without pause."""
    while True:
        try:
            next(steps)
        except StopIteration as finished:
            result: ImaResult = finished.value
            return result


@dataclass(frozen=True, slots=True)
class Verifier:
    """What one verifier holds about one agent: everything of a round but the evidence.

    It has seen boot_aggregate, so that a list may be what a test is about; `at_first_contact` has not.
    """

    policy: RuntimePolicy
    bank: HashAlgorithm = SHA256
    tenant_keys: Keyring | None = None
    boot_aggregates: frozenset[str] = frozenset()
    checkpoint: ImaCheckpoint | None = None
    ignore_tomtou: bool = False
    memo: EntryMemo = field(default_factory=EntryMemo)

    @property
    def known(self) -> ImaCheckpoint:
        """The checkpoint that the round goes on from."""
        return self.checkpoint or ImaCheckpoint(anchored=True, bank=self.bank.label)

    def at_first_contact(self) -> "Verifier":
        """The verifier when it knows nothing of the machine, or when the machine has rebooted."""
        return replace(self, checkpoint=ImaCheckpoint.fresh())

    def appraise(self, text: bytes, quoted: bytes, stated: int | None = None) -> ImaResult:
        """One round; the agent states the entry that was asked for unless told otherwise."""
        return finish(self.steps(text, quoted, stated))

    def steps(
        self, text: bytes, quoted: bytes, stated: int | None = None
    ) -> Generator[None, None, ImaResult]:
        """As `appraise`, with its pauses."""
        return appraise_list(
            text,
            bank=self.bank,
            quoted=quoted,
            stated_entry=self.known.next_entry if stated is None else stated,
            policy=self.policy,
            tenant_keys=self.tenant_keys,
            boot_aggregates=BootAggregates(
                self.boot_aggregates, frozenset({"sha256"}) if self.boot_aggregates else frozenset()
            ),
            checkpoint=self.known,
            ignore_tomtou=self.ignore_tomtou,
            memo=self.memo,
        )

    def after(self, result: ImaResult) -> "Verifier":
        """The verifier as it stands after that round."""
        return replace(self, checkpoint=result.checkpoint)


def line_of(
    template: str, fields: str, *, pcr: int = 10, column: HashAlgorithm = HashAlgorithm.SHA1
) -> bytes:
    """The line that a kernel would print for these fields; bytes that are no UTF-8 are surrogates."""
    packed = fields.encode("utf-8", "surrogateescape")
    digest = column.digest(pack_fields(TEMPLATES[template], packed))
    return f"{pcr} {digest.hex()} {template} ".encode() + packed


def is_spelling(line: bytes, entry: Entry) -> bool:
    """Whether `line` is how kernels, editors, other systems or agents write `entry`; nothing else is."""
    known = entry.to_line()
    plain = line.removesuffix(b"\r")
    without_blank = known.rstrip(b" ") in (line.rstrip(b" "), plain.rstrip(b" "))
    return without_blank or known in (name_bytes(line), name_bytes(plain))


def file_digest(content: str) -> str:
    """The digest field of a file with this content."""
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


BOOT_DIGEST = file_digest("the boot PCRs").removeprefix("sha256:")
BOOTED = line_of("ima-ng", f"sha256:{BOOT_DIGEST} {BOOT_AGGREGATE}")


@dataclass(slots=True)
class Kernel:
    """A machine's IMA: adds lines and extends PCR 10 as Linux does."""

    bank: HashAlgorithm = SHA256
    mode: ExtendMode = ExtendMode.NATIVE
    lines: list[bytes] = field(default_factory=list)
    pcr: bytes = b""

    def __post_init__(self) -> None:
        self.pcr = bytes(self.bank.size)

    @classmethod
    def booted(cls, bank: HashAlgorithm = SHA256, mode: ExtendMode = ExtendMode.NATIVE) -> "Kernel":
        """A kernel that has measured boot_aggregate, as each does before anything else."""
        kernel = cls(bank, mode)
        kernel.add(BOOTED)
        return kernel

    def add(self, line: bytes) -> None:
        """Measure what `line` states."""
        self.lines.append(line)
        self.pcr = self.bank.digest(self.pcr + extend_value(parse_line(line), self.bank, self.mode))

    def run(self, path: str, content: str) -> None:
        """Measure a file (template ima-ng)."""
        self.add(line_of("ima-ng", f"{file_digest(content)} {path}"))

    def violate(self, path: str) -> None:
        """Record a violation."""
        self.add(violation_line(path))

    def text(self, start: int = 0) -> bytes:
        """The list from entry `start`."""
        return b"".join(line + b"\n" for line in self.lines[start:])


def values_of(text: bytes, bank: HashAlgorithm, mode: ExtendMode = ExtendMode.NATIVE) -> list[bytes]:
    """PCR 10 after each line of an honest list."""
    kernel = Kernel(bank, mode)
    values = []
    for line in split_lines(text):
        kernel.add(line)
        values.append(kernel.pcr)
    return values
