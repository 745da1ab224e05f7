"""Policies that operators keep under names of their own, for any number of agents."""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from keylime.database.transactions import Database
from keylime.messages.verification import PolicyVersions
from keylime_verifier.agents.events import Actor, EventKind, Occurrence, policy_key
from keylime_verifier.agents.policy_categories import MEASURED_BOOT, RUNTIME, PolicyCategory, TextHash
from keylime_verifier.agents.policy_parts import decode_parts
from keylime_verifier.agents.records import Enrolment
from keylime_verifier.agents.refusals import InTheWay, NotThere, UnknownPolicy
from keylime_verifier.database.changes import Topic, publish
from keylime_verifier.database.history import new_token, write_events
from keylime_verifier.database.schema import agents, policies, policy_texts
from keylime_verifier.policies.checks import PolicyContent
from keylime_verifier.policies.runtime import covers_text, release_of
from keylime_verifier.policies.store import delete_policy, put_policy, used_by
from keylime_verifier.policies.versions import (
    Current,
    NewVersion,
    current,
    former,
    list_versions,
    note_first,
    put_version,
)

log = logging.getLogger("keylime.verifier")

BodyT = TypeVar("BodyT")

# Makes the agents of this process whose enrolment fulfils the condition use what is stored from their next
# round on. Other processes learn of it from the change counter.
ForgetReferences = Callable[[Callable[[Enrolment], bool]], int]

# Refuses a text under a name that holds together with other policies for some agents. Raises RequestRefused.
CheckUsers = Callable[[str, str], Awaitable[None]]

_SHOWN_USERS = 1000


@dataclass(frozen=True, slots=True)
class PolicyKind:
    """What tells runtime policies and reference states apart: who uses them, and the words about them."""

    kind: PolicyCategory
    title: str
    in_use_title: str
    unknown_ending: str  # of what is said when one that is not there is to be replaced
    is_used: Callable[[Enrolment, str], bool]
    release_of: Callable[[str], int] = lambda _text: 0  # tells older versions from newer ones
    covers: Callable[[str, str], bool] = lambda _new, _old: False  # whether it accepts whatever that does


RUNTIME_KIND = PolicyKind(
    kind=RUNTIME,
    title="Runtime policy",
    in_use_title="allowlist",
    unknown_ending="does not already exist, use POST to create",
    is_used=lambda enrolment, name: enrolment.uses_runtime_policy(name),
    release_of=release_of,
    covers=covers_text,
)
MEASURED_BOOT_KIND = PolicyKind(
    kind=MEASURED_BOOT,
    title="Measured boot policy",
    in_use_title="mb_policy",
    unknown_ending="does not already exist",
    is_used=lambda enrolment, name: enrolment.measured_boot_policy == name,
)


class NamedPolicies(Generic[BodyT]):
    """The policies of one kind, those that came with agents included. Raises RequestRefused."""

    def __init__(
        self,
        database: Database,
        kind: PolicyKind,
        check: Callable[[BodyT], PolicyContent],
        forget_references: ForgetReferences,
        *,
        kept: int,
        refuse_older: bool = False,
        check_users: CheckUsers | None = None,
    ) -> None:
        """`kept` is how many versions are; `check_users` refuses what its users cannot be held to.

        `refuse_older`: whether a version may be replaced by one of a lower release number (L2).
        """
        self._kept = kept
        self._check_users = check_users
        self._database = database
        self._kind = kind
        self._check = check
        self._forget_references = forget_references
        self._refuse_older = refuse_older

    async def names(self) -> list[str]:
        """All names, sorted."""
        query = sa.select(policies.c.name).where(policies.c.kind == self._kind.kind).order_by(policies.c.name)
        return await self._database.read(
            "list policies", lambda connection: list(connection.execute(query).scalars())
        )

    async def show(self, name: str) -> PolicyContent:
        """The policy `name`."""
        query = self._content_of(name)
        row = await self._database.read("read a policy", lambda connection: connection.execute(query).first())
        if row is None:
            raise NotThere(f"{self._kind.title} {name} not found")
        return PolicyContent(row.text, row.tpm_policy)

    async def create(self, name: str, request: BodyT, *, by: Actor) -> str | None:
        """Keeps a new policy; returns what its author should know of it, if anything.

        `by` is the administrator whose act this is.
        """
        # In a thread: a large policy takes its time.
        content = await asyncio.to_thread(self._check, request)
        taken = InTheWay(f"{self._kind.title} with name {name} already exists")
        event = self._event(EventKind.POLICY_STORED, name, by)

        def work(connection: sa.Connection) -> None:
            if self._is_stored(connection, name):
                raise taken
            try:
                put_policy(connection, self._kind.kind, name, content.text, content.tpm_policy)
            except IntegrityError as error:  # by another verifier, in between
                raise taken from error
            note_first(connection, self._kind.kind, name, _new(content), by)
            write_events(connection, [_with(event, sha256=_hash(content.text), version=1)])

        await self._database.write("store a policy", work)
        log.info(
            "%s %r: created by %s, sha256 %s",
            self._kind.title,
            name,
            by.certificate,
            _hash(content.text),
        )
        return self._remarked(name, content)

    async def replace(self, name: str, request: BodyT, *, by: Actor) -> str | None:
        """As `create`, for a new version; agents that use it are held to it from their next round on (S6)."""
        return await self._replace(name, request, by)

    async def restore(
        self, name: str, version: int, request_of: Callable[[PolicyContent], BodyT], *, by: Actor
    ) -> str | None:
        """As `replace`, with the text of a former version; it is checked as any other (L2)."""

        def read(connection: sa.Connection) -> Current | None:
            return former(connection, self._kind.kind, name, version)

        found = await self._database.read("read a policy", read)
        if found is None:
            raise NotThere(f"{self._kind.title} {name} has no version {version}, or not any more")
        request = request_of(PolicyContent(found.text, found.tpm_policy))
        return await self._replace(name, request, by, restored=version)

    async def versions(self, name: str) -> PolicyVersions:
        """The versions that are kept, and which agents use the policy."""

        def work(connection: sa.Connection) -> PolicyVersions:
            found = list_versions(connection, self._kind.kind, name)
            if not found:
                raise NotThere(f"{self._kind.title} {name} not found")
            users = self._users(connection, name)
            return PolicyVersions(
                name=name,
                versions=found,
                agents=users[:_SHOWN_USERS],
                left_off=max(len(users) - _SHOWN_USERS, 0),
            )

        return await self._database.read("list the versions of a policy", work)

    async def show_version(self, name: str, version: int) -> str:
        """The text of a version that is kept."""

        def work(connection: sa.Connection) -> str:
            stored = current(connection, self._kind.kind, name)
            found = former(connection, self._kind.kind, name, version)
            if found is None and stored is not None and stored.version == version:
                found = stored
            if found is None:
                raise NotThere(f"{self._kind.title} {name} has no version {version}, or not any more")
            return found.text

        return await self._database.read("read a policy", work)

    def _users(self, connection: sa.Connection, name: str) -> list[str]:
        """The ids of the agents that use a policy, sorted."""
        query = sa.select(agents.c.agent_id, agents.c.runtime_policy, agents.c.runtime_parts)
        rows = connection.execute(query.where(used_by(self._kind.kind, name)).order_by(agents.c.agent_id))
        return [
            row.agent_id
            for row in rows
            if self._kind.kind != RUNTIME
            or row.runtime_policy == name
            or any(part.name == name for part in decode_parts(row.runtime_parts))
        ]

    async def _replace(
        self, name: str, request: BodyT, by: Actor, *, restored: int | None = None
    ) -> str | None:
        content = await asyncio.to_thread(self._check, request)
        known = await self._database.read(
            "read a policy", lambda connection: current(connection, self._kind.kind, name)
        )
        covered = None
        if known is not None:
            if self._check_users is not None:
                await self._check_users(name, content.text)
            if await asyncio.to_thread(self._kind.covers, content.text, known.text):
                covered = known.text_hash
        event = self._event(EventKind.POLICY_REPLACED, name, by)

        def work(connection: sa.Connection) -> tuple[str, int]:
            publish(connection, Topic.AGENTS)
            before = current(connection, self._kind.kind, name)
            if before is None:
                raise UnknownPolicy(f"{self._kind.title} with name {name} {self._kind.unknown_ending}")
            self._compare_releases(name, before.text, content.text)
            new = _new(content, covered)
            if content.replaces is not None:
                if content.replaces != before.text_hash:
                    raise InTheWay(f"{self._kind.title} with name {name} was replaced meanwhile: look again")
                new = replace(new, tpm_policy=new.tpm_policy or before.tpm_policy)
            version = put_version(connection, self._kind.kind, name, before, new, by, kept=self._kept)
            count = len(self._users(connection, name))
            details = {
                "was": before.text_hash,
                "sha256": _hash(content.text),
                "was_version": before.version,
                "version": version,
                "agents": count,
            }
            if restored is not None:
                details["restored"] = restored
            write_events(connection, [_with(event, **details)])
            return before.text, count

        replaced, affected = await self._database.write("replace a policy", work)
        # At once here; other workers and verifiers are told by the commit.
        self._forget_references(lambda enrolment: self._kind.is_used(enrolment, name))
        log.info(
            "%s %r: replaced, for %d agents, by %s, sha256 %s -> %s",
            self._kind.title,
            name,
            affected,
            by.certificate,
            _hash(replaced),
            _hash(content.text),
        )
        return self._remarked(name, content)

    async def delete(self, name: str, *, by: Actor) -> None:
        """Removes a policy that no agent uses (L4)."""
        event = self._event(EventKind.POLICY_DELETED, name, by)

        def work(connection: sa.Connection) -> None:
            publish(connection, Topic.AGENTS)  # after this, nobody adds an agent until the commit
            users = self._users(connection, name)
            if users:
                text = f"Can't delete {self._kind.in_use_title} as it's currently in use by agent {users[0]}"
                raise InTheWay(text)
            if not delete_policy(connection, self._kind.kind, name):
                raise NotThere(f"{self._kind.title} {name} not found")
            write_events(connection, [event])

        await self._database.write("delete a policy", work)
        log.info("%s %r: deleted by %s", self._kind.title, name, by.certificate)

    def _event(self, kind: EventKind, name: str, by: Actor) -> Occurrence:
        return Occurrence(token=new_token(), kind=kind, policy=policy_key(self._kind.kind, name), actor=by)

    def _remarked(self, name: str, content: PolicyContent) -> str | None:
        if content.remark is not None:
            log.warning("%s %r: %s", self._kind.title, name, content.remark)
        return content.remark

    def _content_of(self, name: str) -> sa.Select[tuple[str, str | None]]:
        return (
            sa.select(policy_texts.c.text, policies.c.tpm_policy)
            .join(policies, policies.c.content_hash == policy_texts.c.content_hash)
            .where(policies.c.kind == self._kind.kind, policies.c.name == name)
        )

    def _compare_releases(self, name: str, old_text: str, new_text: str) -> None:
        """A signature says who approved a policy, not when: an old one still verifies."""
        before, after = self._kind.release_of(old_text), self._kind.release_of(new_text)
        if after >= before:
            return
        problem = f"{self._kind.title} with name {name} has release {before}, which is newer than {after}"
        if self._refuse_older:
            raise InTheWay(f"{problem}: raise `release` in the policy and sign it again")
        log.warning("%s; it is replaced by the older one", problem)

    def _is_stored(self, connection: sa.Connection, name: str) -> bool:
        where = (policies.c.kind == self._kind.kind, policies.c.name == name)
        return connection.execute(sa.select(policies.c.name).where(*where)).first() is not None


def _new(content: PolicyContent, covered: TextHash | None = None) -> NewVersion:
    return NewVersion(content.text, content.tpm_policy, content.policy_hash, covered)


def _with(event: Occurrence, **details: object) -> Occurrence:
    return replace(event, details=details)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
