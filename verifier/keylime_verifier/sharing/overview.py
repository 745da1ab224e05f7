"""What operators are shown of the verifiers that share a database: who has how much, and how late it is."""

import sqlalchemy as sa

from keylime.database.clock import database_time
from keylime.database.transactions import Database
from keylime.messages.verifier import OperationalState
from keylime.messages.verifiers import VerifierProcess, VerifierProcesses
from keylime_verifier.database.schema import agents, members, progress, shards

# Who is in one of these states is asked every interval, and has passed before.
_PASSES = sa.and_(
    agents.c.operational_state == OperationalState.GET_QUOTE.value,
    agents.c.unreachable_since.is_(None),
    progress.c.last_successful_attestation > 0,
)


async def read_processes(database: Database) -> VerifierProcesses:
    """Each process that is heard of, by name. Raises DatabaseUnavailable."""
    leases = sa.select(shards.c.owner, sa.func.count()).group_by(shards.c.owner)
    polled = (
        sa.select(
            shards.c.owner,
            sa.func.count(),
            sa.func.min(sa.case((_PASSES, progress.c.last_successful_attestation))),
        )
        .select_from(
            agents.join(
                shards,
                sa.and_(shards.c.verifier_id == agents.c.verifier_id, shards.c.shard == agents.c.shard),
            ).join(progress, progress.c.agent_id == agents.c.agent_id)
        )
        .where(agents.c.is_polled, sa.not_(agents.c.is_pushing))
        .group_by(shards.c.owner)
    )
    who = sa.select(members.c.member_id, members.c.name, members.c.verifier_id).order_by(members.c.name)

    def work(connection: sa.Connection) -> VerifierProcesses:
        held = {row[0]: row[1] for row in connection.execute(leases)}
        asked = {owner: (count, oldest) for owner, count, oldest in connection.execute(polled)}
        found = [
            VerifierProcess(
                name=row.name,
                verifier_id=row.verifier_id,
                shards=held.get(row.member_id, 0),
                agents=asked.get(row.member_id, (0, None))[0],
                oldest_pass=asked.get(row.member_id, (0, None))[1],
            )
            for row in connection.execute(who)
        ]
        now = connection.execute(sa.select(database_time())).scalar_one()
        return VerifierProcesses(verifiers=found, now=int(now))

    return await database.read("read the verifiers", work)
