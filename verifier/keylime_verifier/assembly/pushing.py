"""What takes the attestations of agents that attest by themselves."""

from collections.abc import Callable
from dataclasses import dataclass

from keylime_verifier.agents.pushing import PushRules
from keylime_verifier.agents.shards import MemberId
from keylime_verifier.api.routes import Repositories
from keylime_verifier.assembly.attesting import Attesting
from keylime_verifier.assembly.telling import Telling
from keylime_verifier.config import VerifierConfig
from keylime_verifier.polling.meter import Meter
from keylime_verifier.pushing.attestation_store import AttestationStore
from keylime_verifier.pushing.attestations import Attestations
from keylime_verifier.pushing.journal import PushedVerdicts
from keylime_verifier.pushing.judging import Judging
from keylime_verifier.pushing.kept_references import KeptReferences
from keylime_verifier.pushing.logins import Logins
from keylime_verifier.pushing.session_store import SessionStore
from keylime_verifier.pushing.silence import Silence

_REFERENCES_KEPT_S = 600.0  # of agents that come no more


@dataclass(frozen=True, slots=True)
class Pushing:
    """From a session to the verdict, and to silence."""

    logins: Logins
    attestations: Attestations
    judging: Judging
    journal: PushedVerdicts
    silence: Silence


def pushing(
    config: VerifierConfig,
    stored: Repositories,
    telling: Telling,
    attesting: Attesting,
    me: MemberId,
    now: Callable[[], float],
    meter: Meter,
) -> Pushing:
    """Not begun yet."""
    rules = PushRules(config.cadence, config.severities, config.recovers)
    limits = config.session_limits
    sessions = SessionStore(stored.database, limits)
    store = AttestationStore(stored.database)
    journal = PushedVerdicts(
        stored.database,
        stored.agents,
        rules,
        token_s=limits.token_s if limits.extends else None,
        targets=telling.audience.targets,
        on_revocation=telling.notifier.wake,
        lateness=attesting.recorder.lateness,
        meter=meter,
        now=now,
        on_written=store.judged,
    )
    references = KeptReferences(
        stored.references.build, now, kept_s=max(_REFERENCES_KEPT_S, 2 * rules.longest_pause_s)
    )
    judging = Judging(references, journal, attesting.budget, meter)
    attestations = Attestations(store, references, judging, config.attestation_limits, now=now)
    silence = Silence(me, store, sessions, journal, rules, kept_s=config.attestation_history_s, now=now)
    return Pushing(
        Logins(sessions, stored.agents, limits, meter, now=now), attestations, judging, journal, silence
    )
