"""The command `revocations`: which revocations reached whom, and which did not."""

import time
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from keylime.messages.deliveries import Deliveries, TargetSummary
from keylime_tenant.client import read_results, results_of
from keylime_tenant.errors import CommandFailed
from keylime_tenant.session import Session


async def revocations(session: Session) -> None:
    """Deliveries by target: of revocations about the agent of `-u`, without it of all."""
    verifier = session.verifier
    about = None if session.arguments.agent_uuid is None else session.agent_id
    reply = await verifier.revocations(about)
    if reply.code == 404:
        raise CommandFailed(f"{verifier.place} does not tell about revocations: its release is older")
    if reply.code != 200:
        raise verifier.refusal(reply, "tell about revocations")
    found = read_results(reply, Deliveries, verifier.place)
    now = time.time()
    session.output.listing(f"Revocations of Verifier ({verifier.address}):", results_of(reply))
    for summary in found.targets:
        if summary.failed or summary.pending:
            session.output.warning("%s", shortfall(summary, now))
    session.output.table(targets_table(found.targets, now))


def shortfall(summary: TargetSummary, now: float) -> str:
    """One line about a target that does not have everything."""
    reason = f": {summary.last_error}" if summary.last_error else ""
    waiting = f" (the oldest for {age(summary.oldest_pending, now)})" if summary.pending else ""
    return (
        f"{summary.channel} {summary.target}: {summary.pending} pending{waiting}, "
        f"{summary.failed} given up{reason}"
    )


def targets_table(summaries: Sequence[TargetSummary], now: float) -> Table:
    """One line for each target."""
    table = Table("channel", "target", "pending", "delivered", "failed", "attempts", "waiting", "last error")
    for summary in summaries:
        numbers = (summary.pending, summary.delivered, summary.failed, summary.attempts)
        table.add_row(
            summary.channel,
            Text(summary.target),
            *map(str, numbers),
            age(summary.oldest_pending, now),
            Text(summary.last_error or ""),
        )
    return table


def age(since: int | None, now: float) -> str:
    """The time since the epoch second `since`, in its two largest units; empty without one."""
    if since is None:
        return ""
    seconds = max(0, int(now - since))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"
