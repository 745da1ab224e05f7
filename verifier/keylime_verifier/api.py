"""The verifier's REST API, put together over what is stored."""

import functools
from dataclasses import dataclass
from typing import Self

from sqlalchemy.ext.asyncio import AsyncEngine

from keylime.http.server import Route
from keylime.measured_boot.policies import load_policy_modules
from keylime.policy.measured_boot import built_in_policies, compile_measured_boot_policy
from keylime_verifier.agents import Agents
from keylime_verifier.config import VerifierConfig
from keylime_verifier.enrolment import EnrolmentRules
from keylime_verifier.evidence_check import EvidenceRules
from keylime_verifier.handlers import AgentHandlers, version_routes
from keylime_verifier.membership import Member
from keylime_verifier.named_policies import (
    MEASURED_BOOT_KIND,
    RUNTIME_KIND,
    ForgetReferences,
    NamedPolicies,
    check_boot_policy,
    check_runtime_policy,
)
from keylime_verifier.outbox import ZEROMQ, Outbox
from keylime_verifier.policy_handlers import PolicyHandlers
from keylime_verifier.policy_store import PolicyStore
from keylime_verifier.references import CompileBootPolicy, References
from keylime_verifier.revocation_handlers import RevocationHandlers
from keylime_verifier.store import AgentStore
from keylime_verifier.verification_handlers import VerificationHandlers


@dataclass(frozen=True, slots=True)
class Stored:
    """What is in the database, and how the policies among it are compiled."""

    engine: AsyncEngine
    agents: AgentStore
    policies: PolicyStore
    references: References
    outbox: Outbox
    compile_boot_policy: CompileBootPolicy

    @classmethod
    def open(cls, config: VerifierConfig, engine: AsyncEngine, member: Member) -> Self:
        """Over the database of `engine`. Raises ConfigError for policy modules that cannot be loaded."""
        policies = PolicyStore(engine)
        registry = built_in_policies()
        load_policy_modules(config.boot_policy_imports, registry)
        compile_boot_policy = functools.partial(
            compile_measured_boot_policy, policy_name=config.boot_policy_name, registry=registry
        )
        references = References(
            policies,
            compile_boot_policy,
            ignore_tomtou=config.ignore_tomtou,
            evaluate_boot_always=config.evaluate_boot_always,
        )
        outbox = Outbox(
            engine, member.member_id, member.broker, zeromq_enabled=ZEROMQ in config.notifications
        )
        return cls(engine, AgentStore(engine), policies, references, outbox, compile_boot_policy)


def enrolment_rules(config: VerifierConfig, stored: Stored) -> EnrolmentRules:
    """What an agent must fulfil to be added."""
    return EnrolmentRules(
        verifier_id=config.verifier_id,
        verifier_ip=config.ip,
        verifier_port=config.port or 8881,
        require_mtls=config.require_agent_mtls,
        require_policy_signatures=config.require_policy_signatures,
        compile_boot_policy=stored.compile_boot_policy,
    )


def api_routes(
    config: VerifierConfig, stored: Stored, agents: Agents, forget_references: ForgetReferences
) -> tuple[Route, ...]:
    """Every route but the probes and the description of them all."""
    signed_only = config.require_policy_signatures
    runtime = NamedPolicies(
        stored.engine,
        RUNTIME_KIND,
        functools.partial(check_runtime_policy, signature_required=signed_only),
        forget_references,
        refuse_older=signed_only,
    )
    boot = NamedPolicies(
        stored.engine,
        MEASURED_BOOT_KIND,
        functools.partial(check_boot_policy, compile_policy=stored.compile_boot_policy),
        forget_references,
    )
    evidence_rules = EvidenceRules(stored.compile_boot_policy, config.ignore_tomtou)
    return (
        *version_routes(),
        *AgentHandlers(agents).routes(),
        *PolicyHandlers(runtime, boot).routes(),
        *VerificationHandlers(stored.agents.ak_tpm_of, evidence_rules).routes(),
        *RevocationHandlers(stored.engine).routes(),
    )
