"""What is known about the pinned dependencies: the pins, the answers about them, the conclusion. Pure."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

_PIN = re.compile(
    r"^([A-Za-z0-9._-]+)==(\S+)(?: ; [^\\\n]*[^\\\n ])?((?: \\\n {4}--hash=sha256:[0-9a-f]{64})*)$",
    re.MULTILINE,
)


class MalformedLock(ValueError):
    """A lock file with a requirement that is not pinned, or has no hash."""


@dataclass(frozen=True, slots=True)
class Pin:
    """One dependency in the one version that is installed from a lock file."""

    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def parse_lock(text: str) -> tuple[Pin, ...]:
    """The pins of a lock file as pip-compile writes it. Raises MalformedLock, which names the line."""
    pins = []
    for match in _PIN.finditer(text):
        if not match[3]:
            raise MalformedLock(f"{match[1]} has no hash")
        pins.append(Pin(match[1], match[2]))
    rest = [line for line in _PIN.sub("", text).splitlines() if line.strip() and line.strip()[0] != "#"]
    if rest or not pins:
        raise MalformedLock(f"not a pin with its hashes: {rest[0]!r}" if rest else "there is no pin")
    return tuple(pins)


class Vulnerability(msgspec.Struct, frozen=True):
    """One advisory that applies to a pinned version."""

    id: str
    fix_versions: list[str] = []


class Known(msgspec.Struct, frozen=True):
    """What was told about one pin, and when (a date in ISO form)."""

    asked_on: str
    vulns: list[Vulnerability] = []


class _Answer(msgspec.Struct, frozen=True):
    name: str
    version: str = ""
    vulns: list[Vulnerability] = []
    skip_reason: str | None = None


class _Answers(msgspec.Struct, frozen=True):
    dependencies: list[_Answer]


def parse_answers(report: bytes, today: str) -> dict[str, Known]:
    """What a report of pip-audit (`--format json`) tells, by pin. Raises msgspec.DecodeError."""
    answers = msgspec.json.decode(report, type=_Answers).dependencies
    return {
        str(Pin(answer.name, answer.version)): Known(today, answer.vulns)
        for answer in answers
        if answer.skip_reason is None
    }


@dataclass(frozen=True, slots=True)
class Conclusion:
    """`lines` are for the reader; `status` is the exit status: 0 good, 1 vulnerable, 2 not known."""

    status: int
    lines: tuple[str, ...] = field(default=())


def conclude(
    pins: Sequence[Pin], known: Mapping[str, Known], today: str, *, reason: str | None, strict: bool
) -> Conclusion:
    """What follows from all that is known; `reason` is why nothing new could be learned, if it could not."""
    vulnerable = [
        f"{pin}: {vulnerability.id}, mended in {', '.join(vulnerability.fix_versions) or 'no version yet'}"
        for pin in pins
        if str(pin) in known
        for vulnerability in known[str(pin)].vulns
    ]
    if vulnerable:
        return Conclusion(1, tuple(vulnerable))
    unknown = [pin for pin in pins if str(pin) not in known]
    older = sorted(known[str(pin)].asked_on for pin in pins if str(pin) in known)
    if unknown:
        why = reason or "not in the database"
        line = f"{len(unknown)} of {len(pins)} dependencies could not be checked ({why})"
        return Conclusion(2 if strict else 0, (line,))
    line = f"no known vulnerability in {len(pins)} dependencies"
    if older and older[0] != today:
        line += f" as of {older[0]} ({reason or 'not asked since'})"
    return Conclusion(2 if strict and older[0] != today else 0, (line,))
