"""`why` and `diff`: the reasons of a failure, and what was measured against what is allowed."""

import functools
import time

from msgspec import to_builtins

from keylime_tenant.commands.cases import read_case, reasons_of
from keylime_tenant.commands.follow import keep_showing, stamp, standing_of_interest
from keylime_tenant.json_documents import Deviation, Deviations
from keylime_tenant.session import Session
from keylime_tenant.why import Case, difference_lines, why_lines


async def why(session: Session) -> None:
    """Findings in full, since when, what changed before, and the next command."""
    if session.arguments.follow:
        await _follow(session)
        return
    case = await read_case(session)
    output = session.output
    output.result(to_builtins(reasons_of(case)), names=[case.agent_id])
    if not output.form.is_document:
        output.lines(_lines(session, case))


async def _follow(session: Session) -> None:
    """The reasons, now and whenever they are other ones. Raises CommandFailed when the agent is gone."""

    def show(case: Case) -> None:
        session.output.followed(to_builtins(reasons_of(case)), [stamp(), *_lines(session, case)])

    await keep_showing(session, functools.partial(read_case, session), show, _of_interest)


def _of_interest(case: Case) -> object:
    return standing_of_interest(case.status), case.left_off, case.fall, case.before


def _lines(session: Session, case: Case) -> list[str]:
    return [*why_lines(case, session.output.terminal, time.time())]


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
