"""The agent's certificate while it runs: made anew in time, registered, and never for another key."""

import asyncio
import logging
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from keylime.errors import ConfigError
from keylime.identifiers import AgentId
from keylime.pki.agent_certificate import key_pin, read_agent_certificate
from keylime_agent.certificate_renewal import CertificateRenewal
from keylime_agent.config import TlsOptions
from keylime_agent.listener import ListenerIdentity, own_identity
from keylime_agent.registration import RegistrationForbidden

NOW = datetime(2026, 5, 1, tzinfo=UTC)
AGENT = AgentId("agent-1")


@dataclass
class Listener:
    """What a renewal is connected with: a clock, a listener, a registrar."""

    directory: Path
    now: datetime = NOW
    served: list[ssl.SSLContext] = field(default_factory=list)
    registered: list[str] = field(default_factory=list)
    refuses: bool = False

    def __post_init__(self) -> None:
        self.has_registered = asyncio.Event()
        self.tls = TlsOptions(self.directory / "c.crt", self.directory / "k.pem", None, ())
        self.renewal = CertificateRenewal(
            self.identity(),
            (),
            serve=self.served.append,
            register=self.register,
            now=lambda: self.now,
            look_every_s=0.005,
        )

    def identity(self) -> ListenerIdentity:
        return own_identity(self.tls, AGENT, "192.0.2.7", self.now)

    async def register(self) -> None:
        self.registered.append(self.renewal.identity.certificate_pem)
        self.has_registered.set()
        if self.refuses:
            raise RegistrationForbidden("no")

    def run_until_registered(self, then_s: float = 0) -> None:
        async def scenario() -> None:
            loops = [asyncio.create_task(work()) for work in (self.renewal.run, self.renewal.tell)]
            try:
                await asyncio.wait_for(self.has_registered.wait(), 100)
                await asyncio.sleep(then_s)
                assert not any(loop.done() for loop in loops)
            finally:
                for loop in loops:
                    loop.cancel()
                await asyncio.gather(*loops, return_exceptions=True)

        asyncio.run(scenario())


def test_a_certificate_that_nears_its_end_is_made_anew_and_registered_while_the_agent_runs(
    tmp_path: Path,
) -> None:
    here = Listener(tmp_path)
    first = here.renewal.identity.certificate_pem
    here.renewal.look()
    assert (here.served, here.renewal.identity.certificate_pem) == ([], first)
    here.now += timedelta(days=336)
    here.run_until_registered()
    second = here.renewal.identity.certificate_pem
    assert second != first
    assert key_pin(second) == key_pin(first)
    assert here.registered == [second]
    assert len(here.served) == 1
    assert here.served[0] is not None
    assert here.tls.certificate.read_text() == second
    assert read_agent_certificate(second.encode()).not_after == here.now + timedelta(days=365)


def test_a_year_and_more_costs_one_renewal_after_the_other_for_one_key(tmp_path: Path) -> None:
    here = Listener(tmp_path)
    seen = {here.renewal.identity.certificate_pem}
    for _ in range(400):
        here.now += timedelta(days=3)
        here.renewal.look()
        found = here.renewal.identity.certificate_pem
        seen.add(found)
        ends = read_agent_certificate(found.encode()).not_after
        assert ends is not None
        assert ends > here.now
    assert len(seen) == 4
    assert len({key_pin(pem) for pem in seen}) == 1


def test_a_registrar_that_refuses_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    here = Listener(tmp_path, refuses=True)
    here.now += timedelta(days=336)
    here.run_until_registered(then_s=0.05)
    assert len(here.registered) == 1
    assert "the registrar does not take the agent's new certificate: no" in caplog.text


def test_a_registrar_that_is_away_for_a_year_holds_nothing_up(tmp_path: Path) -> None:
    here = Listener(tmp_path)

    async def scenario() -> None:
        answers = asyncio.Event()
        renewal = CertificateRenewal(
            here.identity(),
            (),
            serve=here.served.append,
            register=answers.wait,
            now=lambda: here.now,
            look_every_s=1e6,
        )
        telling = asyncio.create_task(renewal.tell())
        for _ in range(3):
            here.now += timedelta(days=336)
            renewal.look()
            await asyncio.sleep(0)
            ends = read_agent_certificate(renewal.identity.certificate_pem.encode()).not_after
            assert ends == here.now + timedelta(days=365)
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)

    asyncio.run(scenario())


def test_another_key_on_the_disk_is_not_taken_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    here = Listener(tmp_path)
    first = here.renewal.identity.certificate_pem
    here.tls.key.unlink()
    here.tls.certificate.unlink()
    other = here.identity()
    assert key_pin(other.certificate_pem) != key_pin(first)
    with pytest.raises(ConfigError, match=r"another key.*restart the agent.*-c update -u agent-1"):
        here.renewal.reload(())
    here.renewal.look()
    assert here.renewal.identity.certificate_pem == first
    assert here.served == []
    assert "goes on with the certificate that it has" in caplog.text


def test_a_key_that_is_gone_is_told_and_not_made_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = Listener(tmp_path)
    here.tls.key.unlink()
    here.renewal.look()
    assert not here.tls.key.exists()
    assert "k.pem is gone: put it back" in caplog.text


def test_a_problem_is_told_once_a_day(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    here = Listener(tmp_path)
    here.now -= timedelta(days=400)
    with caplog.at_level(logging.WARNING):
        for _ in range(24 * 3):
            here.renewal.look()
    assert caplog.text.count("clock is wrong") == 4


def test_a_reload_takes_up_another_certificate_for_the_key(tmp_path: Path) -> None:
    here = Listener(tmp_path)
    first = here.renewal.identity.certificate_pem
    here.tls.certificate.unlink()
    take_up = here.renewal.reload(())
    assert here.renewal.identity.certificate_pem == first, "not before everything else was read"
    take_up()
    second = here.renewal.identity.certificate_pem
    assert second != first
    assert len(here.served) == 1
    here.run_until_registered()
    assert here.registered == [second]
