"""What a status is made of while an agent's row is read: it never shows less than was shown before."""

import asyncio
import base64
from collections.abc import Callable, Collection, Mapping
from typing import cast

from msgspec.structs import replace

from keylime.identifiers import AgentId
from keylime.ima.runtime_policy import EMPTY_POLICY, RuntimePolicy
from keylime.messages.verifier import AddAgentRequest, OperationalState, UpdateAgentRequest
from keylime_verifier.agents.events import Actor
from keylime_verifier.agents.policy_categories import TextHash
from keylime_verifier.agents.records import AgentRecord, RowVersion
from keylime_verifier.agents.shards import MemberId, ShardClaim, VerifierId
from keylime_verifier.api.enrolment import EnrolmentRules
from keylime_verifier.api.operations import Agents
from keylime_verifier.policies.references import References
from keylime_verifier.policies.store import PolicyStore
from keylime_verifier.polling.recorder import Recorder
from keylime_verifier.polling.store import AgentStore
from keylime_verifier.sharing.roster import Roster
from tests.fakes.attesting_agent import attestation_key
from tests.unit.verifier.test_status import CADENCE, ENROLMENT, NOW, PASSED

PASSING = AgentRecord("i", ENROLMENT, PASSED)
REJECTED = replace(
    PASSING, progress=replace(PASSED, operational_state=OperationalState.INVALID_QUOTE, is_polled=False)
)


class World:
    """The database, and what one process knows.

    Something may happen while the first row is on its way, or while the versions of its policies are.
    """

    def __init__(self, happening: Callable[["World"], None], while_reading: str) -> None:
        self.row = PASSING
        self.known: AgentRecord | None = PASSING
        self.pending: AgentRecord | None = None
        self.settling = 0  # how often it must be waited for what is being written
        self._happenings = [happening]
        self._while_reading = while_reading

    # As the store

    async def find(self, _agent_id: AgentId) -> AgentRecord:
        row = self.row
        self._happens("row")
        return row

    async def list_ids(self, _verifier_id: str | None) -> list[AgentId]:
        return [PASSING.agent_id]

    async def load(self, _wanted: Collection[AgentId]) -> list[AgentRecord]:
        return [await self.find(PASSING.agent_id)]

    def _happens(self, while_reading: str) -> None:
        if self._happenings and while_reading == self._while_reading:
            self._happenings.pop()(self)

    # As the policies

    async def text_hash(self, _kind: str, _name: str) -> TextHash:
        return TextHash("hash")

    async def text_hashes(self, _kind: str) -> dict[str, TextHash]:
        return {}

    async def number(self, _kind: str, _name: str) -> int | None:
        self._happens("versions")
        return 1

    async def numbers(self, _kind: str) -> dict[str, int]:
        self._happens("versions")
        return {}

    async def demands_ima(self, _text_hash: TextHash | None) -> bool:
        return True

    # As roster and recorder

    def current(self, _agent_id: AgentId) -> AgentRecord | None:
        return self.known

    def row_version(self, _agent_id: AgentId) -> RowVersion | None:
        return None if self.known is None else self.known.row_version

    def unwritten(self, _agent_id: AgentId) -> AgentRecord | None:
        return self.pending

    def waiting_verdict(self, _agent_id: AgentId) -> AgentRecord | None:
        return self.pending

    def is_settling(self, _agent_id: AgentId) -> bool:
        return self.settling > 0

    async def settle(self, _agent_id: AgentId | None = None) -> None:
        if self.settling:
            self.settling -= 1
            self.row, self.known, self.pending = REJECTED, None, None


def agents_in(world: World, rules: EnrolmentRules | None = None) -> Agents:
    return Agents(
        cast(AgentStore, world),
        cast(PolicyStore, world),
        cast(References, world),
        cast(Roster, world),
        cast(Recorder, world),
        cast(EnrolmentRules, rules),
        CADENCE,
        lambda: NOW,
    )


def shown(
    happening: Callable[[World], None],
    while_reading: str = "row",
    first: Callable[[World], None] = lambda _world: None,
) -> set[tuple[object, str | None]]:
    """What both ways of asking say; they must agree. `first` sets the world up."""

    async def ask() -> set[tuple[object, str | None]]:
        statuses = []
        for ask_all in (False, True):
            world = World(happening, while_reading)
            first(world)
            agents = agents_in(world)
            if ask_all:
                statuses += [status async for _, status in agents.show_all(None)]
            else:
                statuses.append(await agents.show(PASSING.agent_id))
        return {(status.operational_state, status.attestation_status) for status in statuses}

    return asyncio.run(ask())


def test_a_row_that_was_read_before_the_verdict_that_ended_the_polling_is_read_again() -> None:
    def happening(world: World) -> None:
        world.row, world.known = REJECTED, None

    assert shown(happening) == {(9, "FAIL")}


def test_what_is_polled_here_is_fresher_than_its_row() -> None:
    def happening(world: World) -> None:
        world.known = world.row = REJECTED

    assert shown(happening) == {(9, "FAIL")}


def test_a_verdict_that_is_not_written_is_pending() -> None:
    def happening(world: World) -> None:
        world.known = world.pending = REJECTED

    assert shown(happening) == {(9, "PENDING")}


def test_a_verdict_that_is_just_being_written_is_waited_for() -> None:
    def happening(world: World) -> None:
        world.known = world.pending = REJECTED
        world.settling = 1

    assert shown(happening) == {(9, "FAIL")}


def test_a_row_that_another_verifier_has_judged_meanwhile_is_what_counts() -> None:
    def happening(world: World) -> None:
        world.row = replace(REJECTED, recalls=1)

    def nothing(world: World) -> None:
        pass

    assert shown(nothing) == {(3, "PASS")}

    def before(world: World) -> None:
        world.row = replace(REJECTED, recalls=1)
        world.known = None

    assert shown(before) == {(9, "FAIL")}


def test_a_verdict_that_is_written_while_versions_are_looked_up_is_shown() -> None:
    def happening(world: World) -> None:
        world.row, world.known = REJECTED, None

    assert shown(happening, while_reading="versions") == {(9, "FAIL")}


def test_a_verdict_of_the_former_owner_that_is_written_while_the_row_is_read_is_shown() -> None:
    def taken_over(world: World) -> None:
        world.row = replace(PASSING, claim=theirs)
        world.known = world.pending = REJECTED

    def happening(world: World) -> None:
        world.row, world.pending = replace(REJECTED, claim=theirs), None

    theirs = ShardClaim(owner=MemberId("other"), epoch=PASSING.claim.epoch + 1)
    assert shown(happening, first=taken_over) == {(9, "FAIL")}


class Acted(World):
    """Where an operator acts: notes what is done in which order."""

    def __init__(self) -> None:
        super().__init__(lambda _world: None, "nothing")
        self.done: list[str] = []

    async def flush_one(self, agent_id: AgentId) -> None:
        self.done.append(f"write what waits of {agent_id}")

    async def begin_again(
        self, agent_id: AgentId, state: OperationalState, *, by: Actor | None = None
    ) -> AgentRecord:
        self.done.append(f"{agent_id} is {state.name}")
        return PASSING

    def drop(self, _agent_id: AgentId) -> None:
        self.done.append("drop")

    def adopt(self, _record: AgentRecord) -> None:
        self.done.append("adopt")


def test_before_an_operators_act_nothing_is_written_but_what_waits_of_its_agent() -> None:
    world = Acted()
    agents = agents_in(world)

    async def act() -> None:
        await agents.stop(PASSING.agent_id, by=None)
        await agents.reactivate(PASSING.agent_id, by=None)

    asyncio.run(act())
    first = f"write what waits of {PASSING.agent_id}"
    assert world.done == [
        first,
        f"{PASSING.agent_id} is TENANT_FAILED",
        "drop",
        first,
        f"{PASSING.agent_id} is START",
        "drop",
        "adopt",
    ]


class Stored(Acted):
    """Where agents are added and updated, with policies that come along."""

    def know(self, compiled: Mapping[TextHash, RuntimePolicy]) -> None:
        self.done.append(f"{len(compiled)} known")

    async def add(self, *_what: object, by: Actor | None) -> AgentRecord:
        self.done.append("stored")
        return self.row

    async def update(self, *_what: object, by: Actor | None, changes: object) -> AgentRecord:
        return await self.add(by=by)


def test_a_policy_that_comes_along_is_known_before_anybody_finds_the_agent_that_is_held_to_it() -> None:
    world = Stored()
    ak_tpm = base64.b64encode(attestation_key().tpm2b_public).decode()
    policy = base64.b64encode(EMPTY_POLICY.encode()).decode()
    enrolment = replace(ENROLMENT, ak_tpm=ak_tpm, mtls_cert=None, measured_boot_policy=None, runtime_parts=())
    world.row = replace(PASSING, enrolment=enrolment)
    agents = agents_in(
        world,
        EnrolmentRules(
            verifier_id=VerifierId("v"),
            verifier_ip="127.0.0.1",
            verifier_port=8881,
            require_mtls=False,
            require_policy_signatures=False,
            compile_boot_policy=lambda _text: None,
        ),
    )
    request = AddAgentRequest(
        tpm_policy="{}",
        metadata="{}",
        ima_sign_verification_keys="",
        revocation_key="",
        accept_tpm_hash_algs=["sha256"],
        accept_tpm_encryption_algs=["ecc"],
        accept_tpm_signing_algs=["ecdsa"],
        ak_tpm=ak_tpm,
        cloudagent_ip="127.0.0.1",
        cloudagent_port=9002,
        mb_policy=None,
        mb_policy_name=None,
        runtime_policy=policy,
    )

    async def act() -> None:
        await agents.add(PASSING.agent_id, request, by=None)
        await agents.update(PASSING.agent_id, UpdateAgentRequest(runtime_policy=policy), by=None)

    asyncio.run(act())
    waiting = f"write what waits of {PASSING.agent_id}"
    assert world.done == ["1 known", "stored", "adopt", "1 known", waiting, "stored", "drop", "adopt"]
