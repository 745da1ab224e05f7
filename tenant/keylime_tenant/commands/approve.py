"""`approve`: from a false alarm to a good machine, when an operator says that what was found is right."""

import dataclasses
import os
from contextlib import ExitStack
from typing import Any

import msgspec

from keylime.documents.dsse import PolicySigner
from keylime.errors import ConfigError
from keylime.findings.finding import printable
from keylime.messages.verification import PolicyVersions
from keylime.messages.verifier import FindingSummary
from keylime.signing_keys import signing_key
from keylime_tenant.approval import Proposal, proposal_lines, propose, request_of
from keylime_tenant.client import read_results
from keylime_tenant.commands.cases import read_case
from keylime_tenant.commands.verifier import reactivate_one
from keylime_tenant.errors import CommandFailed
from keylime_tenant.json_documents import Approval, Approved
from keylime_tenant.judgement import await_judgement
from keylime_tenant.payload_sources import read_file
from keylime_tenant.session import Session
from keylime_tenant.told_status import ToldStatus
from keylime_tenant.why import Case

_WAIT_S = 300.0
_MOST_ROUNDS = 20  # a status has the first findings of many: those after them show in the next round
KIND = "allowlists"


async def approve(session: Session) -> None:
    """Adds what was found to the agent's policy, when the operator agrees, and has it judged by that.

    Raises CommandFailed for what must not be approved, and when the agent does not pass then.
    """
    case = await read_case(session)
    if not case.findings:
        raise CommandFailed(f"agent {session.agent_id} has no findings: there is nothing to approve")
    name, place = policy_to_amend(session, case.status), session.arguments.sign_key
    with ExitStack() as stack:
        key = None
        if place is not None:
            key = stack.enter_context(signing_key("--sign-key", place, os.environ, read_file))
        await _approve(session, name, key, case)


async def _approve(session: Session, name: str, key: PolicySigner | None, case: Case) -> None:
    approved: list[Approved] = []
    for _ in range(_MOST_ROUNDS):
        text = await policy_text(session, name)
        proposal = propose(text, case.findings, only=session.arguments.only, force=session.arguments.force)
        if proposal.is_signed and key is None:
            raise CommandFailed(
                f"policy {name!r} is signed: give the key for its next version with --sign-key"
            )
        await _demand_consent(session, name, proposal, case)
        reply = await session.verifier.policy("PUT", KIND, name, request_of(proposal, key))
        if reply.code != 201:
            raise session.verifier.refusal(reply, f"store the next version of policy {name!r}")
        approved.append(_approved(name, proposal))
        session.output.result(
            msgspec.to_builtins(Approval(session.agent_id, approved)), names=[session.agent_id]
        )
        session.output.said("Policy %s has a new version; agent %s is judged by it", name, session.agent_id)
        findings = await _judged(session)
        if findings is None:
            return
        case = dataclasses.replace(await read_case(session), findings=findings)
    raise CommandFailed(
        f"agent {session.agent_id} shows ever more: approve stopped after {_MOST_ROUNDS} rounds"
    )


def _approved(policy: str, proposal: Proposal) -> Approved:
    """What the new version of a policy allows more."""
    return msgspec.convert({"policy": policy, "added": proposal.difference.added}, Approved)


async def _judged(session: Session) -> list[FindingSummary] | None:
    """Has the agent judged anew; the findings if it fails by others than before, None when it passes."""
    wait = _WAIT_S if session.arguments.wait is None else session.arguments.wait
    patient = dataclasses.replace(session, arguments=dataclasses.replace(session.arguments, wait=wait))
    _, passes = await reactivate_one(session, session.agent_id)
    try:
        await await_judgement(patient, session.agent_id, passes)
    except CommandFailed:
        status = await session.verifier.status(session.agent_id)
        findings = [] if status is None else status.findings
        if not findings or session.arguments.only:
            raise
        session.output.warning("agent %s shows more than was approved", session.agent_id)
        return findings
    return None


def policy_to_amend(session: Session, status: ToldStatus) -> str:
    """The policy of the session's agent that is to be amended. Raises CommandFailed, ConfigError."""
    names = [one.name for one in status.parts] or [status.runtime_policy_name or ""]
    chosen = session.arguments.policy or status.runtime_policy_name
    if not chosen:
        raise CommandFailed(
            f"agent {session.agent_id} has no runtime policy that could list it: give it one with update"
        )
    if chosen not in names:
        raise ConfigError(f"--policy {chosen}: agent {session.agent_id} uses {', '.join(names)}")
    return chosen


async def policy_text(session: Session, name: str) -> str:
    """The text of a runtime policy, as it was given. Raises CommandFailed."""
    reply = await session.verifier.policy("GET", KIND, name)
    if reply.code != 200:
        raise session.verifier.refusal(reply, f"show policy {name!r}")
    text = read_results(reply, dict[str, Any], session.verifier.place).get("runtime_policy")
    if not isinstance(text, str):
        raise CommandFailed(f"{session.verifier.place} does not show policy {name!r}")
    return text


async def _demand_consent(session: Session, name: str, proposal: Proposal, case: Case) -> None:
    """Shows what is to be added, and to whose policy. Raises CommandFailed unless the operator agrees."""
    output = session.output
    if not output.form.is_document:
        output.lines([f"Policy {printable(name)} would list:"])
        output.lines(proposal_lines(proposal, output.terminal))
    users = await users_of(session, name)
    if users > 1:
        output.warning("policy %s is used by %d agents, which could run this as well", printable(name), users)
    if case.left_off:
        output.warning("there were %d more findings, which are looked at in the next round", case.left_off)
    if session.arguments.yes:
        return
    if session.ask is None:
        raise CommandFailed("nothing is changed, since there is no terminal to ask on: --yes agrees")
    if session.ask("Is all of this right (yes/no)? ").strip().lower() != "yes":
        raise CommandFailed("nothing is changed: the answer was not yes")


async def users_of(session: Session, name: str) -> int:
    """How many agents use a runtime policy; 0 when the verifier does not tell."""
    reply = await session.verifier.call("GET", session.verifier.policy_path(KIND, name, "versions"))
    if reply.code != 200:
        return 0
    found = read_results(reply, PolicyVersions, session.verifier.place)
    return len(found.agents) + found.left_off
