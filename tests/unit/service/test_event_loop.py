"""Connections that end while something is sent over them are no errors; all else that loops tell of is."""

import asyncio
import logging

import pytest

from keylime.service.event_loop import new_event_loop
from tests.fakes.loopback import served_by


async def _write_too_late(asked: bytes) -> tuple[RuntimeError, asyncio.WriteTransport]:
    """What uvloop raises at a write to a connection that has just ended."""
    async with served_by(lambda _reader, writer: writer.close()) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port.number)
        transport = writer.transport
        transport.abort()
        for _ in range(10):
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError) as caught:
            transport.write(asked)
        return caught.value, transport


def report(message: str, *, is_genuine: bool) -> None:
    """The TLS layer of the loop tells of an exception, as it does where nobody awaits it."""

    async def scenario() -> None:
        error, transport = await _write_too_late(b"x")
        context = {
            "message": message,
            "exception": error if is_genuine else RuntimeError("something else"),
            "transport": transport,
        }
        asyncio.get_running_loop().call_exception_handler(context)

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(scenario())


def test_a_tls_connection_that_ended_under_a_write_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "keylime.service")
    report("Fatal error on SSL protocol", is_genuine=True)
    (record,) = (one for one in caplog.records if one.name == "keylime.service")
    assert record.levelno == logging.DEBUG
    assert [one for one in caplog.records if one.levelno >= logging.WARNING] == []


@pytest.mark.parametrize(
    ("message", "is_genuine"), [("Fatal error on SSL protocol", False), ("Task was never retrieved", True)]
)
def test_other_exceptions_are_logged_as_before(
    message: str, is_genuine: bool, caplog: pytest.LogCaptureFixture
) -> None:
    report(message, is_genuine=is_genuine)
    (record,) = (one for one in caplog.records if one.levelno >= logging.ERROR)
    assert message in record.getMessage()


def test_an_exception_without_any_details_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    loop = new_event_loop()
    try:
        loop.call_exception_handler({"message": "Fatal error on SSL protocol"})
    finally:
        loop.close()
    (record,) = (one for one in caplog.records if one.levelno >= logging.ERROR)
    assert "Fatal error" in record.getMessage()
