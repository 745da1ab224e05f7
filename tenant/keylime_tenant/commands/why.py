"""`why` and `diff`: the reasons of a failure, and what was measured against what is allowed."""

import time

from msgspec import to_builtins

from keylime_tenant.errors import CommandFailed
from keylime_tenant.json_documents import Deviation, Deviations, Reasons
from keylime_tenant.session import Session
from keylime_tenant.why import Case, case_of, difference_lines, next_commands, why_lines


async def why(session: Session) -> None:
    """Findings in full, since when, what changed before, and the next command."""
    if session.arguments.follow:
        from keylime_tenant.commands.follow import follow_why

        await follow_why(session)
        return
    case = await read_case(session)
    output = session.output
    output.result(to_builtins(reasons_of(case)), names=[case.agent_id])
    if not output.form.is_document:
        output.lines(why_lines(case, output.terminal, time.time()))


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


async def diff(session: Session) -> None:
    """What the machine measured, against its policy: of the last rejection."""
    case = await read_case(session)
    output = session.output
    rows = [
        Deviation(
            path=finding.path,
            log_index=finding.log_index,
            section=finding.rule,
            expected=finding.expected,
            observed=finding.observed,
        )
        for finding in case.findings
    ]
    output.result(
        to_builtins(Deviations(case.agent_id, rows, case.left_off)),
        rows=to_builtins(rows),
        names=[case.agent_id],
    )
    if not output.form.is_document:
        output.lines(difference_lines(case.findings, output.terminal))
        if not case.findings:
            output.lines([f"agent {case.agent_id}: nothing differs from its policies, as far as was judged"])
        if case.left_off:
            output.lines([f"and {case.left_off} more, which are not kept"])


async def read_case(session: Session) -> Case:
    """What the verifier knows of the session's agent. Raises CommandFailed."""
    status = await session.verifier.status(session.agent_id)
    if status is None:
        raise CommandFailed(
            f"{session.verifier.place} does not have agent {session.agent_id}: what happened to it says "
            f"keylime_tenant history -u {session.agent_id}"
        )
    return case_of(session.agent_id, status, await session.verifier.history(session.agent_id))
