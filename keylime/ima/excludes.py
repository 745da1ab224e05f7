"""The exclude list of a runtime policy: regular expressions for names that are not judged by their digest."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import re2  # type: ignore[import-untyped]

from keylime.documents.patterns import MAX_BACKTRACKED_CHARS, Pattern, parse_pattern, re2_options
from keylime.errors import PolicyError

MAX_EXCLUDES = 10_000
_SET_SIZE = 500  # patterns in one RE2 set: keeps its automaton within the memory that it is given

# Names that have nothing in common: a pattern that excludes all of them excludes nearly everything.
_PROBES = ("/usr/bin/bash", "/lib/modules/a.ko", "/opt/x/y", "/etc/profile", "/home/a/b", "/init")


@dataclass(frozen=True, slots=True)
class Excludes:
    """One matcher for a whole exclude list."""

    sources: tuple[str, ...]
    warnings: tuple[str, ...]
    _sets: tuple["re2.Set", ...]
    _backtracking: tuple[re.Pattern[str], ...]

    def match(self, name: str) -> bool:
        """Whether some expression matches at the start of `name` (it need not reach its end)."""
        for group in self._sets:
            if group.Match(name):
                return True
        if len(name) > MAX_BACKTRACKED_CHARS:
            return False  # not excluded: such a name is judged by its digest
        return any(pattern.match(name) for pattern in self._backtracking)


def compile_excludes(sources: Sequence[str], where: str = "excludes") -> Excludes:
    """The matcher for `sources`. Raises PolicyError, which names `where`[index] and the expression."""
    if len(sources) > MAX_EXCLUDES:
        raise PolicyError(f"{where}: {len(sources)} regular expressions, at most {MAX_EXCLUDES}")
    patterns: list[Pattern] = []
    warnings: list[str] = []
    for index, source in enumerate(sources):
        try:
            pattern = parse_pattern(source)
        except PolicyError as error:
            raise PolicyError(f"{where}[{index}]: {error}") from error
        patterns.append(pattern)
        warnings.extend(f"{where}[{index}]: {text}" for text in _doubts(pattern))
    linear = [pattern.re2_source for pattern in patterns if pattern.re2_source is not None]
    return Excludes(
        tuple(sources),
        tuple(warnings),
        tuple(_compile_set(linear[start : start + _SET_SIZE]) for start in range(0, len(linear), _SET_SIZE)),
        tuple(pattern.compiled for pattern in patterns if pattern.re2_source is None),
    )


def _compile_set(sources: Sequence[str]) -> "re2.Set":
    group = re2.Set.MatchSet(re2_options())
    for source in sources:
        group.Add(source)
    group.Compile()
    return group


def _doubts(pattern: Pattern) -> list[str]:
    """What an operator should think about again: excluded files are not appraised at all."""
    if all(pattern.compiled.match(probe) for probe in _PROBES):
        return [f"{pattern.source!r} excludes every file, or nearly every one"]
    if re.fullmatch(r"\^?/[\w/.\\-]*\w", pattern.source):
        return [f"{pattern.source!r} has no end: it excludes every name that only begins so (end it with $)"]
    return []
