"""What is wrong with what an agent sent, as API 3.0 says it: a pointer and a sentence. Pure."""

import re
from dataclasses import dataclass

from keylime.errors import MalformedMessage

_PLACE = re.compile(r" - at `\$(?P<path>[^`]*)`$")
_STEP = re.compile(r"\.(?P<name>\w+)|\[(?P<index>\d+)\]")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `pointer` leads to it from the document's root."""

    pointer: str
    detail: str


class Unacceptable(Exception):
    """What an agent sent cannot be used as it is."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(problem.detail for problem in problems))
        self.problems = problems


def problem(path: str, what: str) -> Problem:
    """A problem with an attribute, whose `path` is below the attributes: "evidence/0/capabilities"."""
    return Problem(f"/data/attributes/{path}", f"Attribute '{path.partition('/')[0]}' {what}.")


def malformed(path: str, error: MalformedMessage) -> Problem:
    """A problem that a parser found somewhere below `path`, and says where."""
    text = str(error)
    place = _PLACE.search(text)
    if place is None:
        return problem(path, f"cannot be used: {text}")
    steps = (found["name"] or found["index"] for found in _STEP.finditer(place["path"]))
    return problem("/".join((path, *steps)), f"cannot be used: {text[: place.start()]}")
