"""`update`: another policy, payload or identity for an agent that goes on being watched."""

from typing import Any

from msgspec import UnsetType

from keylime.errors import KeylimeError
from keylime.identifiers import AgentId
from keylime.messages.verifier import NOTHING_JUDGED
from keylime_tenant.client import VerifierClient, read_results
from keylime_tenant.commands import enrol, pushing
from keylime_tenant.commands.verifier import delete_from_verifier, enrolled_serial, owner, release
from keylime_tenant.config import Address
from keylime_tenant.enrolment import Candidate
from keylime_tenant.enrolment_change import change_request, restored_request, whole_request
from keylime_tenant.errors import CommandFailed
from keylime_tenant.judgement import await_judgement
from keylime_tenant.payload import PayloadDelivery, check_rules
from keylime_tenant.policies import AgentPolicies, compose
from keylime_tenant.session import Session
from keylime_tenant.standing import REJECTED
from keylime_tenant.told_status import ToldStatus, told_status

_KINDS = (("allowlists", "runtime policy"), ("mbpolicies", "measured boot policy"))


async def update(session: Session) -> None:
    """Changes what the command line names of an agent, in one step; one that is not there is added."""
    if session.arguments.push_model:
        await pushing.update_or_add(session)
        return
    check_rules(session.arguments)
    policies = compose(session.arguments, await session.read_policies())
    found = await session.verifier.status(session.agent_id)
    if found is None:
        await enrol.add(session)
        return
    if found.attests_by_itself:
        raise CommandFailed(f"agent {session.agent_id} attests by itself: give --push-model")
    verifier = owner(session, found) if session.arguments.verifier_check else session.verifier
    try:
        await _update(session, verifier, found, policies)
    finally:
        await release(session, verifier)


async def _update(
    session: Session, verifier: VerifierClient, found: ToldStatus, policies: AgentPolicies
) -> None:
    for warning in policies.warnings:
        if NOTHING_JUDGED not in warning:  # which is not true of policies that stay; the verifier knows
            session.output.warning("%s", warning)
    await _demand_names(session, verifier, policies)
    candidate = await enrol.find_candidate(session, _asked_at(found))
    _compare_address(session, candidate, found)
    agent = session.connect_agent(candidate)
    try:
        version = await enrol.agent_version(session, candidate, agent)
        pubkey = await enrol.check_agent(session, candidate, agent, version)
        await enrol.warn_without_boot_log(session, candidate, agent, version, policies)
        delivery = session.prepare_delivery(
            candidate.agent_id, lambda: _take_back_certificate(session, candidate.agent_id, found)
        )
        await enrol.send_u(candidate, agent, version, pubkey, delivery)
        if found.can_be_changed:
            await _change(session, verifier, candidate, version, policies, delivery)
        else:
            await _replace(session, verifier, found, candidate, version, policies, delivery)
        await enrol.await_verifier(session, candidate)
        if session.arguments.verify:
            await enrol.verify_key(session, candidate, agent, version, delivery)
    finally:
        await agent.close()
    await await_judgement(session, candidate.agent_id, found.passes if found.can_be_changed else 0)


async def _demand_names(session: Session, verifier: VerifierClient, policies: AgentPolicies) -> None:
    """Raises CommandFailed when a policy of the command line is not stored, before anything is changed."""
    several = policies.runtime_policies
    names = (
        [policies.runtime_policy_name] if isinstance(several, UnsetType) else [one.name for one in several]
    )
    wanted = [
        *((_KINDS[0], name, policies.runtime_policy) for name in names),
        (_KINDS[1], policies.mb_policy_name, policies.mb_policy),
    ]
    for (kind, words), name, text in wanted:
        if not name or text:
            continue
        reply = await verifier.policy("GET", kind, name)
        if reply.code == 404:
            raise CommandFailed(
                f"{verifier.place} has no {words} {name!r}: agent {session.agent_id} stays as it is"
            )


def _compare_address(session: Session, candidate: Candidate, found: ToldStatus) -> None:
    arguments, registered = session.arguments, candidate.verifier_contact
    if arguments.agent_ip or arguments.cv_targethost or arguments.agent_port:
        return
    asked_at = _asked_at(found)
    if asked_at is not None and asked_at != registered:
        session.output.warning(
            "Agent %s has registered as %s, and the verifier goes on asking %s: give -t or --cv_targethost "
            "to change that",
            candidate.agent_id,
            registered,
            asked_at,
        )


def _asked_at(found: ToldStatus) -> Address | None:
    return Address(found.ip, found.port) if found.ip is not None and found.port is not None else None


def _take_back_certificate(session: Session, agent_id: AgentId, found: ToldStatus) -> None:
    """A rejected agent gets a new certificate: revocations name the one that was compromised."""
    serial = enrolled_serial(found)
    if serial is not None and found.state in REJECTED:
        session.revoke_certificate(agent_id, serial)


async def _change(
    session: Session,
    verifier: VerifierClient,
    candidate: Candidate,
    version: str,
    policies: AgentPolicies,
    delivery: PayloadDelivery,
) -> None:
    request = change_request(
        session.arguments, candidate, version, policies, delivery, session.config.accepted
    )
    await enrol.change(session, verifier, candidate, request, has_new_payload=delivery.key is not None)


async def _replace(
    session: Session,
    verifier: VerifierClient,
    found: ToldStatus,
    candidate: Candidate,
    version: str,
    policies: AgentPolicies,
    delivery: PayloadDelivery,
) -> None:
    """For verifiers that can only delete and add: what was there comes back when the new one is refused."""
    agent_id = candidate.agent_id
    own = {kind: await _own_policy(verifier, kind, agent_id) for kind, _ in _KINDS}
    accepted = session.config.accepted
    old = restored_request(candidate, version, found, own)
    new = whole_request(session.arguments, candidate, version, policies, delivery, accepted, found, own)
    if old is None:
        session.output.warning(
            "%s does not tell which policy agent %s has: should it refuse the new one, the old one has to be "
            "added by hand",
            verifier.place,
            agent_id,
        )
    await delete_from_verifier(session, agent_id)
    try:
        reply = await verifier.add(agent_id, new)
        problem = None if reply.code == 200 else verifier.refusal(reply, f"take agent {agent_id}")
    except KeylimeError as error:
        problem = CommandFailed(str(error))
    if problem is None:
        wanted = ("ip", "port", "tpm_policy", "meta_data", "has_runtime_policy", "has_mb_refstate")
        after = await verifier.status(agent_id) or told_status({})
        enrol.show_change(
            session,
            agent_id,
            {one: found.document.get(one) for one in wanted},
            {one: after.document.get(one) for one in wanted},
            has_new_payload=delivery.key is not None,
        )
        return
    outcome = "it is NOT WATCHED now: add it again with -c add"
    if old is not None:
        try:
            if (await verifier.add(agent_id, old)).code == 200:
                outcome = "it is watched as before"
        except KeylimeError as error:
            session.output.warning("%s", error)
    raise CommandFailed(f"{problem}; agent {agent_id} was not changed, {outcome}")


async def _own_policy(verifier: VerifierClient, kind: str, agent_id: AgentId) -> str | None:
    """The text of the policy that came with an agent, from a verifier that keeps it under the agent's id."""
    reply = await verifier.policy("GET", kind, agent_id)
    if reply.code != 200:
        return None
    results = read_results(reply, dict[str, Any], verifier.place)
    text = results.get("runtime_policy" if kind == "allowlists" else "mb_policy")
    return text if isinstance(text, str) and text else None
