"""`add` and `update` with `--push-model`: agents that attest by themselves, and that nobody can ask."""

from msgspec import UNSET
from msgspec.structs import replace

from keylime.errors import ConfigError
from keylime.messages.versions import CURRENT_VERSION
from keylime_tenant.client import VerifierClient
from keylime_tenant.commands import enrol
from keylime_tenant.commands.verifier import owner, release
from keylime_tenant.enrolment import Candidate, add_request, make_candidate
from keylime_tenant.enrolment_change import change_request
from keylime_tenant.errors import CommandFailed
from keylime_tenant.judgement import await_judgement
from keylime_tenant.payload import NOTHING
from keylime_tenant.policies import AgentPolicies, compose
from keylime_tenant.session import Session
from keylime_tenant.told_status import ToldStatus


async def add(session: Session) -> None:
    """Checks what an agent has registered, its EK above all, and hands it to the verifier."""
    refuse_payload(session)
    policies = compose(session.arguments, await session.read_policies())
    enrol.report_policies(session, policies)
    candidate = await _checked(session)
    if await session.verifier.status(candidate.agent_id) is not None:
        raise enrol.already_there(candidate)
    request = add_request(
        candidate,
        version=CURRENT_VERSION,
        policies=policies,
        delivery=NOTHING,
        accepted=session.config.accepted,
        verifier=session.verifier.address,
    )
    await enrol.hand_over(session, candidate, replace(request, attestation_mode="push"))
    await enrol.await_verifier(session, candidate)
    await await_judgement(session, candidate.agent_id)


async def update(session: Session, verifier: VerifierClient, found: ToldStatus) -> None:
    """Changes what the command line names of an agent that attests by itself; it is attested anew."""
    if not found.attests_by_itself:
        raise CommandFailed(
            f"agent {session.agent_id} is one that {verifier.place} asks itself: leave --push-model out, or "
            "delete it and add it again"
        )
    policies: AgentPolicies = compose(session.arguments, await session.read_policies())
    candidate = await _checked(session)
    request = change_request(
        session.arguments, candidate, CURRENT_VERSION, policies, NOTHING, session.config.accepted
    )
    unused = replace(request, cloudagent_ip=UNSET, cloudagent_port=UNSET, mtls_cert=UNSET)
    await enrol.change(session, verifier, candidate, unused)
    await enrol.await_verifier(session, candidate)
    await await_judgement(session, candidate.agent_id, found.passes)


async def update_or_add(session: Session) -> None:
    """The same, where an agent that is not there is added."""
    refuse_payload(session)
    found = await session.verifier.status(session.agent_id)
    if found is None:
        await add(session)
        return
    verifier = owner(session, found) if session.arguments.verifier_check else session.verifier
    try:
        await update(session, verifier, found)
    finally:
        await release(session, verifier)


def refuse_payload(session: Session) -> None:
    """Raises ConfigError: no protocol brings anything to agents that attest by themselves."""
    arguments = session.arguments
    given = [
        flag
        for flag, value in (
            ("--include", arguments.include_dir),
            ("-f", arguments.file),
            ("-k", arguments.keyfile),
            ("-p", arguments.payload),
            ("--cert", arguments.ca_dir),
            ("--verify", arguments.verify),
        )
        if value
    ]
    if given:
        raise ConfigError(
            f"{given[0]} does not go with --push-model: agents that attest by themselves get no payload"
        )


async def _checked(session: Session) -> Candidate:
    """The agent as it is registered, whose TPM is one that may be trusted. Raises CommandFailed."""
    found = await session.registrar.agent(session.agent_id)
    if found is None:
        raise enrol.not_registered(session)
    candidate = make_candidate(session.agent_id, found[0], session.arguments, needs_address=False)
    if candidate.serves_tls:
        session.output.warning(
            "Agent %s registered with a certificate to serve TLS with, as agents in pull mode do: one of "
            "those never attests by itself",
            candidate.agent_id,
        )
    for warning in await session.check_ek(candidate):
        session.output.warning("%s", warning)
    session.output.info(
        "Agent %s attests by itself: what it has registered is checked, and nothing is asked of it",
        candidate.agent_id,
    )
    return candidate
