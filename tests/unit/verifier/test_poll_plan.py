"""What the reconciler plans: whom it drops, holds to other policies, adopts, and puts off."""

from keylime.identifiers import AgentId
from keylime_verifier.agents.policy_categories import TextHash
from keylime_verifier.agents.records import AgentVersion, HeldVersions, RowVersion
from keylime_verifier.sharing.poll_plan import PollPlan, adoption_spread_s, plan_polls, still_unreadable

A, B, C = AgentId("a"), AgentId("b"), AgentId("c")
OLD, NEW = RowVersion("g1", 1, 0), RowVersion("g2", 1, 0)
POLICIES = HeldVersions(TextHash("r"), TextHash("b"))


def stored(**rows: RowVersion) -> dict[AgentId, AgentVersion]:
    return {AgentId(name): AgentVersion(row, POLICIES) for name, row in rows.items()}


def plan(
    rows: dict[AgentId, AgentVersion],
    polled: dict[AgentId, RowVersion],
    *,
    touched: tuple[AgentId, ...] = (),
    unreadable: dict[AgentId, RowVersion] | None = None,
    waiting: tuple[AgentId, ...] = (),
) -> PollPlan:
    return plan_polls(
        rows, polled, touched=touched, unreadable=unreadable or {}, waits=lambda agent_id: agent_id in waiting
    )


def test_what_is_as_it_was_is_only_held_to_its_policies() -> None:
    assert plan(stored(a=OLD), {A: OLD}) == PollPlan(frozenset(), {A: POLICIES}, (), frozenset())


def test_what_is_new_or_changed_is_adopted_and_what_is_gone_dropped() -> None:
    found = plan(stored(a=NEW, b=OLD), {A: OLD, C: OLD})
    assert (found.drop, found.adopt) == (frozenset({C}), (A, B))


def test_what_an_operator_added_meanwhile_is_not_dropped() -> None:
    assert plan({}, {A: OLD, B: OLD}, touched=(B,)).drop == {A}


def test_what_cannot_be_read_is_not_read_again_before_it_changes() -> None:
    assert plan(stored(a=OLD), {}, unreadable={A: OLD}).adopt == ()
    assert plan(stored(a=NEW), {}, unreadable={A: OLD}).adopt == (A,)


def test_whose_verdict_waits_is_adopted_later() -> None:
    found = plan(stored(a=NEW, b=OLD), {}, waiting=(A, C))
    assert (found.adopt, found.put_off) == ((B,), frozenset({A}))


def test_large_takeovers_are_spread_as_far_as_is_allowed() -> None:
    assert adoption_spread_s(0, 30.0) == 0.0
    assert adoption_spread_s(500, 30.0) == 1.0
    assert adoption_spread_s(10**6, 30.0) == 30.0


def test_what_was_not_found_is_unreadable_until_it_is_gone_or_found() -> None:
    rows = stored(a=OLD, b=NEW)
    assert still_unreadable({}, rows, (A, B), {A}) == {B: NEW}
    assert still_unreadable({A: OLD, C: OLD}, rows, (B,), {B}) == {A: OLD}
