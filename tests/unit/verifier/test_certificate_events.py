"""Certificates that are about to end are told once, and once more when they have ended."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

from keylime.pki.lifetimes import CertificateFile, Holder, Lifetime
from keylime_verifier.agents.events import EventKind, Occurrence
from keylime_verifier.certificate_events import CertificateEvents

ENDS = datetime(2026, 12, 1, tzinfo=UTC)
SERVER = CertificateFile(
    Holder.SERVER, Path("/ca/server-cert.crt"), Lifetime(ENDS - timedelta(days=365), ENDS)
)


def test_each_stage_of_an_end_is_told_once() -> None:
    now, told = [ENDS - timedelta(days=31)], list[Occurrence]()

    async def tell(event: Occurrence) -> None:
        told.append(event)

    def watched(name: str = "default on here") -> CertificateEvents:
        return CertificateEvents(lambda: [SERVER, SERVER], name, tell, lambda: now[0])

    async def scenario() -> None:
        events = watched()
        for days, count in ((31, 0), (29, 1), (2, 1), (-1, 2), (-2, 2)):
            now[0] = ENDS - timedelta(days=days)
            await events.look()
            assert len(told) == count

    asyncio.run(scenario())
    assert {event.kind for event in told} == {EventKind.CERTIFICATE}
    assert [event.details["state"] for event in told] == ["ends_soon", "ended"]
    assert told[0].details["remark"] == "server certificate server-cert.crt ends on 2026-12-01"
    assert told[0].details["ends"] == int(ENDS.timestamp())
    # After a restart the name is the same one, of which the history takes one alone.
    asyncio.run(watched().look())
    assert told[2].token == told[1].token
    asyncio.run(watched("default on another").look())
    assert told[3].token != told[1].token
