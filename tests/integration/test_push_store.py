"""What databases make of sessions, attestations and verdicts that meet; on every database."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec
import pytest
from msgspec.structs import replace

from keylime.appraisal.checkpoint import BootSession, Checkpoint
from keylime.appraisal.verdict import Accepted, AcceptedQuote, Incomplete, Rejected, Verdict
from keylime.database.engine import DatabaseUnavailable
from keylime.database.migrate import prepare_schema
from keylime.database.transactions import Database
from keylime.findings.finding import Finding
from keylime.findings.severity import SeverityPolicy
from keylime.identifiers import AgentId
from keylime.messages.push_evidence import (
    CertificationKey,
    QuoteCapabilities,
    QuoteData,
    QuoteParameters,
    ReceivedQuote,
)
from keylime.messages.verifier import OperationalState
from keylime_verifier.agents.deliveries import AGENT
from keylime_verifier.agents.lifecycle import Cadence
from keylime_verifier.agents.policy_categories import RUNTIME, TextHash
from keylime_verifier.agents.pushing import PushRules
from keylime_verifier.agents.records import AgentRecord, HeldVersions, Secrets
from keylime_verifier.agents.shards import SHARDS, MemberId
from keylime_verifier.database.schema import SCHEMA
from keylime_verifier.polling.fencing import Ruling
from keylime_verifier.polling.meter import Meter
from keylime_verifier.polling.store import AgentStore
from keylime_verifier.polling.unwritten import Unwritten
from keylime_verifier.pushing.attestation_rows import Attestation
from keylime_verifier.pushing.attestation_store import AttestationStore, Outdated
from keylime_verifier.pushing.journal import Judged, PushedVerdicts
from keylime_verifier.pushing.known_agents import CallingAgent, still_stands
from keylime_verifier.pushing.session_store import SessionStore
from keylime_verifier.pushing.sessions import (
    ACTIVE,
    PENDING,
    PushSession,
    SessionLimits,
    StoredToken,
)
from tests.fakes.databases import KINDS, SERVERS, DatabaseServer
from tests.fakes.running_verifier import revocation_key_pem
from tests.fakes.statements import execute, opened, rows_of
from tests.unit.verifier.test_status import ENROLMENT

NOW = 1_900_000_000.0
PUSHING = replace(
    ENROLMENT, runtime_policy="policy", ip="", port=0, has_v=False, ak_tpm="the key", is_pushing=True
)
AGENT_ID = PUSHING.agent_id
LIMITS = SessionLimits(
    challenge_s=60,
    token_s=180,
    extends=True,
    per_address=4,
    address_window_s=60,
    per_agent=2,
    agent_window_s=60,
)
RULES = PushRules(
    Cadence(quote_interval_s=2, retry_interval_s=2, max_retries=3, exponential_backoff=False),
    SeverityPolicy(("info", "emergency"), ({"event_id": ".*", "severity_label": "emergency"},)),
    recovers=False,
)
TOKEN = StoredToken("00" * 16, "11" * 32)
BOOT = BootSession(reset_count=1, restart_count=0, clock=1, boottime=1)
PASS = Accepted(
    Checkpoint(boot=BOOT), AcceptedQuote(hash_alg="sha256", encryption_alg="ecc256", signing_alg="ecdsa")
)
FAIL = Rejected(
    (Finding("ima.x", {"message": "bad"}, recoverable=True, explanation="bad"),), Checkpoint.fresh()
)
KEY = CertificationKey(
    key_class="asymmetric",
    key_algorithm="ecc",
    key_size=256,
    server_identifier="ak",
    local_identifier="000b",
    public="AA==",
)
ITEM = ReceivedQuote(
    capabilities=QuoteCapabilities(
        component_version="2.0",
        signature_schemes=["ecdsa", "\N{LOCK}\x00'\\"],
        hash_algorithms=["sha256"],
        available_subjects={"sha256": [10]},
        certification_keys=[KEY],
    ),
    chosen_parameters=QuoteParameters(
        signature_scheme="ecdsa",
        challenge="AAAA",
        hash_algorithm="sha256",
        selected_subjects={"sha256": [10]},
        certification_key=KEY,
    ),
)
SHOWN = msgspec.structs.replace(ITEM, data=QuoteData(subject_data="AA==", message="AA==", signature="AA=="))


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.sqlite'}"
    server: DatabaseServer = request.getfixturevalue(SERVERS[request.param])
    return server.new_database()


class Hesitant(AgentStore):
    """Its database is away for some of the next reads."""

    failures = 0
    before_find: Callable[[], Awaitable[None]] | None = None

    def _fail(self) -> None:
        if self.failures:
            self.failures -= 1
            raise DatabaseUnavailable("database: cannot do as the test says")

    async def find(self, agent_id: AgentId) -> AgentRecord | None:
        self._fail()
        if self.before_find is not None:
            await self.before_find()
        return await super().find(agent_id)

    async def secrets_of(self, agent_id: AgentId) -> Secrets | None:
        self._fail()
        return await super().secrets_of(agent_id)


@dataclass
class Verifier:
    """One of several on the same database."""

    database: Database
    me: MemberId

    def __post_init__(self) -> None:
        self.agents = Hesitant(self.database)
        self.sessions = SessionStore(self.database, LIMITS)
        self.attestations = AttestationStore(self.database)
        self.told = 0
        self.journal = PushedVerdicts(
            self.database,
            self.agents,
            RULES,
            token_s=LIMITS.token_s,
            targets=lambda: [(AGENT, "*")],
            on_revocation=self._tell,
            lateness=Unwritten(),
            meter=Meter(),
            now=lambda: NOW,
            on_written=self.attestations.judged,
        )

    def _tell(self) -> None:
        self.told += 1

    async def record(self) -> AgentRecord:
        found = await self.agents.find(AGENT_ID)
        assert found is not None
        return found

    async def judge(
        self, record: AgentRecord, number: int, verdict: Verdict, held_to: HeldVersions
    ) -> Ruling:
        return await self.journal.judged(
            Judged(record=record, number=number, verdict=verdict, held_to=held_to)
        )


@dataclass
class Scene:
    """Two verifiers, of which `one` owns all shards, and an agent that attests by itself."""

    one: Verifier
    other: Verifier
    held_to: HeldVersions

    @property
    def both(self) -> tuple[Verifier, Verifier]:
        return self.one, self.other

    async def rows(self, query: str) -> list[tuple[object, ...]]:
        return [tuple(row) for row in await rows_of(self.one.database, query)]

    async def negotiated(self, number: int) -> Attestation:
        attestation = offered(number, (await self.one.record()).generation)
        assert await self.one.attestations.negotiate(attestation)
        return attestation

    async def stage(self, number: int) -> tuple[object, ...]:
        (found,) = await self.rows(
            f"SELECT stage, evaluation FROM push_attestations WHERE number = {number}"  # noqa: S608
        )
        return found


def offered(number: int, generation: str) -> Attestation:
    return Attestation(
        agent_id=AGENT_ID,
        number=number,
        generation=generation,
        boot_time=NOW - 1000,
        received_at=NOW,
        expires_at=NOW + 1800,
        items=(ITEM,),
    )


def session(
    number: int, agent_id: str = AGENT_ID, *, network: str = "192.0.2.0/24", at: float = NOW
) -> PushSession:
    return PushSession(
        session_id=f"00000000-0000-4000-8000-{number:012}",
        agent_id=agent_id,
        state=PENDING,
        challenge=bytes(range(16)),
        created_at=at,
        address=f"{network}/{number // 100}",
        network=network,
    )


def play(url: str, act: Callable[[Scene], Awaitable[None]]) -> None:
    async def run() -> None:
        async with AsyncExitStack() as stack:
            databases = [opened(url), opened(url)]
            for database in databases:
                stack.push_async_callback(database.close)
            one, other = (
                Verifier(database, MemberId(name))
                for database, name in zip(databases, ("one", "other"), strict=True)
            )
            await prepare_schema(one.database, SCHEMA, migrate=True)
            await execute(
                one.database,
                "INSERT INTO shards VALUES (:verifier, :shard, 'one', 7)",
                parameters=[{"verifier": PUSHING.verifier_id, "shard": shard} for shard in range(SHARDS)],
            )
            await one.agents.add(
                PUSHING, Secrets(None, revocation_key_pem()), "2.6", {(RUNTIME, "policy"): "{}"}
            )
            hashes = await rows_of(one.database, "SELECT content_hash FROM policies")
            held_to = HeldVersions(hashes[0][0])
            writers = [asyncio.create_task(verifier.journal.run()) for verifier in (one, other)]
            try:
                await act(Scene(one, other, held_to))
            finally:
                for writer in writers:
                    writer.cancel()
                await asyncio.gather(*writers, return_exceptions=True)

    asyncio.run(run())


def test_the_calls_of_one_session_may_meet_different_verifiers_and_one_proof_counts(url: str) -> None:
    async def act(scene: Scene) -> None:
        for number in (1, 2):
            assert await scene.one.sessions.begin(session(number), NOW) is None
        found = await scene.other.sessions.find(session(1).session_id)
        assert found == session(1)
        proofs = [
            verifier.sessions.prove(session(1), TOKEN, "hash", NOW + 180, PUSHING.ak_tpm)
            for verifier in (*scene.both, *scene.both)
        ]
        assert sorted(await asyncio.gather(*proofs)) == [False, False, False, True]
        assert not await scene.other.sessions.prove(session(2), TOKEN, "hash", NOW + 180, "another key")
        assert await scene.other.sessions.fail(session(2).session_id)
        assert not await scene.one.sessions.fail(session(2).session_id), "it is over once"
        proven = await scene.other.sessions.find(session(1).session_id)
        assert proven is not None
        assert (proven.state, proven.token_hash, proven.key_hash) == (ACTIVE, TOKEN.digest, "hash")

    play(url, act)


def test_of_two_proofs_at_once_one_ends_the_other(url: str) -> None:
    async def act(scene: Scene) -> None:
        for number in range(0, 16, 2):
            for one in (number, number + 1):
                assert await scene.one.sessions.begin(session(100 * one), NOW + 100 * one) is None
            await asyncio.gather(
                scene.one.sessions.prove(session(100 * number), TOKEN, "a", NOW, PUSHING.ak_tpm),
                scene.other.sessions.prove(session(100 * number + 100), TOKEN, "b", NOW, PUSHING.ak_tpm),
            )
            assert await scene.rows("SELECT count(*) FROM push_sessions WHERE state = 'active'") == [(1,)]

    play(url, act)


def test_what_is_begun_is_counted_by_all_and_makes_room_where_it_comes_from(url: str) -> None:
    async def act(scene: Scene) -> None:
        earlier = NOW - 20
        assert await scene.one.sessions.begin(session(1, at=earlier), earlier) is None
        assert await scene.other.sessions.begin(session(2, at=earlier), earlier) is None
        refused = await scene.one.sessions.begin(session(3), NOW)
        assert refused is not None
        assert refused.wait_s == 40, "until the first of two for the agent counts no more"
        assert await scene.one.sessions.begin(session(3, "b"), NOW) is None
        assert await scene.other.sessions.begin(session(4, "c"), NOW) is None
        refused = await scene.other.sessions.begin(session(5, "d"), NOW)
        assert refused is not None
        assert refused.wait_s == 40, "and until the first of four from the address does"
        assert await scene.other.sessions.begin(session(600, "d"), NOW) is None, "another address"
        small = SessionStore(scene.one.database, LIMITS, most_unproven=7)
        for number in (700, 800, 900):
            elsewhere = session(number, f"stranger-{number}", network="198.51.100.0/24")
            assert await small.begin(elsewhere, NOW) is None
        networks = "SELECT network, count(*) FROM push_sessions GROUP BY network ORDER BY network"
        assert await scene.rows(networks) == [("192.0.2.0/24", 4), ("198.51.100.0/24", 3)]
        await scene.other.sessions.prune(NOW + 45)
        assert (await scene.rows(networks))[0] == ("192.0.2.0/24", 3), "who counts no more is forgotten"

    play(url, act)


def test_n15_what_is_being_proven_stays_however_many_networks_strangers_have(url: str) -> None:
    async def act(scene: Scene) -> None:
        small = SessionStore(scene.one.database, LIMITS, most_unproven=6)
        for number in range(6):
            at = NOW - 30 + number
            stranger = session(1000 + number, f"stranger-{number}", network=f"net-{number}", at=at)
            assert await small.begin(stranger, at) is None
        mine = [session(number, f"agent-{number}", at=NOW - 4 + number) for number in (1, 2, 3)]
        for one in mine:
            assert await small.begin(one, one.created_at) is None
        assert await small.begin(session(2000, "late", network="net-late"), NOW) is None
        for one in mine:
            assert await small.find(one.session_id) is not None, "three agents behind one address, just now"
        left = await scene.rows("SELECT agent_id FROM push_sessions WHERE agent_id LIKE 'stranger%'")
        assert sorted(left) == [("stranger-4",), ("stranger-5",)], "of networks with one the oldest goes"
        await small.fail(mine[0].session_id)
        later = NOW + 1
        assert await small.begin(session(2001, "later", network="net-later", at=later), later) is None
        kept = [one.agent_id for one in mine if await small.find(one.session_id) is not None]
        assert kept == ["agent-2", "agent-3"], "what has failed is not being proven"

    play(url, act)


def test_of_two_negotiations_at_once_one_counts_and_ends_the_one_before(url: str) -> None:
    async def act(scene: Scene) -> None:
        generation = (await scene.one.record()).generation
        for number in range(8):
            same = offered(number, generation)
            done = await asyncio.gather(
                *(one.attestations.negotiate(same) for one in (*scene.both, *scene.both))
            )
            assert sorted(done) == [False, False, False, True]
            assert await scene.rows("SELECT number FROM push_attestations") == [(number,)]
        found = await scene.other.attestations.of_agent(AGENT_ID)
        assert found == [offered(7, generation)], "what was offered is kept as it came"

    play(url, act)


def test_evidence_is_taken_once_and_what_nobody_judged_ends_without_a_verdict(url: str) -> None:
    async def act(scene: Scene) -> None:
        for number in range(8):
            attestation = await scene.negotiated(number)
            taken = await asyncio.gather(
                *(
                    one.attestations.receive(attestation, [SHOWN], NOW + number)
                    for one in (*scene.both, *scene.both)
                )
            )
            received = [one for one in taken if one is not None]
            assert [one.items for one in received] == [(SHOWN,)]
            found = await scene.other.attestations.look(AGENT_ID, "no session")
            seen = [replace(one, items=()) for one in received]
            assert ([found.latest], found.session, found.next_number) == (seen, None, number + 1)
        assert await scene.other.attestations.give_up(NOW + 7, NOW + 9) == 7
        assert await scene.stage(6) == ("verification_complete", "pending")
        assert await scene.stage(7) == ("evaluating_evidence", "pending")
        assert await scene.one.attestations.give_up(NOW + 7, NOW + 9) == 0
        record = await scene.one.record()
        assert await scene.one.judge(record, 6, PASS, scene.held_to) is Ruling.COUNTS
        assert await scene.stage(6) == ("verification_complete", "pass"), "a verdict that came yet"
        await scene.one.attestations.prune(NOW + 1)
        assert [row[0] for row in await scene.rows("SELECT number FROM push_attestations")] == [7]

    play(url, act)


def test_of_a_pass_and_a_failure_that_meet_the_failure_stays(url: str) -> None:
    async def act(scene: Scene) -> None:
        first = await scene.negotiated(0)
        await scene.one.attestations.receive(first, [SHOWN], NOW)
        second = await scene.negotiated(1)
        await scene.other.attestations.receive(second, [SHOWN], NOW)
        record = await scene.one.record()
        rulings = await asyncio.gather(
            scene.one.judge(record, 0, FAIL, scene.held_to),
            scene.other.judge(record, 1, PASS, scene.held_to),
        )
        assert set(rulings) == {Ruling.COUNTS}
        after = await scene.other.record()
        assert after.progress.operational_state is OperationalState.INVALID_QUOTE
        assert (after.progress.attestation_count, after.recalls) == (1, 2)
        assert await scene.stage(0) == ("verification_complete", "fail")
        assert await scene.stage(1) == ("verification_complete", "pass")
        assert await scene.rows("SELECT count(*) FROM revocations") == [(1,)]
        assert scene.one.told + scene.other.told == 1

    play(url, act)


def test_what_two_judge_counts_once(url: str) -> None:
    async def act(scene: Scene) -> None:
        for number in range(4):
            await scene.one.attestations.receive(await scene.negotiated(number), [SHOWN], NOW)
            record = await scene.one.record()
            rulings = await asyncio.gather(
                *(one.judge(record, number, PASS, scene.held_to) for one in (*scene.both, *scene.both))
            )
            assert sorted(ruling.name for ruling in rulings) == ["COUNTS", "KNOWN", "KNOWN", "KNOWN"]
            after = await scene.other.record()
            assert after.progress.attestation_count == number + 1
            assert after.push is not None
            assert after.push.judged == number
        assert [row[0] for row in await scene.rows("SELECT number FROM push_attestations")] == [0, 3]

    play(url, act)


def test_failures_that_meet_are_told_once(url: str) -> None:
    async def act(scene: Scene) -> None:
        for number in (0, 1):
            await scene.one.attestations.receive(await scene.negotiated(number), [SHOWN], NOW)
        record = await scene.one.record()
        await asyncio.gather(
            *(one.judge(record, number, FAIL, scene.held_to) for number in (0, 1) for one in scene.both)
        )
        assert await scene.rows("SELECT count(*) FROM revocations") == [(1,)]
        assert await scene.stage(0) == await scene.stage(1) == ("verification_complete", "fail")

    play(url, act)


def test_no_failure_is_lost_when_the_database_is_away_for_what_its_notice_needs(url: str) -> None:
    async def act(scene: Scene) -> None:
        for number in (0, 1):
            await scene.one.attestations.receive(await scene.negotiated(number), [SHOWN], NOW)
        record = await scene.one.record()
        assert await scene.one.judge(record, 1, PASS, scene.held_to) is Ruling.COUNTS
        scene.one.agents.failures = 2  # of the key that signs the notice, and of the agent, judged meanwhile
        assert await scene.one.judge(record, 0, FAIL, scene.held_to) is Ruling.COUNTS
        assert scene.one.agents.failures == 0
        assert await scene.stage(0) == ("verification_complete", "fail")
        assert await scene.rows("SELECT count(*) FROM revocations") == [(1,)]

    play(url, act)


def test_a_verdict_that_comes_after_a_later_one_is_shown_with_its_own_attestation(url: str) -> None:
    async def act(scene: Scene) -> None:
        for number in range(3):
            await scene.one.attestations.receive(await scene.negotiated(number), [SHOWN], NOW)
        record = await scene.one.record()
        assert await scene.one.judge(record, 2, PASS, scene.held_to) is Ruling.COUNTS
        after = await scene.other.record()
        assert await scene.stage(0) == await scene.stage(1) == ("evaluating_evidence", "pending")
        assert await scene.other.judge(after, 0, PASS, scene.held_to) is Ruling.KNOWN
        no_verdict = Incomplete("the machine was started anew", Checkpoint.fresh())
        assert await scene.other.judge(after, 1, no_verdict, scene.held_to) is Ruling.KNOWN
        assert await scene.stage(0) == ("verification_complete", "pass")
        assert await scene.stage(1) == ("verification_complete", "pending")
        assert await scene.stage(2) == ("verification_complete", "pass")
        assert await scene.one.record() == after, "of the agent nothing has changed"
        assert await scene.other.judge(after, 2, no_verdict, scene.held_to) is Ruling.KNOWN
        assert await scene.stage(2) == ("verification_complete", "pass"), "what has ended stays as it is"

    play(url, act)


def test_what_cannot_be_judged_ends_without_a_verdict_and_is_no_silence(url: str) -> None:
    async def act(scene: Scene) -> None:
        await scene.one.attestations.receive(await scene.negotiated(0), [SHOWN], NOW)
        assert await scene.one.judge(await scene.one.record(), 0, PASS, scene.held_to) is Ruling.COUNTS
        later = NOW + RULES.longest_pause_s + 2
        await scene.one.attestations.receive(await scene.negotiated(1), [SHOWN], later - 5)
        record = await scene.one.record()
        await scene.other.journal.unjudged(record, 1)
        assert await scene.stage(1) == ("verification_complete", "pending")
        assert await scene.one.record() == record
        for number in (0, 1):
            await scene.other.journal.unjudged(record, number)
        assert await scene.stage(0) == ("verification_complete", "pass"), "what has ended stays as it is"
        assert await scene.one.attestations.overdue(MemberId("one"), later, 10) == [], "it has attested"
        assert await scene.one.attestations.overdue(MemberId("one"), later, 4) == [record]

    play(url, act)


def test_a_verdict_about_an_agent_that_was_reactivated_meanwhile_ends_its_attestation(url: str) -> None:
    async def act(scene: Scene) -> None:
        for number in (0, 1):
            await scene.one.attestations.receive(await scene.negotiated(number), [SHOWN], NOW)
        record = await scene.one.record()
        assert await scene.one.judge(record, 0, PASS, scene.held_to) is Ruling.COUNTS

        async def reactivate() -> None:
            await scene.one.agents.begin_again(AGENT_ID, OperationalState.START)

        # Of the verdict before it this one learns when it is written, of the act at the look after that.
        scene.other.agents.before_find = reactivate
        assert await scene.other.judge(record, 1, FAIL, scene.held_to) is Ruling.ENROLLED_ANEW
        assert await scene.stage(1) == ("verification_complete", "pending")
        assert (await scene.one.record()).progress.operational_state is OperationalState.START

    play(url, act)


def test_verdicts_of_another_enrolment_or_other_policies_do_not_count(url: str) -> None:
    async def act(scene: Scene) -> None:
        await scene.one.attestations.receive(await scene.negotiated(0), [SHOWN], NOW)
        record = await scene.one.record()
        other = HeldVersions(TextHash("another"))
        assert await scene.other.judge(record, 0, FAIL, other) is Ruling.POLICIES_REPLACED
        assert await scene.stage(0) == ("verification_complete", "pending")
        await scene.one.agents.begin_again(AGENT_ID, OperationalState.START)
        for verdict in (PASS, FAIL):
            assert await scene.other.judge(record, 0, verdict, scene.held_to) is Ruling.ENROLLED_ANEW
        await scene.one.agents.delete(AGENT_ID)
        assert await scene.other.judge(record, 0, FAIL, scene.held_to) in (
            Ruling.ENROLLED_ANEW,
            Ruling.DELETED,
        )
        assert await scene.rows("SELECT count(*) FROM revocations") == [(0,)]

    play(url, act)


def test_a_pass_lengthens_the_token_that_there_is_and_never_shortens_it(url: str) -> None:
    async def act(scene: Scene) -> None:
        for number, ends in ((100, NOW + 1), (200, NOW + 1000)):
            assert await scene.one.sessions.begin(session(number), NOW) is None
            assert await scene.other.sessions.prove(session(number), TOKEN, "a", ends, PUSHING.ak_tpm)
            attestation = await scene.negotiated(number // 100 - 1)
            await scene.one.attestations.receive(attestation, [SHOWN], NOW)
            record = await scene.one.record()
            assert await scene.one.judge(record, attestation.number, PASS, scene.held_to) is Ruling.COUNTS
            found = await scene.other.sessions.find(session(number).session_id)
            assert found is not None
            assert found.token_expires_at == max(ends, NOW + LIMITS.token_s)
        await scene.other.sessions.prune(NOW + 1000 + 3599)
        assert await scene.other.sessions.find(session(200).session_id) is not None, (
            "for long it is called over"
        )
        await scene.other.sessions.prune(NOW + 1000 + 3601)
        assert await scene.other.sessions.find(session(200).session_id) is None

    play(url, act)


def test_silence_is_told_once_by_the_owner_of_the_shard(url: str) -> None:
    async def act(scene: Scene) -> None:
        await scene.one.attestations.receive(await scene.negotiated(0), [SHOWN], NOW)
        assert await scene.one.judge(await scene.one.record(), 0, PASS, scene.held_to) is Ruling.COUNTS
        later = NOW + RULES.longest_pause_s + 2
        overdue = scene.other.attestations.overdue
        assert await overdue(MemberId("one"), NOW, 10) == []
        assert await overdue(MemberId("other"), later, 10) == []
        await scene.one.attestations.receive(await scene.negotiated(1), [SHOWN], later - 5)
        assert await overdue(MemberId("one"), later, 10) == [], "its evidence waits here"
        (silent,) = await overdue(MemberId("one"), later, 4)
        assert silent == await scene.one.record()
        heard = await scene.one.journal.overdue([silent], later - 10)
        assert heard == [Ruling.RECALLED], "evidence came after it was found to be silent"
        tellers = (*scene.both, *scene.both)
        rulings = await asyncio.gather(*(one.journal.overdue([silent], later - 4) for one in tellers))
        assert rulings.count([Ruling.COUNTS]) == 1
        after = await scene.other.record()
        assert after.progress.operational_state is OperationalState.FAILED
        assert await overdue(MemberId("one"), later, 4) == []
        await execute(scene.one.database, "UPDATE shards SET owner = 'other', epoch = 8")
        assert await scene.one.journal.overdue([after], later - 4) == [Ruling.TAKEN_OVER]
        assert await scene.rows("SELECT count(*) FROM revocations") == [(1,)]

    play(url, act)


def test_many_that_are_silent_are_told_of_together_beside_what_is_judged_elsewhere(url: str) -> None:
    async def act(scene: Scene) -> None:
        ids = [AgentId(f"silent-{number}") for number in range(20)]
        for agent_id in ids:
            enrolment = replace(PUSHING, agent_id=agent_id)
            await scene.one.agents.add(enrolment, Secrets(None, revocation_key_pem()), "2.6", {})
        passing = f"UPDATE agents SET operational_state = {int(OperationalState.GET_QUOTE)}"  # noqa: S608
        await execute(scene.one.database, passing, f"UPDATE pushing SET deadline = {NOW - 10}")  # noqa: S608
        silent = await scene.one.attestations.overdue(MemberId("one"), NOW, 10)
        assert {record.agent_id for record in silent} == {*ids, AGENT_ID}
        judged = [record for record in silent if record.agent_id != AGENT_ID]
        telling = asyncio.create_task(scene.one.journal.overdue(silent, NOW))
        others = await asyncio.gather(
            *(scene.other.judge(record, 0, FAIL, scene.held_to) for record in reversed(judged))
        )
        rulings = await telling
        assert others == [Ruling.COUNTS] * len(judged), "what failed did, whatever else was told"
        states = await scene.rows("SELECT agent_id, operational_state FROM agents ORDER BY agent_id")
        failed = int(OperationalState.INVALID_QUOTE)
        assert states == [(AGENT_ID, int(OperationalState.FAILED)), *((one, failed) for one in sorted(ids))]
        told = rulings.count(Ruling.COUNTS)
        assert set(rulings) <= {Ruling.COUNTS, Ruling.RECALLED}
        assert await scene.rows("SELECT count(*) FROM revocations") == [(told + len(judged),)]

    play(url, act)


def test_of_silence_nothing_is_told_when_the_database_is_away_for_what_its_notice_needs(url: str) -> None:
    async def act(scene: Scene) -> None:
        await scene.one.attestations.receive(await scene.negotiated(0), [SHOWN], NOW)
        assert await scene.one.judge(await scene.one.record(), 0, PASS, scene.held_to) is Ruling.COUNTS
        record = await scene.one.record()
        scene.one.agents.failures = 1
        with pytest.raises(DatabaseUnavailable):
            await scene.one.journal.overdue([record], NOW)
        assert await scene.one.record() == record
        assert await scene.one.journal.overdue([record], NOW) == [Ruling.COUNTS]

    play(url, act)


def test_what_is_remembered_counts_only_as_long_as_it_is_so(url: str) -> None:
    async def act(scene: Scene) -> None:
        store, token = scene.one.attestations, session(100)
        assert await scene.one.sessions.begin(token, NOW) is None
        assert await scene.one.sessions.prove(token, TOKEN, "hash", NOW + 180, PUSHING.ak_tpm)

        def known() -> CallingAgent:
            found = store.remembered(AGENT_ID)
            assert found is not None
            return found

        number = 0
        for change in (
            f"UPDATE push_sessions SET token_hash = '{64 * '2'}'",  # noqa: S608 - made here
            "UPDATE push_sessions SET token_expires_at = token_expires_at - 1",
            "UPDATE push_sessions SET state = 'failed'",
            "UPDATE pushing SET next_number = next_number + 1",
            "UPDATE progress SET recalls = recalls + 1",
            "UPDATE progress SET incarnation = 'another'",
            "UPDATE policies SET content_hash = content_hash, name = 'another'",
            "UPDATE push_attestations SET evidence_at = evidence_at + 1",
            "UPDATE push_attestations SET expires_at = expires_at - 1",
            "UPDATE push_attestations SET stage = 'verification_complete'",
            "DELETE FROM push_sessions",
        ):
            await store.look(AGENT_ID, token.session_id)
            remembered = known()
            number = remembered.next_number or 0
            generation = "" if remembered.record is None else remembered.record.generation
            attestation = offered(number, generation)
            assert await store.negotiate(attestation, remembered), "it is so"
            remembered = known()
            assert remembered.latest == attestation
            received = await store.receive(attestation, [SHOWN], NOW, remembered=remembered)
            assert received is not None
            remembered = known()
            found = await scene.other.attestations.look(AGENT_ID, token.session_id)
            assert still_stands(remembered, found)
            await execute(scene.other.database, change)
            with pytest.raises(Outdated):
                await store.negotiate(offered(number + 1, generation), remembered)
            assert store.remembered(AGENT_ID) is None, "it is not tried again"
            last = (await scene.rows("SELECT max(number) FROM push_attestations"))[0][0]
            assert last == number, change
            again = f"UPDATE pushing SET next_number = {number + 1}"  # noqa: S608 - a number of ours
            await execute(scene.other.database, again)
            await execute(scene.other.database, "UPDATE push_sessions SET state = 'active'")

    play(url, act)


def test_evidence_for_what_was_superseded_elsewhere_is_not_taken_from_memory(url: str) -> None:
    async def act(scene: Scene) -> None:
        store, token = scene.one.attestations, session(100)
        assert await scene.one.sessions.begin(token, NOW) is None
        assert await scene.one.sessions.prove(token, TOKEN, "hash", NOW + 180, PUSHING.ak_tpm)
        await store.look(AGENT_ID, token.session_id)
        first = await scene.negotiated(0)
        remembered = store.remembered(AGENT_ID)
        second = offered(1, first.generation)
        assert await scene.other.attestations.negotiate(second)
        with pytest.raises(Outdated):
            await store.receive(first, [SHOWN], NOW, remembered=remembered)
        assert await scene.rows("SELECT number, stage FROM push_attestations") == [(1, "awaiting_evidence")]
        found = await store.look(AGENT_ID, token.session_id)
        assert found.latest == second

    play(url, act)


def test_many_agents_share_transactions_of_verifiers_that_meet(url: str) -> None:
    async def act(scene: Scene) -> None:
        ids = [f"agent-{number}" for number in range(24)]
        for agent_id in ids:
            enrolment = replace(PUSHING, agent_id=AgentId(agent_id))
            await scene.one.agents.add(enrolment, Secrets(None, ""), "2.6", {})
        records = {one.agent_id: one for one in await scene.one.agents.load([AgentId(one) for one in ids])}

        async def attest(verifier: Verifier, agent_id: str, number: int) -> Ruling:
            record = records[AgentId(agent_id)]
            attestation = replace(offered(number, record.generation), agent_id=agent_id)
            assert await verifier.attestations.negotiate(attestation)
            assert await verifier.attestations.receive(attestation, [SHOWN], NOW) is not None
            verdict = FAIL if number == 2 and agent_id in ids[:8] else PASS
            return await verifier.judge(record, number, verdict, scene.held_to)

        for number in range(4):
            rulings = await asyncio.gather(
                *(attest(scene.both[place % 2], agent_id, number) for place, agent_id in enumerate(ids))
            )
            assert set(rulings) == {Ruling.COUNTS}
        states = {
            one.agent_id: (one.progress.operational_state, one.progress.attestation_count)
            for one in await scene.other.agents.load([AgentId(one) for one in ids])
        }
        failed, passing = OperationalState.INVALID_QUOTE, OperationalState.GET_QUOTE
        assert states == {one: (failed, 3) if one in ids[:8] else (passing, 4) for one in ids}
        assert await scene.rows("SELECT count(*) FROM revocations") == [(8,)]

    play(url, act)


def test_verifiers_that_ask_and_hear_the_same_agents_crosswise_do_not_wait_for_each_other(url: str) -> None:
    async def act(scene: Scene) -> None:
        ids = [AgentId("first"), AgentId("second")]
        for agent_id in ids:
            await scene.one.agents.add(replace(PUSHING, agent_id=agent_id), Secrets(None, ""), "2.6", {})
        generations = [one.generation for one in await scene.one.agents.load(ids)]
        stores = [verifier.attestations for verifier in scene.both]

        async def negotiate(number: int) -> list[Attestation]:
            given = [
                replace(offered(number, generation), agent_id=agent_id)
                for agent_id, generation in zip(ids, generations, strict=True)
            ]
            calls = (store.negotiate(one) for store, one in zip(stores, given, strict=True))
            assert await asyncio.gather(*calls) == [True, True]
            return given

        for number in range(0, 10, 2):
            # What comes right after these is written together by each of the two.
            first, second = await negotiate(number)
            next_first, next_second = (replace(one, number=number + 1) for one in (first, second))
            results = await asyncio.gather(
                stores[0].negotiate(next_second),
                stores[0].receive(first, [SHOWN], NOW),
                stores[1].negotiate(next_first),
                stores[1].receive(second, [SHOWN], NOW),
            )
            assert all(results[0::2])

    play(url, act)


def test_a_row_that_the_database_refuses_takes_no_other_with_it(url: str) -> None:
    async def act(scene: Scene) -> None:
        ids = [f"agent-{number}" for number in range(3)]
        for agent_id in ids:
            enrolment = replace(PUSHING, agent_id=AgentId(agent_id))
            await scene.one.agents.add(enrolment, Secrets(None, ""), "2.6", {})
        await scene.negotiated(0)  # the next transaction begins after it
        refused, *others = (replace(offered(0, "generation"), agent_id=agent_id) for agent_id in ids)
        refused = replace(refused, boot_time=cast(float, None))
        written = (scene.one.attestations.negotiate(one) for one in (refused, *others))
        results = await asyncio.gather(*written, return_exceptions=True)
        assert isinstance(results[0], DatabaseUnavailable)
        assert results[1:] == [True, True]
        stored = await scene.rows(
            "SELECT agent_id FROM push_attestations WHERE generation = 'generation' ORDER BY agent_id"
        )
        assert stored == [(agent_id,) for agent_id in ids[1:]]

    play(url, act)


def test_of_what_shares_a_transaction_each_counts_once_for_its_agent(url: str) -> None:
    async def act(scene: Scene) -> None:
        store = scene.one.attestations
        found: list[CallingAgent] = []
        for number in range(3):
            agent_id = AgentId(f"agent-{number}")
            await scene.one.agents.add(replace(PUSHING, agent_id=agent_id), Secrets(None, ""), "2.6", {})
            proven = session(number, agent_id)
            await scene.one.sessions.begin(proven, NOW)
            assert await scene.one.sessions.prove(proven, TOKEN, "hash", NOW + 180, PUSHING.ak_tpm)
            found.append(await store.look(agent_id, proven.session_id))
        await scene.negotiated(0)  # the next transaction begins after it

        async def negotiate(known: CallingAgent) -> bool:
            assert known.record is not None
            attestation = replace(offered(0, known.record.generation), agent_id=known.record.agent_id)
            return await store.negotiate(attestation, known, supersedes=False)

        results = await asyncio.gather(*map(negotiate, [*found, found[1]]), return_exceptions=True)
        assert results[:3] == [True, True, True]
        assert isinstance(results[3], Outdated)
        await scene.negotiated(1)

        async def receive(known: CallingAgent) -> Attestation | None:
            assert known.record is not None
            assert known.session is not None
            remembered = await store.look(known.record.agent_id, known.session.session_id)
            assert remembered.latest is not None
            return await store.receive(remembered.latest, [SHOWN], NOW, remembered=remembered)

        received = await asyncio.gather(*map(receive, found))
        assert all(one is not None for one in received)
        stages = await scene.rows("SELECT stage FROM push_attestations WHERE agent_id LIKE 'agent-%'")
        assert stages == [("evaluating_evidence",)] * 3

    play(url, act)
