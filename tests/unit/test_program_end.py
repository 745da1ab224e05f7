"""How programs end: by Ctrl-C at any time of their life, and when nobody takes what they print."""

import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from keylime.program_end import endings_told

# A module whose loading is interrupted, in place of one that a program needs.
_INTERRUPTED = """
import sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
"""


def test_it_is_one_line_and_a_status_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, endings_told("tool"):
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr() == ("", "tool: interrupted\n")


@pytest.mark.parametrize(
    ("program", "main", "module"),
    [
        ("keylime_tenant", ("keylime_tenant.program", "main"), "keylime_tenant.arguments"),
        ("keylime_tenant", ("keylime_tenant.program", "main"), "keylime_tenant.main"),
        ("keylime-policy", ("keylime_policy.program", "main"), "keylime_policy.main"),
        ("keylime_attest", ("keylime_policy.program", "attest"), "keylime_policy.attest"),
        ("keylime_agent", ("keylime_agent.program", "main"), "keylime_agent.main"),
        ("keylime_registrar", ("keylime_registrar.program", "main"), "keylime_registrar.main"),
        ("keylime_verifier", ("keylime_verifier.program", "main"), "keylime_verifier.main"),
    ],
)
def test_a_program_that_still_loads_itself_ends_in_the_same_way(
    program: str, main: Sequence[str], module: str
) -> None:
    code = f"{_INTERRUPTED}\nfrom {main[0]} import {main[1]} as main\nsys.argv[1:] = ['cvlist']\nmain()"
    code = code.replace("sys.argv[1]:", f"{module!r}:")
    done = subprocess.run(  # noqa: S603 - our own program
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", f"{program}: interrupted\n")


FULL = "tool: error: what it writes cannot be kept: No space left on device\n"


def printing(then: str, *, to: int | None) -> subprocess.CompletedProcess[str]:
    """A program that prints to the descriptor `to`, closed where it is None, and then does `then`."""
    code = (
        "import sys\nfrom keylime.program_end import endings_told\n"
        f"with endings_told('tool'):\n    print('x')\n    {then}"
    )
    command = [sys.executable, "-c", code]
    if to is None:
        command = ["/bin/sh", "-c", 'exec "$0" -c "$1" >&-', sys.executable, code]
    return subprocess.run(  # noqa: S603 - our own program
        command, stdout=to, stderr=subprocess.PIPE, text=True, check=False
    )


@pytest.mark.parametrize("then", ["sys.stdout.flush()", "pass", "sys.exit(3)"])
def test_output_that_nobody_takes_is_at_most_a_line(then: str) -> None:
    with open("/dev/full", "wb") as full:
        done = printing(then, to=full.fileno())
    assert (done.returncode, done.stderr) == (1, FULL)
    reader, writer = os.pipe()
    os.close(reader)
    done = printing(then, to=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")
    done = printing(then, to=None)
    assert (done.returncode, done.stderr) == (3 if "exit" in then else 0, "")


def test_log_lines_that_are_the_result_are_output_like_any_other(tmp_path: Path) -> None:
    code = "from keylime_tenant.program import main\nmain()"
    arguments = ("cvlist", "-v", "127.0.0.1", "-vp", "1")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", code, *arguments],
            env={"PATH": os.environ["PATH"], "KEYLIME_DIR": str(tmp_path)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == FULL.replace("tool", "keylime_tenant")


def test_characters_that_a_locale_has_not_are_written_with_backslashes() -> None:
    code = "from keylime.program_end import endings_told\n"
    code += "with endings_told('tool'):\n    print('gr\\xf6\\u0416')"
    for encoding, written in (("ascii", rb"gr\xf6\u0416"), ("latin-1", b"gr\xf6\\u0416")):
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", code],
            env={"PATH": os.environ["PATH"], "PYTHONIOENCODING": encoding},
            capture_output=True,
            check=True,
        )
        assert done.stdout.rstrip() == written


def test_other_errors_are_not_taken_for_those_of_output() -> None:
    with pytest.raises(OSError, match="here"), endings_told("tool"):
        raise OSError(errno.ENOSPC, "full", "here")
    with pytest.raises(OSError, match="refused"), endings_told("tool"):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")
