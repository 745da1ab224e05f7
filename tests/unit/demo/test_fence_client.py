"""The process that asks from the control node."""

import os
import signal
import subprocess
import sys

_DEMONSTRATION = """
import signal, sys, time
from pathlib import Path
from tests.demo.fence_client import NodeClient
from tests.lab.rest import Identity

ANSWERING = "import sys\\nfor _ in sys.stdin: print('[200, {}]', flush=True)"

class Node:
    def command(self, *_words):
        return [sys.executable, "-c", ANSWERING]

    def variables(self):
        return None

signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background ignore it
try:
    with NodeClient(Node(), Identity(Path(), Path())) as client:
        client.request("192.0.2.1", 8881, "GET", "/version")
        print("ready", flush=True)
        time.sleep(100)
except KeyboardInterrupt:
    sys.exit(130)
"""


def test_ctrl_c_is_for_the_demonstration_which_ends_it() -> None:
    process = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-c", _DEMONSTRATION],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=100)
    assert (process.returncode, said) == (130, "")
