"""REST calls from the control node with the operator's certificate, by a process that stays there.

python -m tests.demo.fence_client CERTIFICATE KEY    takes one call as JSON in each line, answers in one
"""

import json
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.lab.daemon import program
from tests.lab.private_root import PrivateNode
from tests.lab.rest import Identity, Rest, client_context


class NodeClient:
    """Calls from `node`, where `identity` is found; the process starts at the first one."""

    def __init__(self, node: PrivateNode, identity: Identity) -> None:
        self._command = node.command(
            program("python"), "-m", "tests.demo.fence_client", identity.certificate, identity.key
        )
        self._environment = node.variables()
        self._process: subprocess.Popen[str] | None = None
        self._turn = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.communicate()  # it ends with its input

    def request(self, host: str, port: int, method: str, path: str, body: object = None) -> dict[str, Any]:
        """The results of an answer 200. Raises RuntimeError for any other, and without one."""
        with self._turn:
            process = self._running()
            if process.stdin is None or process.stdout is None:
                raise RuntimeError("no way to talk to the control node")
            process.stdin.write(json.dumps([host, port, method, path, body]) + "\n")
            process.stdin.flush()
            code, results = json.loads(process.stdout.readline() or "[0, {}]")
        if code != 200:
            raise RuntimeError(f"{method} https://{host}:{port}{path} was answered {code}")
        return dict(results)

    def _running(self) -> "subprocess.Popen[str]":
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603
                self._command,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                process_group=0,  # Ctrl-C is for the demonstration, with which its input ends
            )
        return self._process


def main() -> None:
    """Answers until the input ends: status and results, status 0 for no answer."""
    certificate, key = map(Path, sys.argv[1:])
    tls = client_context(Identity(certificate, key))
    for line in sys.stdin:
        host, port, method, path, body = json.loads(line)
        try:
            answer = Rest(host, port, tls).request(method, path, body)
        except OSError as error:
            print(f"{method} https://{host}:{port}{path}: {error}", file=sys.stderr)
            print("[0, {}]", flush=True)
        else:
            print(json.dumps([answer.code, answer.results]), flush=True)


if __name__ == "__main__":
    main()
