import asyncio
import logging

import pytest

from keylime_tenant.quiet_loop import be_quiet_when_interrupted


async def fail_in_a_callback(*, interrupted: bool) -> None:
    be_quiet_when_interrupted()
    task = asyncio.current_task()
    assert task is not None

    def callback() -> None:
        if interrupted:
            task.cancel()
        raise asyncio.InvalidStateError

    asyncio.get_running_loop().call_soon(callback)
    await asyncio.sleep(0.01)


def test_what_fails_because_of_an_interruption_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "asyncio"), pytest.raises(asyncio.CancelledError):
        asyncio.run(fail_in_a_callback(interrupted=True))
    assert "InvalidStateError" not in caplog.text


def test_what_fails_otherwise_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    asyncio.run(fail_in_a_callback(interrupted=False))
    assert "InvalidStateError" in caplog.text
