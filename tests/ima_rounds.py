"""Rounds of IMA appraisal for tests: lists that hang together, and the appraisal run to its end."""

import hashlib
from collections.abc import Generator
from dataclasses import dataclass, field, replace

from keylime.hashes import HashAlgorithm
from keylime.ima.appraisal import ImaResult, appraise_list
from keylime.ima.checkpoint import ImaCheckpoint
from keylime.ima.keyrings import Keyring
from keylime.ima.measurement_list import parse_line, split_lines, violation_line
from keylime.ima.memo import EntryMemo
from keylime.ima.replay import ExtendMode, extend_value
from keylime.ima.templates import TEMPLATES, pack_fields
from keylime.policy.runtime import RuntimePolicy

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
    """What one verifier holds about one agent: everything of a round but the evidence."""

    policy: RuntimePolicy
    bank: HashAlgorithm = SHA256
    tenant_keys: Keyring | None = None
    boot_aggregates: frozenset[str] = frozenset()
    checkpoint: ImaCheckpoint = field(default_factory=ImaCheckpoint.fresh)
    ignore_tomtou: bool = False
    memo: EntryMemo = field(default_factory=EntryMemo)

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
            stated_entry=self.checkpoint.next_entry if stated is None else stated,
            policy=self.policy,
            tenant_keys=self.tenant_keys,
            boot_aggregates=self.boot_aggregates,
            checkpoint=self.checkpoint,
            ignore_tomtou=self.ignore_tomtou,
            memo=self.memo,
        )

    def after(self, result: ImaResult) -> "Verifier":
        """The verifier as it stands after that round."""
        return replace(self, checkpoint=result.checkpoint)


def line_of(
    template: str, fields: str, *, pcr: int = 10, column: HashAlgorithm = HashAlgorithm.SHA1
) -> bytes:
    """The line that a kernel would print for these fields."""
    digest = column.digest(pack_fields(TEMPLATES[template], fields.encode()))
    return f"{pcr} {digest.hex()} {template} {fields}".encode()


def file_digest(content: str) -> str:
    """The digest field of a file with this content."""
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


@dataclass(slots=True)
class Kernel:
    """A machine's IMA: adds lines and extends PCR 10 as Linux does."""

    bank: HashAlgorithm = SHA256
    mode: ExtendMode = ExtendMode.NATIVE
    lines: list[bytes] = field(default_factory=list)
    pcr: bytes = b""

    def __post_init__(self) -> None:
        self.pcr = bytes(self.bank.size)

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
