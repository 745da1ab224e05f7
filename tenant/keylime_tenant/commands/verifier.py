"""Commands about agents at the verifier: cvlist, cvstatus, bulkinfo, delete, reactivate."""

import ipaddress
import time
from collections.abc import Mapping

from msgspec import to_builtins

from keylime.errors import KeylimeError, MalformedMessage
from keylime.findings.finding import printable
from keylime.http.replies import Reply
from keylime.identifiers import AgentId, parse_agent_id
from keylime.messages.verifier import OperationalState
from keylime.revocation.message import certificate_serial
from keylime_tenant.client import VerifierClient, answer_document, results_of
from keylime_tenant.commands.follow import follow_status
from keylime_tenant.config import Address
from keylime_tenant.errors import CommandFailed, Unjudged
from keylime_tenant.first_verdict import FirstVerdict, failure, first_verdict
from keylime_tenant.judgement import await_judgement
from keylime_tenant.people import agent_lines, name_lines
from keylime_tenant.session import Session
from keylime_tenant.standing import is_unjudged
from keylime_tenant.told_status import ToldStatus

_STATES = {
    "failed": OperationalState.FAILED,
    "invalid-quote": OperationalState.INVALID_QUOTE,
    "stopped": OperationalState.TENANT_FAILED,
}


async def cvlist(session: Session) -> None:
    """The ids of the verifier's agents."""
    verifier = session.verifier
    reply = await verifier.agents(session.arguments.verifier_id or "")
    if reply.code != 200:
        raise verifier.refusal(reply, "list its agents")
    results = results_of(reply)
    session.output.info(
        'From verifier %s port %s retrieved: "%s"',
        verifier.address.host,
        verifier.address.port,
        answer_document(reply),
    )
    session.output.literal("")
    # Each id comes in a list of its own.
    names = [
        str(entry[0] if isinstance(entry, list) and entry else entry) for entry in results.get("uuids", [])
    ]
    session.output.listing(
        f"Agent list from Verifier ({verifier.address}) retrieved: ",
        results,
        rows=[{"agent_id": name} for name in names],
        names=names,
    )
    session.output.show(lambda terminal: name_lines(f"agents of {verifier.place}", names, terminal))


async def cvstatus(session: Session) -> None:
    """Everything that the verifier tells about one agent."""
    if session.arguments.follow:
        await follow_status(session)
        return
    status = await show_status(session)
    if session.arguments.exit_code:
        state = first_verdict(status)
        if state is FirstVerdict.FAILED:
            raise failure(session.agent_id, status)
        if state is FirstVerdict.OPEN:
            raise Unjudged(f"agent {session.agent_id} is not judged yet")


async def show_status(session: Session) -> ToldStatus:
    """Prints and returns the verifier's status of the session's agent. Raises CommandFailed."""
    verifier = session.verifier
    found = await verifier.status(session.agent_id)
    if found is None:
        _say_absent(session, session.agent_id)
        raise CommandFailed(
            f"Agent {session.agent_id} does not exist on Verifier ({verifier.address}). "
            "See its agents with `-c cvlist`"
        )
    if is_unjudged(found) and not session.output.form.is_for_people:  # who have it below the agent's line
        # Before the document, which scripts look for in the last line.
        session.output.warning("Agent %s: %s", session.agent_id, printable(found.attestation_text))
    show_agents(session, f"Agent Info from Verifier ({verifier.address}):", {str(session.agent_id): found})
    return found


def show_agents(session: Session, heading: str, statuses: Mapping[str, ToldStatus]) -> None:
    """Shows agents by their ids; `heading` stands above the document that scripts read."""
    documents = {agent_id: status.for_scripts() for agent_id, status in statuses.items()}
    session.output.listing(
        heading,
        documents,
        rows=[{"agent_id": agent_id, **document} for agent_id, document in documents.items()],
        names=tuple(statuses),
    )
    session.output.show(lambda terminal: agent_lines(statuses, terminal, time.time()))


async def bulkinfo(session: Session) -> None:
    """Everything that the verifier tells about all its agents."""
    statuses = await session.verifier.statuses(session.arguments.verifier_id or "")
    show_agents(session, "Bulk Agent Info:", statuses)


async def delete(session: Session) -> None:
    """Removes the agent from the verifier, and revokes its certificate; an absent one is already removed."""
    found = await delete_from_verifier(session, session.agent_id)
    serial = None if found is None else enrolled_serial(found)
    if serial is not None:
        session.revoke_certificate(session.agent_id, serial)


def enrolled_serial(status: ToldStatus) -> int | None:
    """The serial number in an agent's status at the verifier; None when it came without a certificate."""
    try:
        return None if status.meta_data is None else certificate_serial(status.meta_data)
    except MalformedMessage:
        return None


async def reactivate(session: Session) -> None:
    """Lets the verifier attest a failed or stopped agent again; with `--state` all that are in it."""
    if session.arguments.state is not None:
        await _reactivate_all(session, session.arguments.state)
        return
    reply, passes_before = await reactivate_one(session, session.agent_id)
    session.output.result(answer_document(reply))
    await _show_reactivated(session)
    await await_judgement(session, session.agent_id, passes_before)


async def _show_reactivated(session: Session) -> None:
    """Prints the status of an agent that was re-activated, which it is whatever comes of this."""
    if not session.arguments.verifier_check or session.output.form.is_document:
        return
    try:
        await show_status(session)
    except KeylimeError as error:
        session.output.warning("the status of agent %s cannot be shown: %s", session.agent_id, error)


async def _reactivate_all(session: Session, state: str) -> None:
    statuses = await session.verifier.statuses(session.arguments.verifier_id or "")
    agents = sorted(agent_id for agent_id, status in statuses.items() if status.state is _STATES[state])
    passes, errors = {}, {}
    for agent_id in agents:
        try:
            _, passes[agent_id] = await reactivate_one(session, parse_agent_id(agent_id))
        except KeylimeError as error:
            errors[agent_id] = str(error)
    for agent_id, passes_before in passes.items():
        try:
            await await_judgement(session, parse_agent_id(agent_id), passes_before)
        except KeylimeError as error:
            errors[agent_id] = str(error)
    for reason in errors.values():
        session.output.warning("%s", reason)
    from keylime_tenant.json_documents import Reactivated  # which a status would have to wait for

    done = [one for one in agents if one not in errors]
    session.output.said("%d of %d agents in state %s re-activated", len(done), len(agents), state)
    session.output.result(to_builtins(Reactivated(done, errors)), names=done)
    if errors:
        raise CommandFailed(f"{len(errors)} of {len(agents)} agents were not re-activated, or did not pass")


async def reactivate_one(session: Session, agent_id: AgentId) -> tuple[Reply, int]:
    """Has one agent attested again: the answer, and how often it had passed before, as far as was asked."""
    verifier, passes = session.verifier, 0
    if session.arguments.verifier_check:
        found = await verifier.status(agent_id)
        if found is None:
            raise CommandFailed(f"{verifier.place} does not have agent {agent_id}: add it first")
        verifier = owner(session, found)
        passes = found.passes
    try:
        reply = await verifier.act(agent_id, "reactivate")
    finally:
        await release(session, verifier)
    if reply.code != 200:
        raise verifier.refusal(reply, f"re-activate agent {agent_id}")
    session.output.said("Agent %s re-activated", agent_id)
    return reply, passes


async def delete_from_verifier(session: Session, agent_id: AgentId) -> ToldStatus | None:
    """Returns when the verifier does not have `agent_id` any more: its last status, None if nobody asked.

    Raises CommandFailed, PeerUnreachable.
    """
    verifier, found = session.verifier, None
    if session.arguments.verifier_check:
        found = await verifier.status(agent_id)
        if found is None:
            _report_absent(session, agent_id)
            return None
        verifier = owner(session, found)
    try:
        await _delete_at(session, verifier, agent_id)
    finally:
        await release(session, verifier)
    return found


async def _delete_at(session: Session, verifier: VerifierClient, agent_id: AgentId) -> None:
    reply = await verifier.delete(agent_id)
    if reply.code == 404:
        _report_absent(session, agent_id)
        return
    if reply.code == 202:
        # The verifier is in the middle of a round with this agent.
        async def gone() -> bool:
            return await verifier.status(agent_id) is None

        if await session.retry(f"Waiting for the verifier to remove agent {agent_id}", gone) is None:
            raise CommandFailed(
                f"{verifier.place} accepted the deletion of agent {agent_id} but still has it"
            )
    elif reply.code != 200:
        raise verifier.refusal(reply, f"delete agent {agent_id}")
    session.output.said("Agent %s deleted from the CV", agent_id)
    session.output.result(answer_document(reply))


def _say_absent(session: Session, agent_id: AgentId) -> None:
    address = session.verifier.address
    session.output.info(
        "Verifier at %s with Port %s does not have agent %s.", address.host, address.port, agent_id
    )


def _report_absent(session: Session, agent_id: AgentId) -> None:
    address = session.verifier.address
    _say_absent(session, agent_id)
    session.output.said("The Agent %s is deleted from Verifier (%s)", agent_id, address)
    session.output.result({"code": 404, "status": f"agent {agent_id} is not at the verifier", "results": {}})


def owner(session: Session, status: ToldStatus) -> VerifierClient:
    """The verifier that takes orders about the agent of `status`: to be given to `release`."""
    address = owner_address(status, session.verifier.address)
    return session.verifier if address == session.verifier.address else session.connect_verifier(address)


async def release(session: Session, verifier: VerifierClient) -> None:
    """Closes what `owner` opened."""
    if verifier is not session.verifier:
        await verifier.close()


def owner_address(status: ToldStatus, asked: Address) -> Address:
    """The verifier that takes orders about an agent, where several share a database.

    Addresses that mean something only on the verifier's own machine (loopback, unspecified) are not followed.
    """
    host, port = status.verifier_ip, status.verifier_port
    if not host or port is None or not 0 < port < 65536:
        return asked
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return asked if host == "localhost" else Address(host, port)
    return asked if address.is_unspecified or address.is_loopback else Address(host, port)
