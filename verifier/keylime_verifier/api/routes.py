"""The verifier's REST API, put together over what is stored."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from keylime.database.transactions import Database
from keylime.errors import ConfigError
from keylime.http.openapi import Api
from keylime.http.refused_calls import RefusedCall, audited
from keylime.http.routing import Route
from keylime.measured_boot.boot_policy import built_in_policies, compile_measured_boot_policy
from keylime.measured_boot.policies import PolicyRegistry, load_policy_modules
from keylime.messages.verifier import MeasuredBootPolicyRequest, RuntimePolicyRequest
from keylime.messages.versions import SUPPORTED_VERSIONS
from keylime_verifier.agents.deliveries import ZEROMQ
from keylime_verifier.agents.pushing import AttestationMode
from keylime_verifier.api.agent_handlers import AgentHandlers, refusing_routes, version_routes
from keylime_verifier.api.audited import refused_event
from keylime_verifier.api.enrolment import EnrolmentRules
from keylime_verifier.api.event_streams import EventHandlers, EventStreams
from keylime_verifier.api.history_handlers import HistoryHandlers
from keylime_verifier.api.operations import Agents
from keylime_verifier.api.policy_handlers import REFERENCE_STATES, RUNTIME_POLICIES, PolicyHandlers
from keylime_verifier.api.push_handlers import (
    AttestationHandlers,
    SessionHandlers,
    leading_route,
    refused_to_agents,
    root_route,
)
from keylime_verifier.api.revocation_handlers import RevocationHandlers
from keylime_verifier.api.sharing_handlers import SharingHandlers
from keylime_verifier.api.verification_handlers import VerificationHandlers
from keylime_verifier.config import VerifierConfig
from keylime_verifier.database.history import History
from keylime_verifier.policies.checks import check_boot_policy, check_runtime_policy
from keylime_verifier.policies.demands import CompileBootPolicy
from keylime_verifier.policies.named import MEASURED_BOOT_KIND, RUNTIME_KIND, ForgetReferences, NamedPolicies
from keylime_verifier.policies.parts import check_users
from keylime_verifier.policies.references import References
from keylime_verifier.policies.store import PolicyStore
from keylime_verifier.polling.store import AgentStore
from keylime_verifier.pushing.attestations import Attestations
from keylime_verifier.pushing.logins import Logins
from keylime_verifier.revocations.outbox import Outbox
from keylime_verifier.revocations.overview import read_overview
from keylime_verifier.sharing.membership import Member
from keylime_verifier.sharing.overview import read_processes
from keylime_verifier.verification.evidence_workers import EvidenceWorkers

log = logging.getLogger("keylime.verifier")

VERIFIER_API = Api(
    title="Keylime verifier",
    versions=SUPPORTED_VERSIONS,
    unrouted="Answers to unknown paths and methods have no body.",
    administrators="A client certificate of the authority in `trusted_client_ca`.",
)


@dataclass(frozen=True, slots=True)
class Repositories:
    """What is in the database, and how the policies among it are compiled."""

    database: Database
    agents: AgentStore
    policies: PolicyStore
    references: References
    outbox: Outbox
    history: History
    compile_boot_policy: CompileBootPolicy

    @classmethod
    def open(
        cls, config: VerifierConfig, database: Database, member: Member, now: Callable[[], float]
    ) -> Self:
        """Over the `database`, whose time is `now`. Raises ConfigError, as `boot_policies` does."""
        policies = PolicyStore(database)
        compile_boot_policy = functools.partial(
            compile_measured_boot_policy,
            policy_name=config.boot_policy_name,
            registry=boot_policies(config),
            explained=config.boot_explained_pcrs,
        )
        references = References(
            policies,
            functools.partial(compile_boot_policy, is_stored=True),
            ignore_tomtou=config.ignore_tomtou,
            evaluate_boot_always=config.evaluate_boot_always,
            now=now,
        )
        outbox = Outbox(
            database, member.member_id, member.broker, zeromq_enabled=ZEROMQ in config.notifications
        )
        history = History(database, config.history_retention_s)
        return cls(database, AgentStore(database), policies, references, outbox, history, compile_boot_policy)


def boot_policies(config: VerifierConfig) -> PolicyRegistry:
    """The policies for boot logs that there are, the one to use among them.

    Raises ConfigError for modules that cannot be loaded, and when nothing has the name of the one to use.
    """
    registry = built_in_policies()
    with config.settings.placed("measured_boot_imports"):
        load_policy_modules(config.boot_policy_imports, registry)
    with config.settings.placed("measured_boot_policy_name"):
        if registry.get_policy(config.boot_policy_name) is None:
            names = ", ".join(registry.get_policy_names())
            raise ConfigError(
                f"[verifier] measured_boot_policy_name: {config.boot_policy_name!r} is not one of {names}; "
                "a module named in measured_boot_imports can offer more"
            )
    return registry


def enrolment_rules(config: VerifierConfig, stored: Repositories) -> EnrolmentRules:
    """What an agent must fulfil to be added."""
    return EnrolmentRules(
        verifier_id=config.verifier_id,
        verifier_ip=config.ip,
        verifier_port=config.port or 8881,
        require_mtls=config.require_agent_mtls,
        require_policy_signatures=config.require_policy_signatures,
        compile_boot_policy=stored.compile_boot_policy,
        mode=config.mode,
    )


def api_routes(
    config: VerifierConfig,
    stored: Repositories,
    agents: Agents,
    forget_references: ForgetReferences,
    judges: EvidenceWorkers,
    streams: EventStreams,
    logins: Logins,
    attestations: Attestations,
) -> tuple[Route, ...]:
    """Every route but the probes and the description of them all."""
    signed_only = config.require_policy_signatures
    runtime = NamedPolicies(
        stored.database,
        RUNTIME_KIND,
        functools.partial(check_runtime_policy, signature_required=signed_only),
        forget_references,
        kept=config.policy_versions,
        refuse_older=signed_only,
        check_users=functools.partial(check_users, stored.database, stored.references),
    )
    boot = NamedPolicies(
        stored.database,
        MEASURED_BOOT_KIND,
        functools.partial(check_boot_policy, compile_policy=stored.compile_boot_policy),
        forget_references,
        kept=config.policy_versions,
    )
    routes = table(
        config.mode,
        AgentHandlers(agents, attestations.whose),
        SessionHandlers(logins),
        AttestationHandlers(attestations),
        HistoryHandlers(stored.history),
        PolicyHandlers(RUNTIME_POLICIES, runtime),
        PolicyHandlers(REFERENCE_STATES, boot),
        VerificationHandlers(stored.agents.ak_tpm_of, judges, config.max_evidence),
        RevocationHandlers(functools.partial(read_overview, stored.database)),
        SharingHandlers(functools.partial(read_processes, stored.database)),
        EventHandlers(streams),
    )

    async def tell(call: RefusedCall) -> None:
        await stored.history.tell(refused_event(call))

    told = audited(routes, tell, log)
    return refused_to_agents(told, attestations.whose) if config.mode.takes_pushed else told


def table(
    mode: AttestationMode,
    agents: AgentHandlers,
    sessions: SessionHandlers,
    attestations: AttestationHandlers,
    history: HistoryHandlers,
    runtime: PolicyHandlers[RuntimePolicyRequest],
    boot: PolicyHandlers[MeasuredBootPolicyRequest],
    verification: VerificationHandlers,
    revocations: RevocationHandlers,
    sharing: SharingHandlers,
    events: EventHandlers,
) -> tuple[Route, ...]:
    """The routes of all handlers, whatever is behind them."""
    return (
        *version_routes(polls=mode.polls),
        *_push_routes(mode, sessions, attestations),
        *agents.routes(),
        *history.routes(),
        *runtime.routes(),
        *boot.routes(),
        *verification.routes(),
        *revocations.routes(),
        *sharing.routes(),
        *events.routes(),
    )


def _push_routes(
    mode: AttestationMode, sessions: SessionHandlers, attestations: AttestationHandlers
) -> tuple[Route, ...]:
    """API 3.0, or where agents that attest by themselves are told that it is not served."""
    if not mode.takes_pushed:
        return tuple(refusing_routes())
    leading = () if mode.polls else (leading_route(),)
    return (*leading, root_route(), *sessions.routes(), *attestations.routes())
