"""Known vulnerabilities of dependencies (H6), and the lock file that says which versions they are about."""

import json
import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest

from tests.audit.findings import Known, MalformedLock, Pin, Vulnerability, conclude, parse_answers, parse_lock

ROOT = Path(__file__).parents[3]
LOCK = (ROOT / "requirements/runtime.txt").read_text("utf-8")
HASH = f"--hash=sha256:{'ab' * 32}"
A, B = Pin("a", "1.0"), Pin("b", "2.0")
TODAY, BEFORE = "2026-11-29", "2026-11-01"


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_h6_every_dependency_is_pinned_with_hashes_and_in_the_range_that_we_declare() -> None:
    pins = {plain(pin.name): pin for pin in parse_lock(LOCK)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = (project["optional-dependencies"][extra] for extra in ("agent", "database", "tenant"))
    for requirement in chain(project["dependencies"], *extras):
        match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[\w+\])?([^;]*)(?:;.*)?", requirement)
        assert match is not None, requirement
        name, specifier = match.groups()
        version = pins[plain(name)].version
        assert all(within(version, bound) for bound in specifier.strip().split(",")), requirement


def within(version: str, bound: str) -> bool:
    """Whether `version` is within ">=1.2" or "<3", the only bounds that we use."""
    numbers = [tuple(map(int, text.split(".")[:3])) for text in (version, bound.lstrip("<>="))]
    return numbers[0] >= numbers[1] if bound.startswith(">=") else numbers[0] < numbers[1]


def test_h6_the_lock_file_names_no_place_to_install_from() -> None:
    assert not re.search(r"https?:|--(?:extra-)?index-url|--find-links|--trusted-host|\s/", LOCK)


@pytest.mark.parametrize(
    "text", ["", "a==1.0\n", f"a>=1.0 \\\n    {HASH}\n", "a==1.0 \\\n    --hash=md5:00\n"]
)
def test_h6_a_requirement_without_version_or_hash_is_refused(text: str) -> None:
    with pytest.raises(MalformedLock):
        parse_lock(text)


def test_a_lock_file_is_read_as_pip_compile_writes_it() -> None:
    lines = [
        "a==1.0 \\",
        f"    {HASH} \\",
        f"    {HASH}",
        "    # via",
        "    #   keylime (pyproject.toml)",
        'b==2.0 ; sys_platform == "linux" \\',
        f"    {HASH}",
    ]
    assert parse_lock("\n".join(lines)) == (A, B)


def report(**vulns: list[str] | None) -> bytes:
    versions = {"a": "1.0", "b": "2.0"}
    told = [
        {
            "name": name,
            "version": versions[name],
            "vulns": [{"id": i, "fix_versions": ["9"], "x": 1} for i in ids],
        }
        if ids is not None
        else {"name": name, "skip_reason": "not found"}
        for name, ids in vulns.items()
    ]
    return json.dumps({"dependencies": told, "fixes": []}).encode()


def test_h6_a_known_vulnerability_is_named_with_its_remedy() -> None:
    known = parse_answers(report(a=["CVE-1"], b=[]), TODAY)
    for strict in (True, False):
        conclusion = conclude([A, B], known, TODAY, reason=None, strict=strict)
        assert (conclusion.status, conclusion.lines) == (1, ("a 1.0: CVE-1, mended in 9",))


def test_h6_all_checked_today_is_good() -> None:
    known = parse_answers(report(a=[], b=[]), TODAY)
    conclusion = conclude([A, B], known, TODAY, reason=None, strict=True)
    assert (conclusion.status, conclusion.lines) == (0, ("no known vulnerability in 2 dependencies",))


@pytest.mark.parametrize(("strict", "status"), [(False, 0), (True, 2)])
def test_h6_what_could_not_be_checked_is_said_in_one_line(strict: bool, status: int) -> None:
    known = parse_answers(report(a=[], b=None), TODAY)
    conclusion = conclude([A, B], known, TODAY, reason="away", strict=strict)
    assert conclusion.status == status
    assert conclusion.lines == ("1 of 2 dependencies could not be checked (away)",)


@pytest.mark.parametrize(("strict", "status"), [(False, 0), (True, 2)])
def test_h6_without_the_database_what_was_told_before_counts(strict: bool, status: int) -> None:
    known = {str(A): Known(BEFORE), str(B): Known(TODAY)}
    conclusion = conclude([A, B], known, TODAY, reason="away", strict=strict)
    assert conclusion.status == status
    assert conclusion.lines == (f"no known vulnerability in 2 dependencies as of {BEFORE} (away)",)
    worse = {**known, str(A): Known(BEFORE, [Vulnerability("CVE-1")])}
    bad = conclude([A, B], worse, TODAY, reason="away", strict=strict)
    assert (bad.status, bad.lines) == (1, ("a 1.0: CVE-1, mended in no version yet",))


def test_h6_what_was_told_of_another_version_does_not_count() -> None:
    conclusion = conclude([Pin("a", "1.1")], {str(A): Known(TODAY)}, TODAY, reason=None, strict=True)
    assert conclusion.status == 2
