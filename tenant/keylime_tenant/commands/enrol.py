"""`add` and `update`: from a registered agent to one that the verifier attests."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from keylime.errors import ConfigError, PeerUnreachable
from keylime.identifiers import AgentId
from keylime.messages.agent import UKeyRequest
from keylime.messages.verifier import OperationalState
from keylime.messages.versions import AGENT_VERSIONS
from keylime.nonce import new_nonce
from keylime.payload.keys import auth_tag, encrypt_share, is_auth_tag
from keylime_tenant.certificate_revocation import enrolled_serial
from keylime_tenant.client import AgentClient, answer_document
from keylime_tenant.commands.verifier import delete_from_verifier
from keylime_tenant.enrolment import Candidate, add_request, check_identity, make_candidate
from keylime_tenant.errors import AgentRejected, CommandFailed
from keylime_tenant.payload import Delivery, check_rules
from keylime_tenant.policies import AgentPolicies, compose
from keylime_tenant.render import agents_table, worded_status
from keylime_tenant.session import Session

AnswerT = TypeVar("AnswerT")

_REJECTED = (OperationalState.FAILED, OperationalState.INVALID_QUOTE)


async def add(session: Session) -> None:
    """Checks a registered agent and hands it to the verifier. Nothing is sent before the checks passed."""
    await _enrol(session, replace=False)


async def update(session: Session) -> None:
    """As `add`, for an agent that the verifier may have: removed there only after the checks passed."""
    await _enrol(session, replace=True)


async def _enrol(session: Session, *, replace: bool) -> None:
    if session.arguments.push_model:
        raise CommandFailed("--push-model: this release polls its agents, push attestation is not available")
    check_rules(session.arguments)
    policies = compose(session.arguments, await session.read_policies())
    _report_policies(session, policies)
    candidate = await _find_candidate(session)
    agent = session.connect_agent(candidate)
    try:
        if replace and session.arguments.ca_dir:
            await _take_back_certificate(session, candidate.agent_id)
        delivery = session.prepare_delivery(candidate.agent_id)
        version = await _agent_version(session, candidate, agent)
        pubkey = await _check(session, candidate, agent, version)
        if replace:
            await delete_from_verifier(session, candidate.agent_id)
        elif await session.verifier.status(candidate.agent_id) is not None:
            # Asked before U is sent: an agent in use must not get the key share of another payload.
            raise _already_there(candidate)
        await _send_u(candidate, agent, version, pubkey, delivery)
        await _tell_verifier(session, candidate, version, policies, delivery)
        await _await_verifier(session, candidate)
        if session.arguments.verify:
            await _verify_key(session, candidate, agent, version, delivery)
    finally:
        await agent.close()


async def _take_back_certificate(session: Session, agent_id: AgentId) -> None:
    """A rejected agent gets a new certificate: revocations name the one that was compromised."""
    found = await session.verifier.status(agent_id)
    serial = None if found is None else enrolled_serial(found)
    if found is not None and serial is not None and found.get("operational_state") in _REJECTED:
        session.certificates.revoke(agent_id, serial)


def _report_policies(session: Session, policies: AgentPolicies) -> None:
    for warning in policies.warnings:
        session.output.warning("%s", warning)
    session.output.info("TPM PCR Mask from policy is %s", hex(policies.operator_mask))
    if policies.mask != policies.operator_mask:
        session.output.info(
            "TPM PCR Mask automatically modified is %s to include IMA/Event log PCRs", hex(policies.mask)
        )


async def _find_candidate(session: Session) -> Candidate:
    found = await session.registrar.agent(session.agent_id)
    if found is None:
        # The stray dollar sign is what existing scripts match.
        raise CommandFailed(
            f"Agent ${session.agent_id} data not found in the Registrar. "
            "Start the agent, and see what is registered with `-c reglist`"
        )
    record, _ = found
    if record.regcount > 1:
        session.output.warning(
            "Agent %s was registered %d times with different keys; make sure that this is expected",
            session.agent_id,
            record.regcount,
        )
    candidate = make_candidate(session.agent_id, record, session.arguments)
    if not candidate.serves_tls and session.config.enable_agent_mtls:
        raise CommandFailed(
            f"agent {session.agent_id} has mutual TLS disabled: enable it there, or set "
            "enable_agent_mtls = False in [tenant] and [verifier]"
        )
    if not candidate.serves_tls:
        session.output.warning(
            "Agent %s has mutual TLS disabled: only its TPM identifies it", session.agent_id
        )
    return candidate


async def _agent_version(session: Session, candidate: Candidate, agent: AgentClient) -> str:
    given = session.arguments.api_version
    if given is None:
        return await _ask_patiently(session, candidate, agent.negotiate)
    if given not in AGENT_VERSIONS:
        raise ConfigError(f"--agent-api-version {given}: expected one of {', '.join(AGENT_VERSIONS)}")
    return given


async def _ask_patiently(
    session: Session, candidate: Candidate, question: Callable[[], Awaitable[AnswerT]]
) -> AnswerT:
    """The answer of an agent that may still be starting. Raises PeerUnreachable when patience ends."""
    answers: list[AnswerT] = []
    reasons: list[PeerUnreachable] = []

    async def ask() -> bool:
        try:
            answers.append(await question())
        except PeerUnreachable as error:
            reasons.append(error)
            session.output.warning("%s", error)
        return bool(answers)

    if await session.retry(f"Waiting for agent {candidate.agent_id}", ask) is None:
        raise reasons[-1]
    return answers[0]


async def _check(session: Session, candidate: Candidate, agent: AgentClient, version: str) -> str:
    """The payload key of an agent whose identity quote and EK hold."""
    nonce = new_nonce()
    reply, answer = await _ask_patiently(session, candidate, lambda: agent.identity_quote(version, nonce))
    session.output.literal(answer_document(answer))
    pubkey = check_identity(candidate, reply, nonce, session.config.accepted)
    for warning in await session.check_ek(candidate):
        session.output.warning("%s", warning)
    session.output.info("Quote from Agent %s (%s) validated", candidate.agent_id, candidate.contact)
    return pubkey


async def _send_u(
    candidate: Candidate, agent: AgentClient, version: str, pubkey: str, delivery: Delivery
) -> None:
    if delivery.key is None:
        return
    request = UKeyRequest(
        encrypted_key=encrypt_share(pubkey, delivery.key.u),
        auth_tag=auth_tag(delivery.key.k, candidate.agent_id),
        payload=delivery.ciphertext,
    )
    await agent.send_u(version, request)


async def _tell_verifier(
    session: Session, candidate: Candidate, version: str, policies: AgentPolicies, delivery: Delivery
) -> None:
    verifier = session.verifier
    request = add_request(
        candidate,
        version=version,
        policies=policies,
        delivery=delivery,
        accepted=session.config.accepted,
        verifier=verifier.address,
    )
    reply = await verifier.add(candidate.agent_id, request)
    if reply.code == 409 and "already exists. Please use delete" in reply.status:
        raise _already_there(candidate)
    if reply.code != 200:
        raise verifier.refusal(reply, f"take agent {candidate.agent_id}")


def _already_there(candidate: Candidate) -> CommandFailed:
    return CommandFailed(
        f'Agent {candidate.agent_id} already exists at the verifier. Run "delete" or "update" first.'
    )


async def _await_verifier(session: Session, candidate: Candidate) -> None:
    verifier = session.verifier
    seen = []

    async def look() -> bool:
        found = await verifier.status(candidate.agent_id)
        if found is not None:
            seen.append(worded_status(found))
        return found is not None

    tries = await session.retry(f"Waiting for the verifier to know agent {candidate.agent_id}", look)
    if tries is None:
        raise CommandFailed(
            f"{verifier.place} took agent {candidate.agent_id} but does not know it afterwards"
        )
    session.output.listing(f"Agent Info from Verifier ({verifier.address}):", {candidate.agent_id: seen[-1]})
    session.output.info(
        "Agent %s (%s) added to Verifier (%s) after %d tries",
        candidate.agent_id,
        candidate.contact,
        verifier.address,
        tries - 1,  # the printed number is that of further tries
    )
    session.output.table(agents_table({candidate.agent_id: seen[-1]}))


async def _verify_key(
    session: Session, candidate: Candidate, agent: AgentClient, version: str, delivery: Delivery
) -> None:
    """Waits until the agent shows that it holds K; stops its attestation when it does not."""
    if delivery.key is None:
        raise CommandFailed("--verify needs a payload: give -f, -k or --cert")
    challenge = new_nonce()
    key = delivery.key.k

    async def ask() -> bool:
        try:
            proof = await agent.key_proof(version, challenge)
        except PeerUnreachable:
            return False
        if proof is not None and not is_auth_tag(proof, key, challenge):
            raise AgentRejected(f"agent {candidate.agent_id} derived another key than the one that was sent")
        return proof is not None

    try:
        if await session.retry(f"Waiting for the key of agent {candidate.agent_id}", ask) is None:
            raise CommandFailed(
                f"agent {candidate.agent_id} has not derived its key: see the logs of agent and verifier"
            )
    except CommandFailed:
        await session.verifier.act(candidate.agent_id, "stop")
        raise
    session.output.info("Key derivation successful")
