"""Commands about agents at the registrar: reglist, regstatus, regdelete."""

import json
from typing import Any

from keylime.messages.verifier import OperationalState
from keylime_tenant.client import answer_document, results_of
from keylime_tenant.commands.follow import follow_status
from keylime_tenant.commands.verifier import show_status
from keylime_tenant.commands.warnings import show_warnings
from keylime_tenant.errors import CommandFailed
from keylime_tenant.people import name_lines, policy_lines, registration_lines
from keylime_tenant.session import Session


async def reglist(session: Session) -> None:
    """The ids of all registered agents."""
    registrar = session.registrar
    reply = await registrar.agents()
    if reply.code != 200:
        raise registrar.refusal(reply, "list its agents")
    results = results_of(reply)
    session.output.info(
        "From registrar %s port %s retrieved %s",
        registrar.address.host,
        registrar.address.port,
        json.dumps(answer_document(reply)),
    )
    session.output.literal("")
    names = [str(name) for name in results.get("uuids", [])]
    session.output.listing(
        f"Agent list from Registrar ({registrar.address}) retrieved: ",
        results,
        rows=[{"agent_id": name} for name in names],
        names=names,
    )
    session.output.show(
        lambda terminal: name_lines(f"agents registered at {registrar.place}", names, terminal)
    )


async def regstatus(session: Session) -> None:
    """The registrar's record of one agent."""
    await show_record(session)


async def show_record(session: Session) -> dict[str, Any]:
    """Prints and returns the registrar's record of the session's agent under its id. Raises CommandFailed."""
    registrar, agent_id = session.registrar, session.agent_id
    where = f"registrar {registrar.address.host} port {registrar.address.port}"
    found = await registrar.agent(agent_id)
    if found is None:
        absent = {"code": 404, "status": f"Agent {agent_id} does not exist on {where}.", "results": {}}
        session.output.info("%s", json.dumps(absent))
        session.output.result(absent)
        raise CommandFailed(
            f"Agent {agent_id} does not exist on Registrar ({registrar.address}). "
            "Is it running, and is this its id?"
        )
    _, reply = found
    info = {str(agent_id): {**results_of(reply), "operational_state": OperationalState.REGISTERED.text}}
    present = {"code": 200, "status": f"Agent {agent_id} exists on {where}.", "results": info}
    session.output.info("Status from Registrar (%s): %s", registrar.address, json.dumps(present))
    session.output.listing(f"Agent Info from Registrar ({registrar.address}):", info)
    session.output.result(
        present, rows=[{"agent_id": agent_id, **info[str(agent_id)]}], names=[str(agent_id)]
    )
    title = f"registered at {registrar.place}"
    session.output.show(lambda terminal: registration_lines(info, terminal, title=title))
    return info


async def status(session: Session) -> None:
    """The registrar's record and the verifier's status, and what both services warn of."""
    record = await show_record(session)
    agent = str(session.agent_id)
    # Should the verifier not tell.
    session.output.result({"registrar": record, "verifier": {}}, names=[agent])
    await show_warnings(session)  # before the verifier's status, which scripts expect to be the last
    if session.arguments.follow:
        await follow_status(session)
        return
    told = await show_status(session)
    session.output.show(lambda terminal: policy_lines(told, terminal))
    session.output.result({"registrar": record, "verifier": {agent: told.for_scripts()}}, names=[agent])


async def regdelete(session: Session) -> None:
    """Removes the registrar's record. One that is not there, or stays, is only a warning."""
    reply = await session.registrar.delete(session.agent_id)
    if reply.code != 200:
        session.output.warning(
            "The registrar did not delete agent %s: %s %s", session.agent_id, reply.code, reply.status
        )
    else:
        session.output.show(lambda _: [f"agent {session.agent_id} is not registered any more"])
    session.output.result(answer_document(reply), names=[session.agent_id])
