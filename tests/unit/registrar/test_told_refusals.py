"""Which refusals get a line in the audit: what is repeated, and what is too much."""

from keylime_registrar.told_refusals import (
    HOUR_S,
    MOST,
    MOST_OF_NETWORK,
    DueLine,
    RefusedRegistration,
    ToldRefusals,
)


def refusal(agent: object = "agent", network: object = "net", result: str = "refused") -> RefusedRegistration:
    return RefusedRegistration(str(agent), str(network), result)


def test_the_same_is_told_once_an_hour_with_how_often_it_came() -> None:
    told = ToldRefusals()
    assert told.line(refusal(), 0) == DueLine(0, 0)
    assert [told.line(refusal(), now) for now in (1, 2, HOUR_S - 1)] == [None] * 3
    assert told.line(refusal(result="wrong_tag"), 3) == DueLine(0, 0)
    assert told.line(refusal(network="other"), 3) == DueLine(0, 0)
    assert told.line(refusal(), HOUR_S) == DueLine(3, 0)


def test_r20_one_network_does_not_take_the_lines_of_the_others() -> None:
    told = ToldRefusals()
    lines = [told.line(refusal(agent), 0) for agent in range(MOST)]
    assert len([line for line in lines if line]) == MOST_OF_NETWORK
    assert told.line(refusal(network="other"), 1) == DueLine(0, MOST - MOST_OF_NETWORK)


def test_r20_all_together_have_so_many_lines_an_hour() -> None:
    told = ToldRefusals()
    lines = [told.line(refusal(number, number), 0) for number in range(5 * MOST)]
    assert [line is not None for line in lines] == [True] * MOST + [False] * 4 * MOST
    assert told.line(refusal("later"), HOUR_S - 1) is None
    assert told.line(refusal("later"), HOUR_S) == DueLine(0, 4 * MOST + 1)


def test_r20_what_is_remembered_is_bounded() -> None:
    told = ToldRefusals()
    for hour in range(40):
        for number in range(MOST):
            assert told.line(refusal(f"{hour}/{number}", number), hour * HOUR_S) is not None
    assert len(told._told) == 1024
