from dataclasses import replace

import msgspec
import pytest

from keylime_tenant.fleet_view import (
    BulkAction,
    Carry,
    Fleet,
    KeyMode,
    Quit,
    ScreenLine,
    View,
    chosen,
    folded,
    head_of,
    press,
    screen,
    visible,
    window,
)
from keylime_tenant.standing import Standing
from keylime_tenant.told_status import told_status
from tests.unit.tenant.test_standing import finding

NOW = 1_700_000_160.0
GOOD = told_status(
    {
        "attestation_status": "PASS",
        "attestation_count": 5,
        "last_successful_attestation": 1_700_000_100,
        "ip": "192.0.2.1",
    }
)
BAD = msgspec.structs.replace(GOOD, attestation_status="FAIL", last_findings=[finding("/bin/evil")])
FLEET = Fleet(
    {
        "a": GOOD,
        "b": BAD,
        "c": msgspec.structs.replace(GOOD, runtime_policy_name="Servers"),
        "d": msgspec.structs.replace(BAD, ip="192.0.2.9"),
    },
    NOW,
)


def after(keys: list[str], view: View | None = None) -> tuple[View, object]:
    order: object = None
    view = view or View()
    for key in keys:
        view, order = press(view, key, FLEET)
    return view, order


def test_the_worst_come_first() -> None:
    assert visible(FLEET, View()) == ["b", "d", "a", "c"]


@pytest.mark.parametrize(
    ("text", "found"),
    [("192.0.2.9", ["d"]), ("servers", ["c"]), ("A", ["a"]), ("none", []), ("", ["b", "d", "a", "c"])],
)
def test_a_filter_looks_at_ids_addresses_and_policies(text: str, found: list[str]) -> None:
    view, _ = after(["/", *text, "enter"])
    assert (view.mode, view.filter) == (KeyMode.LIST, text)
    assert visible(FLEET, view) == found


def test_a_filter_is_typed_corrected_and_dropped() -> None:
    assert after(["/", "x", "y", "backspace", "up"])[0].filter == "x"
    assert after(["/", "q"])[1] is None, "letters are letters there"
    view, _ = after(["/", "x", "escape"])
    assert (view.mode, view.filter) == (KeyMode.LIST, "")


def test_states_are_gone_through_and_come_back_to_all() -> None:
    view, seen = View(), []
    for _ in range(len(Standing) + 1):
        view, _ = press(view, "s", FLEET)
        seen.append(view.state)
    assert seen == [*Standing, None]
    assert visible(FLEET, replace(View(), state=Standing.FAILED)) == ["b", "d"]


def test_the_cursor_moves_and_stays_within_the_list() -> None:
    assert after(["down", "j"])[0].cursor == "a"
    assert after(["up"])[0].cursor == "b"
    assert after(["end", "down"])[0].cursor == "c"
    assert after(["page down", "home"])[0].cursor == "b"
    assert press(View(), "down", Fleet())[0].cursor is None


@pytest.mark.parametrize(
    ("key", "action"), [("r", BulkAction.REACTIVATE), ("t", BulkAction.STOP), ("d", BulkAction.DELETE)]
)
def test_an_action_on_many_is_asked_about_first(key: str, action: BulkAction) -> None:
    view, order = after([" ", " ", key])
    assert order is None
    assert view.mode is KeyMode.CONFIRM
    (question,) = [line.text for line in screen(FLEET, view, "the verifier", NOW) if "?" in line.text]
    assert question == f"{action.value} 2 agents? y: yes, any other key: no"
    view, order = press(view, "y", FLEET)
    assert order == Carry(action, ("b", "d"))
    assert (view.mode, view.marked) == (KeyMode.LIST, frozenset())


@pytest.mark.parametrize("key", ["n", "q", "enter", "Y", "escape"])
def test_only_a_y_is_a_yes(key: str) -> None:
    view, order = after(["d", key])
    assert order is None
    assert (view.mode, view.message) == (KeyMode.LIST, "nothing was done")


def test_without_marks_the_current_agent_is_meant_and_hidden_ones_never() -> None:
    assert chosen(FLEET, after(["down"])[0]) == ("d",)
    marked, _ = after(["a"])
    assert chosen(FLEET, marked) == ("b", "d", "a", "c")
    assert chosen(FLEET, replace(marked, state=Standing.FAILED)) == ("b", "d")
    assert after(["a", "a"])[0].marked == frozenset()
    assert chosen(Fleet(), View()) == ()
    assert press(View(), "d", Fleet())[0].mode is KeyMode.LIST, "there is nobody to ask about"


def test_who_left_meanwhile_is_not_acted_upon() -> None:
    view, _ = after([" ", " ", "d"])
    rest = replace(FLEET, statuses={"d": BAD})
    assert press(view, "y", rest)[1] == Carry(BulkAction.DELETE, ("d",))
    assert press(view, "y", Fleet())[1] is None


@pytest.mark.parametrize("key", ["q", "escape"])
def test_it_ends(key: str) -> None:
    assert after([key])[1] == Quit()


def test_the_screen_tells_counts_ages_and_findings() -> None:
    view, _ = after(["enter"])
    lines = screen(FLEET, view, "the verifier at https://v:8881", NOW + 5)
    assert lines[0].text == "the verifier at https://v:8881: 2 failed, 2 attested (5 s ago)"
    rows = [line for line in lines if line.style in ("good", "bad")]
    assert [row.text.split()[:2] for row in rows] == [
        *(["b", "failed"], ["d", "failed"]),
        *(["a", "attested"], ["c", "attested"]),
    ]
    assert rows[0].is_current
    assert "1 min 5 s ago" in rows[0].text
    assert any("/bin/evil" in line.text for line in lines)
    assert not any("/bin/evil" in line.text for line in screen(FLEET, View(), "v", NOW))


def test_a_verifier_that_is_silent_is_told_above_what_it_said_last() -> None:
    fleet = replace(FLEET, problem="cannot reach the verifier")
    lines = screen(fleet, View(), "v", NOW + 60)
    assert "(1 min 0 s ago)" in lines[0].text
    assert lines[1] == ScreenLine("cannot reach the verifier", "bad")
    assert head_of(fleet) == head_of(FLEET) + 1
    assert "not asked yet" in screen(Fleet(), View(), "v", NOW)[0].text


def test_nothing_is_cut_long_lines_go_on_below() -> None:
    line = ScreenLine("x" * 25, "bad", is_current=True)
    assert [one.text for one in folded([line, ScreenLine("")], 10)] == ["x" * 10, "x" * 10, "x" * 5, ""]


@pytest.mark.parametrize("height", [2, 5, 8, 100])
def test_the_current_line_is_among_those_that_fit(height: int) -> None:
    lines = [ScreenLine(str(number), is_current=number == 40) for number in range(60)]
    shown = window(lines, 3, height)
    assert len(shown) == min(height, 60)
    assert [line.text for line in shown[:3]] == ["0", "1", "2"][:height]
    assert height < 4 or any(line.is_current for line in shown)
