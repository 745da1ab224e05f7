"""What agents were told has no rows any more: it follows from two numbers of each agent."""

from bisect import bisect_right
from collections import defaultdict

import sqlalchemy as sa
from alembic import op

revision = "v0006"
down_revision = "v0005"
branch_labels = None
depends_on = None

_AT_ONCE = 1000
_ROWS_OF_AGENTS = (
    "SELECT target, count(*) AS row_count, min(revocations.number) AS lowest, "
    "sum(CASE WHEN state = 'delivered' THEN attempts ELSE 0 END) AS attempts, "
    "max(CASE WHEN state = 'delivered' THEN updated_at END) AS told_at "
    "FROM deliveries JOIN revocations ON revocations.revocation_id = deliveries.revocation_id "
    "WHERE channel = 'agent' AND revocations.number > 0 GROUP BY target"
)
_RECIPIENTS = (
    "SELECT recipients.agent_id, recipients.through, agents.verifier_id "
    "FROM recipients JOIN agents ON agents.agent_id = recipients.agent_id"
)
_SET_SINCE = sa.text(
    "UPDATE recipients SET since = :since, attempts = :attempts, told_at = :told_at "
    "WHERE agent_id = :agent_id"
)
_DROP_TOLD = (
    "DELETE FROM deliveries WHERE channel = 'agent' AND state = 'delivered' AND EXISTS ("
    "SELECT 1 FROM recipients, revocations WHERE recipients.agent_id = deliveries.target "
    "AND revocations.revocation_id = deliveries.revocation_id AND revocations.number > recipients.since)"
)


def upgrade() -> None:
    op.add_column("revocations", sa.Column("made", sa.BigInteger, nullable=False, server_default="0"))
    op.execute("UPDATE revocations SET made = number")
    op.create_index("ix_revocations_created_at", "revocations", ["created_at"])
    op.add_column("recipients", sa.Column("since", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("recipients", sa.Column("attempts", sa.Integer, nullable=False, server_default="0"))
    op.add_column("recipients", sa.Column("told_at", sa.Integer))
    op.execute("UPDATE recipients SET since = through")
    _carry_over(op.get_bind())


def _carry_over(connection: sa.Connection) -> None:
    """Replaces the rows of agents that have one for everything which they were told since some number.

    Others, who were added anew meanwhile, keep their rows until these are forgotten.
    """
    used: defaultdict[str, list[int]] = defaultdict(list)
    numbers = "SELECT verifier_id, number FROM revocations WHERE number > 0 ORDER BY number"
    for row in connection.execute(sa.text(numbers)):
        used[row.verifier_id].append(row.number)
    recipients = {row.agent_id: row for row in connection.execute(sa.text(_RECIPIENTS))}
    changes = []
    for row in connection.execute(sa.text(_ROWS_OF_AGENTS)).all():
        recipient = recipients.get(row.target)
        if recipient is None:
            continue
        of_verifier = used[recipient.verifier_id]
        tried = bisect_right(of_verifier, recipient.through) - bisect_right(of_verifier, row.lowest - 1)
        if tried == row.row_count:
            changes.append(
                {
                    "agent_id": row.target,
                    "since": row.lowest - 1,
                    "attempts": int(row.attempts),
                    "told_at": row.told_at,
                }
            )
    for first in range(0, len(changes), _AT_ONCE):
        connection.execute(_SET_SINCE, changes[first : first + _AT_ONCE])
    connection.execute(sa.text(_DROP_TOLD))
