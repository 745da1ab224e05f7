"""Whether a process has ended: said only when it is certain."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from keylime_verifier.sharing.process_identity import ProcessIdentity

OWN = ProcessIdentity.own()

pytestmark = pytest.mark.skipif(OWN is None, reason="needs /proc")


def test_this_process_has_not_ended_and_reads_back() -> None:
    assert OWN is not None
    assert not OWN.has_ended()
    assert ProcessIdentity.parse(str(OWN)) == OWN


def test_a_process_that_ended_is_known_to_have_ended_reaped_or_not() -> None:
    program = (
        "from keylime_verifier.sharing.process_identity import ProcessIdentity as P; print(P.own()); input()"
    )
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        identity = ProcessIdentity.parse(process.stdout.readline().strip())
        assert identity is not None
        assert not identity.has_ended()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert identity.has_ended(), "a zombie"
        process.wait()
        assert identity.has_ended()


def test_another_process_with_the_same_number_is_another() -> None:
    assert OWN is not None
    assert replace(OWN, born=OWN.born + 1).has_ended()


def test_nothing_is_said_of_other_machines() -> None:
    assert OWN is not None
    assert not replace(OWN, place="elsewhere", pid=2**22 + 1).has_ended()


@pytest.mark.parametrize("text", ["", "host", "a b c", "a 1 x", "a -1 2"])
def test_what_names_no_process_is_none(text: str) -> None:
    assert ProcessIdentity.parse(text) is None
