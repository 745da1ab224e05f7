"""Regular expressions of operators, made safe to run on names that an attacker chose.

Operators write Python syntax. Where a pattern means the same to RE2, RE2 runs it, in time linear in the name.
The rest (look-around, back-references, ...) runs on Python's backtracking engine, and only if a bound on the
steps that it can take is small; otherwise the pattern is refused before it is ever used.
"""

import contextlib
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import re2  # type: ignore[import-untyped]

from keylime.errors import PolicyError

MAX_PATTERN_CHARS = 4096
MAX_BACKTRACKED_CHARS = 1024  # longer names are not offered to patterns that backtrack
_MAX_STEPS = 4 * MAX_BACKTRACKED_CHARS**2  # about 40 ms for the worst name
_MAX_EXPONENT = 64  # the power of anything above one is too much by then
_MAX_DEPTH = 40

_QUANTIFIER = re.compile(r"\{(\d*)(?:(,)(\d*))?\}")
_FLAGS = re.compile(r"\(\?([aiLmsux]*)(?:-([imsx]+))?([:)])")
_NAMED_GROUP = re.compile(r"\(\?P<\w+>")
_CODE_POINT = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})")

# Python's classes on str are Unicode; RE2's are ASCII unless spelled out. Inside brackets without the
# brackets.
_CLASSES = {"d": r"\p{Nd}", "w": r"\p{L}\p{N}_", "s": r"\t-\r\x1c-\x20\x85\xa0\p{Z}"}


@dataclass(frozen=True, slots=True)
class Pattern:
    """An operator's regular expression: its source, and how to run it."""

    source: str
    compiled: re.Pattern[str]
    re2_source: str | None  # the same language for RE2; None: only Python's engine can run it


def parse_pattern(source: str) -> Pattern:
    """The pattern, if Python can compile it and it is sure to end soon. Raises PolicyError (quoting it)."""
    if len(source) > MAX_PATTERN_CHARS:
        raise PolicyError(f"a regular expression of {len(source)} characters: at most {MAX_PATTERN_CHARS}")
    compiled = compile_expression(source)
    reader = _Reader(source)
    steps = _MAX_STEPS + 1
    with contextlib.suppress(_NotAnalysableError):
        steps = reader.alternation(0)
    translated = "".join(reader.output) if reader.at_end and reader.portable else None
    if translated is not None and not _runs_on_re2(translated):
        translated = None
    if translated is None and steps > _MAX_STEPS:
        raise PolicyError(
            f"{source!r} could take very long on some names: leave out repeats inside repeats, "
            "look-around and back-references"
        )
    return Pattern(source, compiled, translated)


def compile_expression(source: str) -> re.Pattern[str]:
    """The expression for Python's engine. Raises PolicyError (quoting it), whatever is wrong with it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # "[[" may change its meaning one day
            return re.compile(source)
    except (re.error, ValueError, OverflowError, RecursionError) as error:
        raise PolicyError(f"{source!r} is not a regular expression: {error}") from error


def full_matcher(pattern: Pattern) -> Callable[[str], bool]:
    """A test whether all of a text matches `pattern`."""
    if pattern.re2_source is None:
        compiled = pattern.compiled
        return lambda text: len(text) <= MAX_BACKTRACKED_CHARS and compiled.fullmatch(text) is not None
    group = re2.Set.FullMatchSet(re2_options())
    group.Add(pattern.re2_source)
    group.Compile()
    return lambda text: bool(group.Match(text))


def re2_options() -> re2.Options:
    """The options that RE2 compiles patterns with: quiet, without captures, with room for large sets."""
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = 64 << 20
    return options


def _runs_on_re2(source: str) -> bool:
    try:
        re2.compile(source, re2_options())
    except re2.error:
        return False
    return True


class _NotAnalysableError(Exception):
    """The reader met syntax that it cannot bound."""


class _Reader:
    """Reads a pattern that Python accepts; translates it for RE2 and bounds the steps of a match.

    Since Python accepts it, every group and bracket is closed, and no quantifier stands without an atom.
    The bound of a sequence is the product of its parts' bounds, of alternatives the sum; a repeat of
    something that has only one way to match has as many ways as the name has characters.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self.output: list[str] = []
        self.portable = True

    @property
    def at_end(self) -> bool:
        return self._at == len(self._source)

    def alternation(self, depth: int) -> int:
        if depth > _MAX_DEPTH:
            raise _NotAnalysableError
        steps = self._sequence(depth)
        while self._peek("|"):
            self._copy(1)
            steps += self._sequence(depth)
        return steps

    def _sequence(self, depth: int) -> int:
        steps = 1
        while not self.at_end and not self._peek("|") and not self._peek(")"):
            is_group = self._peek("(")
            atom = self._atom(depth)
            # A cap, lest the products of a long pattern become numbers of a thousand digits.
            steps = min(steps * self._quantified(atom, is_group=is_group), _MAX_STEPS + 1)
        return steps

    def _atom(self, depth: int) -> int:
        char = self._source[self._at]
        if char == "(":
            return self._group(depth)
        if char == "\\":
            return self._escape(in_bracket=False)
        if char == "[":
            self._bracket()
        self._copy(1)
        return 1

    def _quantified(self, steps: int, *, is_group: bool) -> int:
        """The bound after the quantifiers that follow an atom with bound `steps`, if any follow."""
        repeat = self._quantifier()
        if repeat is None:
            return steps
        text, low, high = repeat
        self._emit(self._spelled(text, low, high), len(text))
        # The mark of a lazy or possessive repeat changes no bound: it is copied as if it were an atom. RE2
        # refuses the possessive one.
        if high == low:
            power: int = steps ** min(low, _MAX_EXPONENT)
            return min(power, _MAX_STEPS + 1)
        if high == 1:
            return steps + 1
        if is_group:
            return _MAX_STEPS + 1  # what the group matches can be cut into repeats in many ways
        return MAX_BACKTRACKED_CHARS if high is None else min(high - low + 1, MAX_BACKTRACKED_CHARS)

    def _quantifier(self) -> tuple[str, int, int | None] | None:
        """The quantifier at the cursor: its text, minimum and maximum; None when there is none."""
        if self.at_end:
            return None
        simple = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(self._source[self._at])
        if simple is not None:
            return self._source[self._at], *simple
        match = _QUANTIFIER.match(self._source, self._at)
        if match is None or match[0] == "{}":
            return None
        low = int(match[1] or 0)
        if match[2] is None:
            return match[0], low, low
        return match[0], low, int(match[3]) if match[3] else None

    @staticmethod
    def _spelled(text: str, low: int, high: int | None) -> str:
        """The repeat as RE2 reads it, which takes {,n} and numbers with leading zeros literally."""
        if not text.startswith("{"):
            return text
        if high is None:
            return f"{{{low},}}"
        return f"{{{low},{high}}}" if "," in text else f"{{{low}}}"

    def _group(self, depth: int) -> int:
        flags = _FLAGS.match(self._source, self._at)
        if flags is not None:
            if "x" in flags[1]:
                raise _NotAnalysableError  # blanks and comments would have to be skipped
            self._copy(len(flags[0]))
            return 1 if flags[3] == ")" else self._rest_of_group(depth)
        named = _NAMED_GROUP.match(self._source, self._at)
        if named is not None:
            self._copy(len(named[0]))
            return self._rest_of_group(depth)
        if not self._source.startswith("(?", self._at):
            self._copy(1)
            return self._rest_of_group(depth)
        self.portable = False
        for opening in ("(?=", "(?!", "(?<=", "(?<!", "(?>"):
            if self._source.startswith(opening, self._at):
                self._copy(len(opening))
                return self._rest_of_group(depth)
        raise _NotAnalysableError  # conditional, comment, named back-reference

    def _rest_of_group(self, depth: int) -> int:
        steps = self.alternation(depth + 1)
        self._copy(1)
        return steps

    def _bracket(self) -> None:
        """Up to the bracket that closes it."""
        self._copy(1)
        if self._peek("^"):
            self._copy(1)
        first = True
        while first or self._source[self._at] != "]":
            if self._peek("\\"):
                self._escape(in_bracket=True)
            elif self._peek("["):
                self._emit(r"\[", 1)  # RE2 would see [:alpha:]
            else:
                self._copy(1)
            first = False

    def _escape(self, *, in_bracket: bool) -> int:
        char = self._source[self._at + 1]
        code_point = _CODE_POINT.match(self._source, self._at + 1)
        if code_point is not None:
            digits = code_point[1] or code_point[2] or code_point[3]
            self._emit(rf"\x{{{digits}}}", 1 + len(code_point[0]))
        elif char in _CLASSES:
            self._emit(_CLASSES[char] if in_bracket else f"[{_CLASSES[char]}]", 2)
        elif char.lower() in _CLASSES and not in_bracket:
            self._emit(f"[^{_CLASSES[char.lower()]}]", 2)
        elif char == "Z":
            self._emit(r"\z", 2)
        elif char in "Aafnrtv" or not char.isalnum():
            self._copy(2)
        elif char in "123456789":
            raise _NotAnalysableError  # a back-reference, or an octal that looks like one
        else:
            self.portable = False  # \b, \B, \0, \N, and negated classes inside brackets
            self._copy(2)
        return 1

    def _peek(self, char: str) -> bool:
        return self._source.startswith(char, self._at)

    def _copy(self, count: int) -> None:
        self._emit(self._source[self._at : self._at + count], count)

    def _emit(self, text: str, consumed: int) -> None:
        self.output.append(text)
        self._at += consumed
