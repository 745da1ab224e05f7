"""Writes what is taken over, in the caller's transaction, in the form that our own records have."""

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from keylime.takeover.report import TakeoverReport
from keylime_verifier.agents.policy_categories import PolicyCategory
from keylime_verifier.database.changes import Topic, publish
from keylime_verifier.database.schema import agents, policies, policy_texts, progress, recipients
from keylime_verifier.polling.rows import enrolment_columns, position_columns, verdict_columns
from keylime_verifier.revocations.backlog import COUNT
from keylime_verifier.takeover.agents import OldAgent
from keylime_verifier.takeover.plan import Here, NewRecords, Plan, settle

_AT_ONCE = 500
T = TypeVar("T")


def look(connection: sa.Connection, plan: Plan) -> TakeoverReport:
    """What taking `plan` over would do to our tables; nothing is written."""
    return settle(plan, _here(connection))[1]


def take(connection: sa.Connection, plan: Plan) -> TakeoverReport:
    """Takes what is not here yet; verifiers at work begin to attest it when the transaction commits."""
    publish(connection, Topic.AGENTS)  # from here on nobody adds anything until the commit
    news, report = settle(plan, _here(connection))
    _insert_policies(connection, news)
    for part in _parts(news.agents):
        connection.execute(sa.insert(agents), [_agent_row(agent) for agent in part])
        connection.execute(sa.insert(progress), [_progress_row(agent) for agent in part])
        told = sa.insert(recipients).values(agent_id=sa.bindparam("_id"), through=COUNT, since=COUNT)
        for agent in part:
            connection.execute(told, {"_id": agent.enrolment.agent_id})
    return report


def rehearse(plan: Plan) -> TakeoverReport:
    """What taking `plan` over would do to empty tables."""
    return settle(plan, Here())[1]


def _here(connection: sa.Connection) -> Here:
    named = sa.select(policies.c.kind, policies.c.name, policies.c.content_hash)
    return Here(
        {
            row.agent_id: row.ak_tpm
            for row in connection.execute(sa.select(agents.c.agent_id, agents.c.ak_tpm))
        },
        {(PolicyCategory(row.kind), row.name): row.content_hash for row in connection.execute(named)},
    )


def _insert_policies(connection: sa.Connection, news: NewRecords) -> None:
    texts = {hashlib.sha256(text.encode()).hexdigest(): text for text, _ in news.policies.values()}
    known: set[str] = set()
    for part in _parts(list(texts)):
        query = sa.select(policy_texts.c.content_hash).where(policy_texts.c.content_hash.in_(part))
        known.update(connection.execute(query).scalars())
    for content_hash in texts.keys() - known:  # one by one: each may be of many megabytes
        connection.execute(
            sa.insert(policy_texts), {"content_hash": content_hash, "text": texts[content_hash]}
        )
    rows = [
        {
            "kind": kind,
            "name": name,
            "content_hash": hashlib.sha256(text.encode()).hexdigest(),
            "tpm_policy": tpm_policy,
        }
        for (kind, name), (text, tpm_policy) in news.policies.items()
    ]
    for chunk in _parts(rows):
        connection.execute(sa.insert(policies), list(chunk))


def _agent_row(agent: OldAgent) -> dict[str, Any]:
    secrets = {"v": agent.secrets.v, "revocation_key": agent.secrets.revocation_key}
    return enrolment_columns(agent.enrolment) | verdict_columns(agent.progress) | secrets


def _progress_row(agent: OldAgent) -> Mapping[str, Any]:
    standing = {"agent_id": agent.enrolment.agent_id, "incarnation": uuid.uuid4().hex, "recalls": 0}
    return standing | position_columns(agent.progress)


def _parts(whole: Sequence[T]) -> Iterator[Sequence[T]]:
    for first in range(0, len(whole), _AT_ONCE):
        yield whole[first : first + _AT_ONCE]
