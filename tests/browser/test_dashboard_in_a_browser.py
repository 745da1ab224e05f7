"""The dashboard in Chromium: log in, see a machine fall live, read why, accept it, see it return.

With `KEYLIME_SCREENSHOTS` it leaves the pictures of docs/dashboard.md there.
"""

import asyncio
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.attesting_agent import AttestingAgent, policy_of
from tests.fakes.running_dashboard import running_dashboard
from tests.fakes.running_verifier import running_verifier, verifier_authority
from tests.integration.test_administration_log import encoded

_CHROMIUM, _DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
_IS_THERE = _CHROMIUM.exists() and _DRIVER.exists() and importlib.util.find_spec("selenium") is not None
pytestmark = [
    pytest.mark.skipif(
        not _IS_THERE and "KEYLIME_TEST_BROWSER" not in os.environ,
        reason="needs Chromium, its driver and selenium, which `make test-browser` installs",
    ),
    pytest.mark.timeout(600),
]

_LIMIT_S = 100.0
_FLEET = "/v2.6/allowlists/web"
_NAMED = {"runtime_policy": "", "runtime_policy_name": "web"}
_EVIL = "/opt/<svg/onload=document.title='owned'>/tool"


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """Chromium without a window; it may ask nobody but us."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new",
        "--no-sandbox",  # tests run as root in containers
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-proxy-server",
        "--window-size=1000,760",
        f"--user-data-dir={tmp_path / 'profile'}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    options.binary_location = str(_CHROMIUM)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(_DRIVER)))
    try:
        yield driver
    finally:
        driver.quit()


class Reader:
    """Somebody in front of the browser. Everything blocks, and is done beside the services."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver

    def open(self, url: str) -> None:
        self._driver.get(url)

    def until(self, condition: Callable[[Any], Any]) -> Any:
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        wait = WebDriverWait(self._driver, _LIMIT_S, 0.1, [StaleElementReferenceException])
        return wait.until(condition, self.text())

    def sees(self, text: str) -> None:
        """Waits, without any reload of ours."""
        self.until(lambda _: text in self.text())

    def text(self) -> str:
        return str(self._driver.find_element("tag name", "body").text)

    def click(self, words: str) -> None:
        self._click("partial link text", words)

    def press(self, words: str) -> None:
        self._click("xpath", f"//button[contains(., '{words}')]")

    def _click(self, by: str, what: str) -> None:
        """Finds it anew when the page is exchanged between the look and the click."""

        def is_clicked(driver: Any) -> bool:
            found = driver.find_elements(by, what)
            for one in found[:1]:
                one.click()
            return bool(found)

        self.until(is_clicked)

    def theme(self, word: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": word}]
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def ground(self) -> str:
        script = "return getComputedStyle(document.body).backgroundColor"
        return str(self._driver.execute_script(script))

    def picture(self, name: str) -> None:
        directory = os.environ.get("KEYLIME_SCREENSHOTS")
        if directory:
            self._driver.save_screenshot(str(Path(directory) / f"dashboard-{name}.png"))

    def focused(self, keys: int) -> list[str]:
        """What the tabulator reaches, one after the other."""
        from selenium.webdriver.common.keys import Keys

        reached = []
        for _ in range(keys):
            self._driver.switch_to.active_element.send_keys(Keys.TAB)
            reached.append(str(self._driver.switch_to.active_element.text).strip())
        return reached

    def complaints(self) -> list[str]:
        """What the browser objects to: the policy of the page among that. Nobody has an icon."""
        entries = self._driver.get_log("browser")
        return [one["message"] for one in entries if "favicon.ico" not in one["message"]]

    @property
    def title(self) -> str:
        return str(self._driver.title)


def test_a_machine_is_seen_to_fall_and_to_return(tmp_path: Path, browser: Any) -> None:
    async def play() -> None:
        reader, do = Reader(browser), asyncio.to_thread
        async with AsyncExitStack() as stack:
            names = ("web-1", "web-2", "web-3", "web-4")
            agents = [
                await stack.enter_async_context(AttestingAgent(name, verifier_authority())) for name in names
            ]
            verifier = await stack.enter_async_context(running_verifier(tmp_path / "verifier"))
            created = await verifier.admin("POST", _FLEET, encoded(policy_of(agents[0].files)))
            assert created.code == 201
            for agent in agents:
                await verifier.add(agent, **_NAMED)
                await verifier.until_passing(agent)
            board = await stack.enter_async_context(running_dashboard(verifier))
            await do(reader.open, board.link)
            await do(reader.sees, "Machines 1 to 4 of 4")
            await do(reader.sees, "live")
            assert (await do(reader.focused, 2))[:2] == ["To the content", "Fleet"]
            agents[1].machine.measure(_EVIL, b"new")
            await do(reader.sees, "1\nfailed")
            await do(reader.sees, "failed machines in the last 48 hours: 1 now")
            await do(reader.picture, "fleet")
            await do(reader.click, "web-2")
            await do(reader.sees, "Why it fails")
            await do(reader.sees, _EVIL)
            await do(reader.sees, "keylime_tenant approve -u web-2")
            await do(reader.picture, "machine")
            await do(reader.click, "Accept")
            await do(reader.sees, "4 machines use this policy")
            await do(reader.picture, "accept")
            await do(reader.press, "Accept all of this")
            await verifier.until_passing(agents[1])
            await do(reader.sees, "attested")
            await do(reader.sees, "reactivated")
            await do(reader.theme, "dark")
            assert await do(reader.ground) == "rgb(20, 23, 26)"
            await do(reader.open, f"{board.origin}/policies/runtime/web?from=1&to=2")
            await do(reader.sees, f"+ digests {_EVIL}")
            await do(reader.picture, "policy")
            await do(reader.theme, "light")
            assert await do(reader.ground) == "rgb(255, 255, 255)"
            await do(reader.click, "Services")
            await do(reader.sees, "Verifiers and their shares")
            await do(reader.sees, "256 of 256")
            await do(reader.picture, "services")
            assert "owned" not in await do(lambda: reader.title)
            assert await do(reader.complaints) == []

    (tmp_path / "verifier").mkdir()
    asyncio.run(play())
