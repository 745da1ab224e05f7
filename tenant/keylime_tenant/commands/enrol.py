"""`add`: from a registered agent to one that the verifier attests."""

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from msgspec import UNSET, to_builtins

from keylime.addresses import means_own_host
from keylime.errors import ConfigError, KeylimeError, PeerUnreachable
from keylime.identifiers import AgentId
from keylime.messages.agent import UKeyRequest
from keylime.messages.verifier import (
    NOTHING_JUDGED,
    AddAgentRequest,
    EnrolmentSummary,
    UpdateAgentRequest,
    UpdatedAgent,
)
from keylime.messages.versions import AGENT_VERSIONS
from keylime.nonce import new_nonce
from keylime.payload.keys import auth_tag, encrypt_share, is_auth_tag
from keylime_tenant.client import AgentApi, VerifierClient, read_results
from keylime_tenant.config import Address
from keylime_tenant.enrolment import Candidate, add_request, check_identity, contact_remark, make_candidate
from keylime_tenant.errors import AgentRejected, CommandFailed
from keylime_tenant.first_verdict import FirstVerdict, failure, first_verdict
from keylime_tenant.judgement import await_judgement
from keylime_tenant.payload import PayloadDelivery, check_rules
from keylime_tenant.people import agent_lines
from keylime_tenant.policies import AgentPolicies, compose
from keylime_tenant.session import Session
from keylime_tenant.terminal import moment
from keylime_tenant.told_status import ToldStatus

AnswerT = TypeVar("AnswerT")


async def add(session: Session) -> None:
    """Checks a registered agent and hands it to the verifier. Nothing is sent before the checks passed."""
    check_rules(session.arguments)
    policies = compose(session.arguments, await session.read_policies())
    report_policies(session, policies)
    candidate = await find_candidate(session)
    agent = session.connect_agent(candidate)
    try:
        delivery = session.prepare_delivery(candidate.agent_id, lambda: None)
        version = await agent_version(session, candidate, agent)
        pubkey = await check_agent(session, candidate, agent, version)
        await warn_without_boot_log(session, candidate, agent, version, policies)
        if await session.verifier.status(candidate.agent_id) is not None:
            # Asked before U is sent: an agent in use must not get the key share of another payload.
            raise already_there(candidate)
        await send_u(candidate, agent, version, pubkey, delivery)
        await _tell_verifier(session, candidate, version, policies, delivery)
        await await_verifier(session, candidate)
        if session.arguments.verify:
            await verify_key(session, candidate, agent, version, delivery)
    finally:
        await agent.close()
    await await_judgement(session, candidate.agent_id)


def report_policies(session: Session, policies: AgentPolicies) -> None:
    """Says what deserves attention about policies, and which PCRs are quoted."""
    for warning in policies.warnings:
        session.output.warning("%s", warning)
    session.output.info("TPM PCR Mask from policy is %s", hex(policies.operator_mask))
    if policies.mask != policies.operator_mask:
        session.output.info(
            "TPM PCR Mask automatically modified is %s to include IMA/Event log PCRs", hex(policies.mask)
        )


async def find_candidate(session: Session, asked_at: Address | None = None) -> Candidate:
    """The session's agent as it is registered; a verifier that has it asks it at `asked_at`.

    Raises CommandFailed, PeerUnreachable.
    """
    found = await session.registrar.agent(session.agent_id)
    if found is None:
        raise not_registered(session)
    record, _ = found
    candidate = make_candidate(session.agent_id, record, session.arguments, asked_at=asked_at)
    if not candidate.serves_tls and session.config.enable_agent_mtls:
        raise CommandFailed(
            f"agent {session.agent_id} registered without a certificate to serve TLS with. An agent in push "
            "mode (`keylime_push_model_agent`) does that: add it with --push-model. If it is in pull mode, "
            "switch mutual TLS on there ([agent] enable_agent_mtls)"
        )
    if not candidate.serves_tls:
        session.output.warning(
            "Agent %s has mutual TLS disabled: only its TPM identifies it", session.agent_id
        )
    if not means_own_host(session.verifier.address.host):
        _remark_on_contact(session, candidate)
    return candidate


def _remark_on_contact(session: Session, candidate: Candidate) -> None:
    remark = contact_remark(candidate)
    if remark is not None:
        session.output.warning("%s", remark)


async def agent_version(session: Session, candidate: Candidate, agent: AgentApi) -> str:
    """The API version that is spoken with the agent. Raises ConfigError, CommandFailed."""
    given = session.arguments.api_version
    if given is None:
        return await ask_patiently(session, candidate, agent.negotiate)
    if given not in AGENT_VERSIONS:
        raise ConfigError(f"--agent-api-version {given}: expected one of {', '.join(AGENT_VERSIONS)}")
    return given


async def ask_patiently(
    session: Session, candidate: Candidate, question: Callable[[], Awaitable[AnswerT]]
) -> AnswerT:
    """The answer of an agent that may still be starting. Raises PeerUnreachable when patience ends."""
    answers: list[AnswerT] = []
    reasons: list[PeerUnreachable] = []

    async def ask() -> bool:
        try:
            answers.append(await question())
        except KeylimeError as error:
            if not reasons and means_own_host(session.verifier.address.host):
                _remark_on_contact(session, candidate)  # until now it may well have been right
            if not isinstance(error, PeerUnreachable):
                raise
            reasons.append(error)
            session.output.warning("%s", error)
        return bool(answers)

    if await session.retry(f"Waiting for agent {candidate.agent_id}", ask) is None:
        raise PeerUnreachable(
            f"{reasons[-1]}; this was try {len(reasons)}, and the last: [tenant] max_retries, retry_interval "
            "and request_timeout say how long it is tried"
        ) from reasons[-1]
    return answers[0]


async def check_agent(session: Session, candidate: Candidate, agent: AgentApi, version: str) -> str:
    """The payload key of an agent whose identity quote and EK hold."""
    nonce = new_nonce()
    reply = await ask_patiently(session, candidate, lambda: agent.identity_quote(version, nonce))
    pubkey = check_identity(candidate, reply, nonce, session.config.accepted)
    for warning in await session.check_ek(candidate):
        session.output.warning("%s", warning)
    session.output.info("Quote from Agent %s (%s) validated", candidate.agent_id, candidate.contact)
    return pubkey


async def warn_without_boot_log(
    session: Session, candidate: Candidate, agent: AgentApi, version: str, policies: AgentPolicies
) -> None:
    """Says at once what the first attestation would say: that a boot policy finds no boot log to judge."""
    if not policies.names_boot_policy or await agent.sends_boot_log(version, new_nonce()) is not False:
        return
    session.output.warning(
        "Agent %s sends no boot event log, so that a measured boot policy which demands anything fails it at "
        "its first attestation. Its firmware keeps none, or the agent cannot read it ([agent] "
        "measuredboot_ml_path; the agent's log says so at its start): mend that, or leave the policy out",
        candidate.agent_id,
    )


async def send_u(
    candidate: Candidate, agent: AgentApi, version: str, pubkey: str, delivery: PayloadDelivery
) -> None:
    """Hands over U with the encrypted payload, if there is one."""
    if delivery.key is None:
        return
    request = UKeyRequest(
        encrypted_key=encrypt_share(pubkey, delivery.key.u),
        auth_tag=auth_tag(delivery.key.k, candidate.agent_id),
        payload=delivery.ciphertext,
    )
    await agent.send_u(version, request)


async def _tell_verifier(
    session: Session, candidate: Candidate, version: str, policies: AgentPolicies, delivery: PayloadDelivery
) -> None:
    request = add_request(
        candidate,
        version=version,
        policies=policies,
        delivery=delivery,
        accepted=session.config.accepted,
        verifier=session.verifier.address,
    )
    await hand_over(session, candidate, request)


async def hand_over(session: Session, candidate: Candidate, request: AddAgentRequest) -> None:
    """Has the verifier take the agent. Raises CommandFailed."""
    verifier = session.verifier
    reply = await verifier.add(candidate.agent_id, request)
    if reply.code == 409 and "already exists. Please use delete" in reply.status:
        raise already_there(candidate)
    if reply.code != 200:
        refusal = verifier.refusal(reply, f"take agent {candidate.agent_id}")
        if reply.code == 404 and "policy with name" in reply.status:
            raise CommandFailed(
                f"{refusal} Store it first with addruntimepolicy or addmbpolicy; listruntimepolicy and "
                "listmbpolicy tell what there is"
            )
        raise refusal


def not_registered(session: Session) -> CommandFailed:
    """The error for an agent that the registrar does not know."""
    return CommandFailed(
        # The stray dollar sign is what existing scripts match.
        f"Agent ${session.agent_id} data not found in the Registrar. "
        "Start the agent, and see what is registered with `-c reglist`"
    )


def already_there(candidate: Candidate) -> CommandFailed:
    """The error for an agent that the verifier has."""
    return CommandFailed(
        f'Agent {candidate.agent_id} already exists at the verifier. Run "delete" or "update" first.'
    )


async def await_verifier(session: Session, candidate: Candidate) -> None:
    """Shows the status of the agent as soon as the verifier has it. Raises CommandFailed."""
    verifier = session.verifier
    seen: list[ToldStatus] = []

    async def look() -> bool:
        found = await verifier.status(candidate.agent_id)
        if found is not None:
            seen.append(found)
        return found is not None

    tries = await session.retry(f"Waiting for the verifier to know agent {candidate.agent_id}", look)
    if tries is None:
        raise CommandFailed(
            f"{verifier.place} took agent {candidate.agent_id} but does not know it afterwards"
        )
    if session.arguments.runtime_policies and seen[-1].runtime_policies is UNSET:
        session.output.warning(
            "%s does not know of several runtime policies: it holds agent %s to %s alone",
            verifier.place,
            candidate.agent_id,
            session.arguments.runtime_policy_name,
        )
    agent_id, document = str(candidate.agent_id), seen[-1].for_scripts()
    session.output.listing(
        f"Agent Info from Verifier ({verifier.address}):",
        {agent_id: document},
        rows=[{"agent_id": agent_id, **document}],
        names=[agent_id],
    )
    session.output.said(
        "Agent %s (%s) added to Verifier (%s) after %d tries",
        candidate.agent_id,
        "attests by itself" if session.arguments.push_model else candidate.contact,
        verifier.address,
        tries - 1,  # the printed number is that of further tries
    )
    session.output.show(lambda terminal: agent_lines({agent_id: seen[-1]}, terminal, time.time()))


async def verify_key(
    session: Session, candidate: Candidate, agent: AgentApi, version: str, delivery: PayloadDelivery
) -> None:
    """Waits until the agent shows that it holds K; stops its attestation when it does not.

    Until V arrives, an agent answers with the key of a former payload, if it had one. An agent that fails its
    first attestation gets no V: that is told at once, and its state stays, which tells the reasons.
    """
    if delivery.key is None:
        raise CommandFailed("--verify needs a payload: give -f, -k or --cert")
    challenge = new_nonce()
    key = delivery.key.k
    proofs: list[str | None] = []
    failed: list[ToldStatus] = []

    async def ask() -> bool:
        try:
            proof = await agent.key_proof(version, challenge)
            proofs.append(proof)
            if proof is not None and is_auth_tag(proof, key, challenge):
                return True
            status = await session.verifier.status(candidate.agent_id)
        except PeerUnreachable:
            return False
        if status is not None and first_verdict(status) is FirstVerdict.FAILED:
            failed.append(status)
        return bool(failed)

    try:
        if await session.retry(f"Waiting for the key of agent {candidate.agent_id}", ask) is None:
            if proofs and proofs[-1] is not None:
                raise AgentRejected(
                    f"agent {candidate.agent_id} has another key than the one that was sent: see the logs of "
                    "agent and verifier"
                )
            raise CommandFailed(
                f"agent {candidate.agent_id} has not derived its key: see the logs of agent and verifier"
            )
    except CommandFailed:
        await session.verifier.act(candidate.agent_id, "stop")
        raise
    if failed:
        raise failure(candidate.agent_id, failed[0])
    session.output.said("Key derivation successful")


async def change(
    session: Session,
    verifier: VerifierClient,
    candidate: Candidate,
    request: UpdateAgentRequest,
    *,
    has_new_payload: bool = False,
) -> None:
    """Has the verifier change an enrolment, and shows what is different. Raises CommandFailed."""
    reply = await verifier.update(candidate.agent_id, request)
    if reply.code != 200:
        raise verifier.refusal(reply, f"change agent {candidate.agent_id}, which stays as it is")
    updated = read_results(reply, UpdatedAgent, verifier.place)
    if NOTHING_JUDGED in reply.status:
        session.output.warning("%s", reply.status)
    before, after = _shown(updated.before), _shown(updated.after)
    show_change(session, candidate.agent_id, before, after, has_new_payload=has_new_payload)


def _shown(summary: EnrolmentSummary) -> dict[str, object]:
    """What is compared and told; of several runtime policies their names and ends."""
    shown = to_builtins(summary)
    if isinstance(summary.runtime_policies, list):
        shown["runtime_policies"] = [
            part.name if part.until is None else f"{part.name} until {moment(part.until)}"
            for part in summary.runtime_policies
        ]
    return dict(shown)


def show_change(
    session: Session,
    agent_id: AgentId,
    before: Mapping[str, object],
    after: Mapping[str, object],
    *,
    has_new_payload: bool,
) -> None:
    """Says what of an agent is another one now."""
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    for name in changed:
        session.output.said(
            "Agent %s: %s was %s, is %s",
            agent_id,
            name,
            json.dumps(before.get(name)),
            json.dumps(after.get(name)),
        )
    if has_new_payload:
        session.output.said("Agent %s: its payload and key are new", agent_id)
    elif not changed:
        session.output.said("Agent %s: nothing changed, it is attested anew", agent_id)
