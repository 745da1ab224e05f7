"""What is answered over HTTPS, and to whom."""

import os
from collections.abc import Callable

from keylime.http.openapi import openapi_route
from keylime.http.probes import probe_routes
from keylime.http.server import RoleRule, Server, ServerLimits, administrator
from keylime.messages.push_document import API_VERSION
from keylime.messages.versions import SUPPORTED_VERSIONS
from keylime.service.health import Health
from keylime_verifier.api.event_streams import EventStreams
from keylime_verifier.api.operations import Agents
from keylime_verifier.api.routes import VERIFIER_API, Repositories, api_routes, enrolment_rules
from keylime_verifier.assembly.attesting import Attesting
from keylime_verifier.assembly.pushing import Pushing
from keylime_verifier.config import VerifierConfig
from keylime_verifier.sharing.roster import Roster
from keylime_verifier.verification.evidence_worker import WorkerRules
from keylime_verifier.verification.evidence_workers import MOST_WAITING, EvidenceWorkers


def verifier_server(
    config: VerifierConfig,
    stored: Repositories,
    roster: Roster,
    attesting: Attesting,
    pushes: Pushing,
    judges: EvidenceWorkers,
    streams: EventStreams,
    health: Health,
    now: Callable[[], float],
) -> Server:
    """The server with all of its routes, not listening yet."""
    agents = Agents(
        stored.agents,
        stored.policies,
        stored.references,
        roster,
        attesting.recorder,
        enrolment_rules(config, stored),
        config.cadence,
        now,
    )
    routes = (
        *api_routes(
            config,
            stored,
            agents,
            attesting.poller.forget_references,
            judges,
            streams,
            pushes.logins,
            pushes.attestations,
        ),
        *probe_routes(health),
    )
    return Server(
        [*routes, openapi_route(VERIFIER_API, routes)],
        limits=ServerLimits(max_body=config.max_upload, stranger_bodies=config.max_stranger_bodies),
        is_admin=RoleRule(administrator, require_role=config.require_admin_role, section="verifier"),
        versions=(*SUPPORTED_VERSIONS, API_VERSION),
    )


def evidence_judges(config: VerifierConfig) -> EvidenceWorkers:
    """The processes that judge evidence at hand, none of which has begun."""
    rules = WorkerRules(
        parent=os.getpid(),
        boot_policy_name=config.boot_policy_name,
        boot_explained_pcrs=config.boot_explained_pcrs,
        boot_policy_imports=config.boot_policy_imports,
        ignore_tomtou=config.ignore_tomtou,
        memory=config.evidence_memory,
        cpu_time_s=config.evidence_cpu_time_s,
    )
    return EvidenceWorkers(config.evidence_workers, rules, room=_room_for_evidence(config))


def _room_for_evidence(config: VerifierConfig) -> int:
    """As much as leaves half of the room for bodies that are still being received."""
    return max(1, min(MOST_WAITING, config.max_stranger_bodies // 2 // config.max_evidence))
