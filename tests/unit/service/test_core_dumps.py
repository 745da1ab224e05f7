"""Core dumps of whoever holds keys (H5); tests/attacks/test_host_attacks.py looks at servers at work."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HOLDERS_OF_KEYS = [
    "agent/keylime_agent/preparation.py",
    "registrar/keylime_registrar/main.py",
    "tenant/keylime_tenant/ca/program.py",
    "tenant/keylime_tenant/main.py",
    "verifier/keylime_verifier/main.py",
]


def test_h5_a_process_that_forbids_core_dumps_has_none_and_neither_has_its_child() -> None:
    program = "; ".join(
        (
            "import resource, subprocess, sys",
            "hard = resource.getrlimit(resource.RLIMIT_CORE)[1]",
            "resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))",
            "from keylime.service.core_dumps import forbid_core_dumps",
            "forbid_core_dumps()",
            "print(subprocess.run(['cat', '/proc/self/limits'], capture_output=True, text=True).stdout)",
        )
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)  # noqa: S603
    assert re.search(r"^Max core file size +0 +0 ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize("path", HOLDERS_OF_KEYS)
def test_h5_every_program_that_holds_keys_forbids_core_dumps(path: str) -> None:
    assert "    forbid_core_dumps()\n" in (ROOT / path).read_text("utf-8")
