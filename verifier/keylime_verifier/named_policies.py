"""Policies that operators keep under names of their own, for any number of agents."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from keylime.errors import PolicyError
from keylime.http.server import HttpError
from keylime.messages.verifier import MeasuredBootPolicyRequest, RuntimePolicyRequest
from keylime.policy.tpm_policy import TpmPolicy
from keylime_verifier.changes import Topic, announce
from keylime_verifier.policy_store import MEASURED_BOOT, RUNTIME, delete_policy, put_policy
from keylime_verifier.records import Enrolment
from keylime_verifier.references import CompileBootPolicy
from keylime_verifier.runtime_policies import accept_runtime_policy, release_of
from keylime_verifier.schema import agents, policies, policy_texts
from keylime_verifier.transactions import read, write

log = logging.getLogger("keylime.verifier")

BodyT = TypeVar("BodyT")

# Makes the agents of this process whose enrolment fulfils the condition use what is stored from their next
# round on. Other processes learn of it from the change counter.
ForgetReferences = Callable[[Callable[[Enrolment], bool]], int]


@dataclass(frozen=True, slots=True)
class PolicyKind:
    """What tells runtime policies and reference states apart: who uses them, and the words about them."""

    kind: str
    title: str
    in_use_title: str
    unknown_at_put: tuple[int, str]  # the answer's code, and the end of its text
    used_in: sa.Column[str]
    name_in: Callable[[Enrolment], str | None]
    release_of: Callable[[str], int] = lambda _text: 0  # tells older versions from newer ones


RUNTIME_KIND = PolicyKind(
    kind=RUNTIME,
    title="Runtime policy",
    in_use_title="allowlist",
    unknown_at_put=(404, "does not already exist, use POST to create"),
    used_in=agents.c.runtime_policy,
    name_in=lambda enrolment: enrolment.runtime_policy,
    release_of=release_of,
)
MEASURED_BOOT_KIND = PolicyKind(
    kind=MEASURED_BOOT,
    title="Measured boot policy",
    in_use_title="mb_policy",
    unknown_at_put=(409, "does not already exist"),  # not 404: so the API has always answered here
    used_in=agents.c.measured_boot_policy,
    name_in=lambda enrolment: enrolment.measured_boot_policy,
)


@dataclass(frozen=True, slots=True)
class PolicyContent:
    """What is kept under a name: the texts as they came, checked."""

    text: str
    tpm_policy: str | None = None


def check_runtime_policy(request: RuntimePolicyRequest, *, signature_required: bool) -> PolicyContent:
    """What `request` asks to keep. Raises MalformedMessage and PolicyError (400), HttpError 401."""
    if request.tpm_policy:
        TpmPolicy.from_wire(request.tpm_policy)
    text = accept_runtime_policy(
        request.runtime_policy, request.runtime_policy_key, signature_required=signature_required
    )
    return PolicyContent(text, request.tpm_policy or None)


def check_boot_policy(request: MeasuredBootPolicyRequest, compile_policy: CompileBootPolicy) -> PolicyContent:
    """What `request` asks to keep. Raises PolicyError."""
    try:
        policy = compile_policy(request.mb_policy)
    except PolicyError as error:
        raise PolicyError(f"mb_policy: {error}") from error
    if policy is None:
        # Under a name that is in use, it would switch measured boot off for all who use it.
        raise PolicyError("mb_policy: expected a reference state, got nothing or null")
    return PolicyContent(request.mb_policy)


class NamedPolicies(Generic[BodyT]):
    """The policies of one kind, those that came with agents included. Raises HttpError with the answer."""

    def __init__(
        self,
        engine: AsyncEngine,
        kind: PolicyKind,
        check: Callable[[BodyT], PolicyContent],
        forget_references: ForgetReferences,
        *,
        refuse_older: bool = False,
    ) -> None:
        """`refuse_older`: whether a version may be replaced by one of a lower release number (L2)."""
        self._engine = engine
        self._kind = kind
        self._check = check
        self._forget_references = forget_references
        self._refuse_older = refuse_older

    async def names(self) -> list[str]:
        """All names, sorted."""
        query = sa.select(policies.c.name).where(policies.c.kind == self._kind.kind).order_by(policies.c.name)
        async with read(self._engine, "list policies") as connection:
            return list((await connection.execute(query)).scalars())

    async def show(self, name: str) -> PolicyContent:
        """The policy `name`."""
        async with read(self._engine, "read a policy") as connection:
            row = (await connection.execute(self._content_of(name))).first()
        if row is None:
            raise HttpError(404, f"{self._kind.title} {name} not found")
        return PolicyContent(row.text, row.tpm_policy)

    async def create(self, name: str, request: BodyT) -> None:
        """Keeps a new policy."""
        # In a thread: a large policy takes its time.
        content = await asyncio.to_thread(self._check, request)
        taken = HttpError(409, f"{self._kind.title} with name {name} already exists")
        async with write(self._engine, "store a policy") as connection:
            if await self._is_stored(connection, name):
                raise taken
            try:
                await put_policy(connection, self._kind.kind, name, content.text, content.tpm_policy)
            except IntegrityError as error:  # by another verifier, in between
                raise taken from error
        log.info("%s %r: created", self._kind.title, name)

    async def replace(self, name: str, request: BodyT) -> None:
        """Keeps a new version; agents that use it are held to it from their next round on (S6)."""
        content = await asyncio.to_thread(self._check, request)
        async with write(self._engine, "replace a policy") as connection:
            await self._compare_releases(connection, name, content)
            await announce(connection, Topic.AGENTS)
            if not await delete_policy(connection, self._kind.kind, name):
                code, ending = self._kind.unknown_at_put
                raise HttpError(code, f"{self._kind.title} with name {name} {ending}")
            await put_policy(connection, self._kind.kind, name, content.text, content.tpm_policy)
        affected = self._forget_references(lambda enrolment: self._kind.name_in(enrolment) == name)
        log.info("%s %r: replaced, for %d agents polled here", self._kind.title, name, affected)

    async def delete(self, name: str) -> None:
        """Removes a policy that no agent uses (L4)."""
        using = sa.select(agents.c.agent_id).where(self._kind.used_in == name).order_by(agents.c.agent_id)
        async with write(self._engine, "delete a policy") as connection:
            await announce(connection, Topic.AGENTS)  # after this, nobody adds an agent until the commit
            user = (await connection.execute(using.limit(1))).scalar()
            if user is not None:
                text = f"Can't delete {self._kind.in_use_title} as it's currently in use by agent {user}"
                raise HttpError(409, text)
            if not await delete_policy(connection, self._kind.kind, name):
                raise HttpError(404, f"{self._kind.title} {name} not found")
        log.info("%s %r: deleted", self._kind.title, name)

    def _content_of(self, name: str) -> sa.Select[tuple[str, str | None]]:
        return (
            sa.select(policy_texts.c.text, policies.c.tpm_policy)
            .join(policies, policies.c.content_hash == policy_texts.c.content_hash)
            .where(policies.c.kind == self._kind.kind, policies.c.name == name)
        )

    async def _compare_releases(self, connection: AsyncConnection, name: str, new: PolicyContent) -> None:
        """A signature says who approved a policy, not when: an old one still verifies."""
        row = (await connection.execute(self._content_of(name))).first()
        if row is None:
            return
        before, after = self._kind.release_of(row.text), self._kind.release_of(new.text)
        if after >= before:
            return
        problem = f"{self._kind.title} with name {name} has release {before}, which is newer than {after}"
        if self._refuse_older:
            raise HttpError(409, f"{problem}: raise `release` in the policy and sign it again")
        log.warning("%s; it is replaced by the older one", problem)

    async def _is_stored(self, connection: AsyncConnection, name: str) -> bool:
        where = (policies.c.kind == self._kind.kind, policies.c.name == name)
        return (await connection.execute(sa.select(policies.c.name).where(*where))).first() is not None
