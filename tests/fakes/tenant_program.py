"""`keylime_tenant` as a program, talking to a verifier that runs in the test."""

import asyncio
import os
import subprocess
import sys

from tests.fakes.running_verifier import RunningVerifier


async def tenant(
    verifier: RunningVerifier, *arguments: str, code: int = 0, **environ: str
) -> subprocess.CompletedProcess[str]:
    """The program, finished with this exit status, with the certificates of the verifier's directory."""

    def run() -> subprocess.CompletedProcess[str]:
        place = ("-v", "127.0.0.1", "-vp", str(verifier.port))
        return subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-m", "keylime_tenant.main", *place, *arguments],
            env={"PATH": os.environ["PATH"], "KEYLIME_DIR": str(verifier.config.work_dir), **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    done = await asyncio.to_thread(run)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done
