"""Every program says which version it is; package managers take it for newer than what is in the field."""

import argparse
import importlib
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from keylime.version import add_version, installed_version

ROOT = Path(__file__).parent.parent.parent
PROJECT: Mapping[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
FIELD = "7.14.3"


@pytest.mark.parametrize("program", PROJECT["scripts"])
def test_every_program_says_its_version_and_does_nothing(
    program: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, _, function = PROJECT["scripts"][program].partition(":")
    monkeypatch.setattr(sys, "argv", [program, "--version"])
    with pytest.raises(SystemExit) as end:
        getattr(importlib.import_module(module), function)()
    assert end.value.code in (None, 0)
    out, err = capsys.readouterr()
    assert (out, err) == (f"{program} {installed_version()}\n", "")


def test_the_version_is_newer_than_those_in_the_field() -> None:
    assert Version(PROJECT["version"]) > Version(FIELD)


def test_sources_that_nobody_installed_have_a_flag_all_the_same(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("keylime.version.DISTRIBUTION", "keylime-that-is-not-there")
    parser = argparse.ArgumentParser(prog="some")
    add_version(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--version"])
    assert capsys.readouterr().out == "some (not installed)\n"


def test_the_flag_leaves_no_value_behind() -> None:
    parser = argparse.ArgumentParser()
    add_version(parser)
    assert vars(parser.parse_args([])) == {}


def test_every_package_says_that_it_has_types() -> None:
    packages = [ROOT / "keylime", *(path.parent for path in ROOT.glob("*/keylime_*/__init__.py"))]
    assert len(packages) >= 5
    assert [package for package in packages if not (package / "py.typed").is_file()] == []
