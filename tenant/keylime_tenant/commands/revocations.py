"""The command `revocations`: which revocations reached whom, and which did not."""

import time
from collections.abc import Iterator, Sequence

import msgspec

from keylime.findings.finding import printable
from keylime.messages.deliveries import Deliveries, TargetSummary
from keylime_tenant.client import read_results, results_of
from keylime_tenant.errors import CommandFailed
from keylime_tenant.session import Session
from keylime_tenant.terminal import Column, Terminal, age, lines_of


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
    session.output.listing(
        f"Revocations of Verifier ({verifier.address}):",
        results_of(reply),
        rows=[msgspec.to_builtins(target) for target in found.targets],
        names=[target.target for target in found.targets],
    )
    for summary in () if session.output.form.is_for_people else found.targets:
        if summary.failed or summary.pending or summary.wrong_key:
            session.output.warning("%s", shortfall(summary, now))
    session.output.show(lambda terminal: target_lines(found.targets, terminal, now))


def shortfall(summary: TargetSummary, now: float) -> str:
    """One line about a target that does not have everything."""
    reason = f": {summary.last_error}" if summary.last_error else ""
    is_waiting = summary.pending or summary.wrong_key
    waiting = f" (the oldest for {age(summary.oldest_pending, now)})" if is_waiting else ""
    kept_back = f", {summary.wrong_key} kept back from who does not hold the key" if summary.wrong_key else ""
    return (
        f"{summary.channel} {summary.target}: {summary.pending} pending{kept_back}{waiting}, "
        f"{summary.failed} given up{reason}"
    )


def target_lines(summaries: Sequence[TargetSummary], terminal: Terminal, now: float) -> Iterator[str]:
    """One line for each target, and below it why something has not arrived."""
    ordered = sorted(
        summaries, key=lambda one: (not (one.failed or one.pending or one.wrong_key), one.target)
    )
    columns = [
        Column("target", [printable(one.target) for one in ordered]),
        Column("channel", [printable(one.channel) for one in ordered]),
        *(
            Column(title, [str(getattr(one, name)) for one in ordered], rank)
            for title, name, rank in (
                ("pending", "pending", 0),
                ("failed", "failed", 0),
                ("delivered", "delivered", 1),
                ("gone", "gone", 2),
                ("wrong key", "wrong_key", 1),
                ("attempts", "attempts", 3),
            )
        ),
        Column("waiting", [age(one.oldest_pending, now) for one in ordered], 2),
    ]
    heading, *rows = lines_of(columns, terminal)
    yield heading
    for summary, row in zip(ordered, rows, strict=True):
        yield row
        if summary.last_error:
            yield f"   {terminal.paint('last error', 'quiet')}  {printable(summary.last_error)}"
