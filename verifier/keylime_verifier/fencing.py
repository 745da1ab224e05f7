"""Refuses writes of verifiers that do not own the agent's shard any more, within the transaction that writes.

The shard's row is read with a lock that lasts until the commit: nobody can take the shard over between the
check and the write. (On SQLite the transaction is the only one that writes.)
"""

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from keylime_verifier.records import AgentRecord
from keylime_verifier.schema import shards


async def still_owned(connection: AsyncConnection, records: Iterable[AgentRecord]) -> list[AgentRecord]:
    """Those of `records` whose shard is in the epoch that they were read in."""
    epochs: dict[str, dict[int, int]] = {}
    records = list(records)
    for verifier_id in {record.enrolment.verifier_id for record in records}:
        concerned = {record.shard for record in records if record.enrolment.verifier_id == verifier_id}
        rows = await connection.execute(
            sa.select(shards.c.shard, shards.c.epoch)
            .where(shards.c.verifier_id == verifier_id, shards.c.shard.in_(concerned))
            .order_by(shards.c.shard)
            .with_for_update(read=True)
        )
        epochs[verifier_id] = {row.shard: row.epoch for row in rows}
    return [
        record
        for record in records
        if epochs[record.enrolment.verifier_id].get(record.shard) == record.claim.epoch
    ]
