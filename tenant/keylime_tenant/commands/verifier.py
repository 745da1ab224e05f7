"""Commands about agents at the verifier: cvlist, cvstatus, bulkinfo, delete, reactivate."""

import ipaddress
from collections.abc import Mapping
from typing import Any

from keylime.identifiers import AgentId
from keylime_tenant.certificate_revocation import enrolled_serial
from keylime_tenant.client import Verifier, answer_document, results_of
from keylime_tenant.config import Address
from keylime_tenant.errors import CommandFailed
from keylime_tenant.render import agents_table, names_table, worded_status
from keylime_tenant.session import Session


async def cvlist(session: Session) -> None:
    """The ids of the verifier's agents."""
    verifier = session.verifier
    reply = await verifier.agents(session.arguments.verifier_id or "", bulk=False)
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
    session.output.listing(f"Agent list from Verifier ({verifier.address}) retrieved: ", results)
    # Each id comes in a list of its own.
    names = [
        entry[0] if isinstance(entry, list) and entry else str(entry) for entry in results.get("uuids", [])
    ]
    session.output.table(names_table(f"agents of {verifier.address}", names))


async def cvstatus(session: Session) -> None:
    """Everything that the verifier tells about one agent."""
    await show_status(session)


async def show_status(session: Session) -> dict[str, Any]:
    """Prints and returns the verifier's status of the session's agent under its id. Raises CommandFailed."""
    verifier = session.verifier
    found = await verifier.status(session.agent_id)
    if found is None:
        _say_absent(session, session.agent_id)
        raise CommandFailed(
            f"Agent {session.agent_id} does not exist on Verifier ({verifier.address}). "
            "See its agents with `-c cvlist`"
        )
    info = {str(session.agent_id): worded_status(found)}
    session.output.listing(f"Agent Info from Verifier ({verifier.address}):", info)
    session.output.table(agents_table(info))
    return info


async def bulkinfo(session: Session) -> None:
    """Everything that the verifier tells about all its agents."""
    reply = await session.verifier.agents(session.arguments.verifier_id or "", bulk=True)
    if reply.code != 200:
        raise session.verifier.refusal(reply, "tell about its agents")
    statuses = {agent_id: worded_status(status) for agent_id, status in results_of(reply).items()}
    session.output.listing("Bulk Agent Info:", statuses)
    session.output.table(agents_table(statuses))


async def delete(session: Session) -> None:
    """Removes the agent from the verifier, and revokes its certificate; an absent one is already removed."""
    found = await delete_from_verifier(session, session.agent_id)
    serial = None if found is None else enrolled_serial(found)
    if serial is not None:
        session.certificates.revoke(session.agent_id, serial)


async def reactivate(session: Session) -> None:
    """Lets the verifier attest a failed or stopped agent again."""
    verifier = session.verifier
    if session.arguments.verifier_check:
        found = await verifier.status(session.agent_id)
        if found is None:
            raise CommandFailed(f"{verifier.place} does not have agent {session.agent_id}: add it first")
        verifier = _owner(session, found)
    try:
        reply = await verifier.act(session.agent_id, "reactivate")
    finally:
        await _release(session, verifier)
    if reply.code != 200:
        raise verifier.refusal(reply, f"re-activate agent {session.agent_id}")
    session.output.info("Agent %s re-activated", session.agent_id)
    session.output.result(answer_document(reply))


async def delete_from_verifier(session: Session, agent_id: AgentId) -> Mapping[str, Any] | None:
    """Returns when the verifier does not have `agent_id` any more: its last status, None if nobody asked.

    Raises CommandFailed, PeerUnreachable.
    """
    verifier, found = session.verifier, None
    if session.arguments.verifier_check:
        found = await verifier.status(agent_id)
        if found is None:
            _report_absent(session, agent_id)
            return None
        verifier = _owner(session, found)
    try:
        await _delete_at(session, verifier, agent_id)
    finally:
        await _release(session, verifier)
    return found


async def _delete_at(session: Session, verifier: Verifier, agent_id: AgentId) -> None:
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
    session.output.info("Agent %s deleted from the CV", agent_id)
    session.output.result(answer_document(reply))


def _say_absent(session: Session, agent_id: AgentId) -> None:
    address = session.verifier.address
    session.output.info(
        "Verifier at %s with Port %s does not have agent %s.", address.host, address.port, agent_id
    )


def _report_absent(session: Session, agent_id: AgentId) -> None:
    address = session.verifier.address
    _say_absent(session, agent_id)
    session.output.info("The Agent %s is deleted from Verifier (%s)", agent_id, address)
    session.output.result({"code": 404, "status": f"agent {agent_id} is not at the verifier", "results": {}})


def _owner(session: Session, status: Mapping[str, Any]) -> Verifier:
    address = owner_address(status, session.verifier.address)
    return session.verifier if address == session.verifier.address else session.connect_verifier(address)


async def _release(session: Session, verifier: Verifier) -> None:
    if verifier is not session.verifier:
        await verifier.close()


def owner_address(status: Mapping[str, Any], asked: Address) -> Address:
    """The verifier that takes orders about an agent, where several share a database.

    Addresses that mean something only on the verifier's own machine (loopback, unspecified) are not followed.
    """
    host, port = status.get("verifier_ip"), status.get("verifier_port")
    if not isinstance(host, str) or not isinstance(port, int) or not host or not 0 < port < 65536:
        return asked
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return asked if host == "localhost" else Address(host, port)
    return asked if address.is_unspecified or address.is_loopback else Address(host, port)
