"""How an agent that attests by itself goes on: what came of its last step decides the next one. Pure.

There is no end: what cannot go on now is tried again after a pause. Of several verifiers the one that
answered last is asked first; the others follow in the order in which they are configured.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias, assert_never

from keylime_agent.pushing.pace import Pacing


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """The verifier has taken the proof that this agent holds its AK."""

    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Taken:
    """The evidence was taken; the next is expected after so many seconds, if the verifier says so."""

    next_s: float | None


@dataclass(frozen=True, slots=True)
class TokenOver:
    """The token is not valid, or not any more."""


@dataclass(frozen=True, slots=True)
class Forbidden:
    """The verifier says that this agent may not do that now."""

    reason: str


@dataclass(frozen=True, slots=True)
class NotAdded:
    """The verifier does not know the agent, or was answered too late."""

    reason: str


@dataclass(frozen=True, slots=True)
class PutOff:
    """The verifier says when to come again."""

    after_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class VerifierUnreachable:
    """No verifier answers there, or one that cannot work."""

    reason: str


@dataclass(frozen=True, slots=True)
class VerifierRefused:
    """What was sent, or what came, is of no use, and will be of none until somebody changes something."""

    reason: str


Outcome: TypeAlias = (
    LoggedIn | Taken | TokenOver | Forbidden | NotAdded | PutOff | VerifierUnreachable | VerifierRefused
)


@dataclass(frozen=True, slots=True)
class Course:
    """Where the agent stands with its verifiers, which are known by their numbers."""

    verifiers: int
    current: int = 0
    token: str | None = field(default=None, repr=False)
    is_untried: bool = False  # the token was not good for an attestation yet
    silent: int = 0  # verifiers in a row that did not answer
    failures: int = 0  # in a row, each followed by a pause
    usual_s: float | None = None  # the pace that a verifier asked for last

    @property
    def begins_with_proof(self) -> bool:
        """Whether the next step is the proof for a token, and not an attestation."""
        return self.token is None


def advance(course: Course, outcome: Outcome, pacing: Pacing, spread: float) -> tuple[Course, float]:
    """The course after `outcome`, and the seconds to wait before the next step; `spread` is from 0 to 1."""

    def failed(course: Course) -> tuple[Course, float]:
        course = replace(course, failures=course.failures + 1, silent=0)
        return course, pacing.after_failures(course.failures, course.usual_s, spread)

    match outcome:
        case LoggedIn(token):
            return replace(course, token=token, is_untried=True, silent=0), 0.0
        case Taken(next_s):
            pause = pacing.regular(next_s, spread)
            usual_s = pacing.regular(next_s, 0.0)
            return replace(course, is_untried=False, silent=0, failures=0, usual_s=usual_s), pause
        case TokenOver():
            # At once, but once: a verifier may refuse the token that it has just given.
            is_untried, course = course.is_untried, _without_token(course)
            return failed(course) if is_untried else (replace(course, silent=0), 0.0)
        case Forbidden() | NotAdded():
            return replace(_without_token(course), silent=0), pacing.regular(None, spread)
        case PutOff(after_s):
            return replace(course, silent=0), pacing.regular(after_s, spread)
        case VerifierUnreachable():
            return _next_verifier(course, failed)
        case VerifierRefused():
            course, pause = failed(course)
            return course, max(pause, pacing.regular(None, spread))
        case _:
            assert_never(outcome)


def _without_token(course: Course) -> Course:
    return replace(course, token=None, is_untried=False)


def _next_verifier(course: Course, failed: Callable[[Course], tuple[Course, float]]) -> tuple[Course, float]:
    """The next one at once, as long as there is one that was not asked; the token is good at all of them."""
    course = replace(course, current=(course.current + 1) % course.verifiers, silent=course.silent + 1)
    return failed(course) if course.silent >= course.verifiers else (course, 0.0)
