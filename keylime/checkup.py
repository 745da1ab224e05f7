"""What a program finds when it examines an installation: each line well, or what to type.

Pure: what was found comes in as values.
"""

import enum
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec


class Grade(enum.StrEnum):
    """How a thing is; only `BAD` keeps anything from working."""

    OK = "ok"
    WARNING = "warning"
    BAD = "BAD"
    UNKNOWN = "unknown"  # could not be examined, for a reason that is no fault


@dataclass(frozen=True, slots=True)
class Result:
    """What was examined, how it is, and what to do when it is not well."""

    subject: str
    grade: Grade
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{self.grade:7}  {self.subject}: {self.text}{remedy}"


def ok(subject: str, text: str) -> Result:
    """All is well."""
    return Result(subject, Grade.OK, text)


def bad(subject: str, text: str, remedy: str = "") -> Result:
    """Something does not work."""
    return Result(subject, Grade.BAD, text, remedy)


def warning(subject: str, text: str, remedy: str = "") -> Result:
    """It works, and somebody should look at it all the same."""
    return Result(subject, Grade.WARNING, text, remedy)


def unknown(subject: str, text: str, remedy: str = "") -> Result:
    """It could not be examined."""
    return Result(subject, Grade.UNKNOWN, text, remedy)


def summary(results: Sequence[Result]) -> str:
    """One line about all of them."""
    if not results:
        return "nothing was examined"
    counts = {grade: sum(1 for one in results if one.grade is grade) for grade in Grade}
    if counts[Grade.BAD]:
        return f"{counts[Grade.BAD]} of {len(results)} things do not work"
    rest = counts[Grade.WARNING] + counts[Grade.UNKNOWN]
    return (
        "all is well"
        if not rest
        else f"everything works; {rest} of {len(results)} things are to be looked at"
    )


def is_good(results: Sequence[Result]) -> bool:
    """Whether everything works; where nothing was examined nobody knows."""
    return bool(results) and all(one.grade is not Grade.BAD for one in results)


class Check(msgspec.Struct, frozen=True):
    """One thing that was examined; `remedy` may be empty."""

    subject: str
    grade: Literal["ok", "warning", "bad", "unknown"]
    text: str
    remedy: str


class Examination(msgspec.Struct, frozen=True):
    """Everything that was examined, and whether it works."""

    ok: bool
    checks: list[Check]


def document(results: Sequence[Result]) -> dict[str, Any]:
    """The same for programs: an Examination."""
    return {"ok": is_good(results), "checks": rows(results)}


def rows(results: Sequence[Result]) -> list[dict[str, str]]:
    """One object for each result: a Check."""
    return [
        {"subject": one.subject, "grade": one.grade.lower(), "text": one.text, "remedy": one.remedy}
        for one in results
    ]


def read_document(value: object) -> tuple[Result, ...]:
    """The results in what `document` has made. Raises ValueError when it is nothing of that kind."""
    checks = value.get("checks") if isinstance(value, dict) else None
    if not isinstance(checks, list):
        raise ValueError("no list of checks")
    grades = {grade.lower(): grade for grade in Grade}
    try:
        return tuple(
            Result(str(one["subject"]), grades[one["grade"]], str(one["text"]), str(one["remedy"]))
            for one in checks
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"a check without what each has: {error}") from error


def lines(results: Sequence[Result]) -> Iterator[str]:
    """One line for each result, and the summary."""
    yield from map(str, results)
    yield summary(results)
