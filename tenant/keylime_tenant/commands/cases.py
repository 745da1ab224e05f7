"""What is read of one agent, and turned into the reasons that operators are shown."""

from keylime_tenant.errors import CommandFailed
from keylime_tenant.json_documents import Reasons
from keylime_tenant.session import Session
from keylime_tenant.why import Case, case_of, next_commands


async def read_case(session: Session) -> Case:
    """What the verifier knows of the session's agent. Raises CommandFailed, PeerUnreachable."""
    status = await session.verifier.status(session.agent_id)
    if status is None:
        raise CommandFailed(
            f"{session.verifier.place} does not have agent {session.agent_id}: `keylime_tenant cvlist` lists "
            f"those that it has, `keylime_tenant history -u {session.agent_id}` tells of one that was deleted"
        )
    return case_of(session.agent_id, status, await session.verifier.history(session.agent_id))


def reasons_of(case: Case) -> Reasons:
    """The document of a case."""
    return Reasons(
        agent_id=case.agent_id,
        findings=list(case.findings),
        findings_left_off=case.left_off,
        since=None if case.fall is None else case.fall.at,
        before=list(case.before),
        next=next_commands(case),
    )
