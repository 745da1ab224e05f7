"""`keylime_tenant dashboard` as a program, looked at by a client that is no browser, or by one."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp

from tests.fakes.client_session import client_session
from tests.fakes.eventual import LIMIT_S
from tests.fakes.running_verifier import RunningVerifier


@dataclass
class RunningDashboard:
    """The program and its link."""

    process: asyncio.subprocess.Process
    link: str
    client: aiohttp.ClientSession
    jar: dict[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        """Scheme, address and port."""
        return self.link.partition("/login")[0]

    async def ask(
        self, path: str, form: dict[str, str] | None = None, **headers: str
    ) -> tuple[int, str, dict[str, str]]:
        """Status, text and headers of an answer; a form is sent as the page's own unless headers say more."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if form is not None:
            sent = {"Origin": self.origin, "Sec-Fetch-Site": "same-origin"} | sent
        async with self.client.request(
            "GET" if form is None else "POST",
            path if path.startswith("http") else self.origin + path,
            data=form,
            headers=sent,
            cookies=self.jar,
            allow_redirects=False,
        ) as response:
            return response.status, await response.text(), dict(response.headers)

    async def page(self, path: str) -> str:
        """The text of a page that there is."""
        code, text, _ = await self.ask(path)
        assert code == 200, (path, code, text)
        return text

    async def log_in(self) -> None:
        """As a browser does that is given the link."""
        code, text, headers = await self.ask(self.link)
        assert code == 200, text
        name, _, value = headers["Set-Cookie"].partition(";")[0].partition("=")
        self.jar[name] = value

    async def confirm(self, path: str, **changes: str) -> tuple[int, str]:
        """Reads a page that asks, and sends its form back."""
        fields = dict(
            re.findall(r'<input type="hidden" name="([a-z_]+)" value="([^"]*)">', await self.page(path))
        )
        code, text, headers = await self.ask(path, form={**fields, **changes})
        return code, headers.get("Location", text)


@asynccontextmanager
async def running_dashboard(verifier: RunningVerifier, *arguments: str) -> AsyncIterator[RunningDashboard]:
    """The program, ended with SIGTERM, which it takes for a good end."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "keylime_tenant.main", "-v", "127.0.0.1", "-vp", str(verifier.port)),
        *("-o", "table", "dashboard", "--no-browser", *arguments),
        env={"PATH": os.environ["PATH"], "KEYLIME_DIR": str(verifier.config.work_dir)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    ended = False
    try:
        async with asyncio.timeout(LIMIT_S):
            first = (await process.stdout.readline()).decode()
        assert first.startswith("Dashboard: http://127."), (first, await _rest(process))
        async with client_session({"cookie_jar": aiohttp.DummyCookieJar()}) as client:
            yield RunningDashboard(process, first.removeprefix("Dashboard: ").strip(), client)
        ended = True
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(LIMIT_S):
            out, err = await process.communicate()
        if ended:
            assert process.returncode == 0, (out, err)
            assert b"Traceback" not in err, err.decode()
            assert first.partition("token=")[2].strip().encode() not in out + err


async def _rest(process: asyncio.subprocess.Process) -> str:
    process.terminate()
    out, err = await process.communicate()
    return (out + err).decode()
