"""Parsers of messages, certificates and payloads, fuzzed for a moment."""

from pathlib import Path

import pytest

from tests.fuzz.runs import fuzz, limit_s, needs_atheris, try_seeds
from tests.fuzz.wire_targets import TARGETS


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_seed_is_handled(name: str) -> None:
    try_seeds(TARGETS[name])


@needs_atheris
@pytest.mark.timeout(limit_s(TARGETS))
def test_fuzzing_finds_nothing(tmp_path: Path) -> None:
    fuzz(TARGETS, tmp_path)
