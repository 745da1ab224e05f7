"""How agents are asked and judged, and how that is written down."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from keylime.appraisal.reference import Reference
from keylime.database.engine import DatabaseUnavailable
from keylime_verifier.agent_client import AgentClient
from keylime_verifier.agents.records import AgentRecord, HeldVersions
from keylime_verifier.api.routes import Repositories
from keylime_verifier.assembly.telling import Telling
from keylime_verifier.certificates import Tls
from keylime_verifier.config import VerifierConfig
from keylime_verifier.polling.answer_budget import AnswerBudget
from keylime_verifier.polling.meter import Meter
from keylime_verifier.polling.poller import BuildReference, Poller
from keylime_verifier.polling.recorder import Recorder

log = logging.getLogger("keylime.verifier")

_MAX_CONCURRENT_POLLS = 500
LAST_WRITES_S = 0.7
"""With the longest drain and the broker's linger less than the five seconds that a stop may take."""


@dataclass(frozen=True, slots=True)
class Attesting:
    """What goes round with each agent."""

    recorder: Recorder
    poller: Poller
    budget: AnswerBudget
    build_reference: BuildReference

    async def flush_at_last(self) -> None:
        """Writes what waits, if that can be done in time."""
        try:
            async with asyncio.timeout(LAST_WRITES_S):
                await self.recorder.flush()
        except (TimeoutError, DatabaseUnavailable) as error:
            # Costs counters and some work in the next round, but no verdict.
            log.error("the passes of the last second are lost (%s %s)", type(error).__name__, error)
        finally:
            self.recorder.give_up()


def attesting(
    config: VerifierConfig,
    stored: Repositories,
    telling: Telling,
    connect: Callable[[AgentRecord], AgentClient],
    now: Callable[[], float],
    meter: Meter,
) -> Attesting:
    """Not begun yet."""
    recorder = Recorder(
        stored.agents, config.severities, telling.audience.targets, telling.notifier.wake, now=now
    )
    budget = AnswerBudget()

    async def build_reference(record: AgentRecord) -> tuple[Reference, HeldVersions]:
        return await stored.references.build(record.enrolment)

    poller = Poller(
        connect=connect,
        build_reference=build_reference,
        read_v=stored.agents.read_v,
        recorder=recorder,
        cadence=config.cadence,
        severities=config.severities,
        max_concurrent=_MAX_CONCURRENT_POLLS,
        budget=budget,
        now=now,
        meter=meter,
    )
    return Attesting(recorder, poller, budget, build_reference)


def connect(config: VerifierConfig, tls: Tls, record: AgentRecord) -> AgentClient:
    """A client of the agent, which speaks TLS with what is in use by then."""
    enrolment, version = record.enrolment, record.progress.supported_version
    return AgentClient(
        enrolment.ip,
        enrolment.port,
        enrolment.mtls_cert,
        version,
        tls.contexts.agents,
        config.request_timeout_s,
        interval_s=config.cadence.quote_interval_s,
    )
