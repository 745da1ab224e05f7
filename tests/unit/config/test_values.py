import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.config.model import Kind, Option
from keylime.config.options import TABLES
from keylime.config.values import parse_flag, parse_value


def _option(kind: Kind, **limits: object) -> Option:
    return Option("agent", "option", kind, "", "", **limits)  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["1", "yes", "true", "True", "ON", "tRuE"])
def test_words_that_mean_true(word: str) -> None:
    assert parse_flag(word)


@pytest.mark.parametrize("word", ["0", "no", "false", "False", "OFF"])
def test_words_that_mean_false(word: str) -> None:
    assert not parse_flag(word)


@pytest.mark.parametrize("word", ["", "maybe", "truee", "2", "None"])
def test_other_words_are_no_flags(word: str) -> None:
    with pytest.raises(ValueError, match="true or false"):
        parse_flag(word)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("['a', \"b\"]", ("a", "b")),
        ("[' a ','b']", ("a", "b")),
        ("a,b", ("a", "b")),
        ("a, b,", ("a", "b")),
        ("[a, 'b', \"c\"]", ("a", "b", "c")),
        ("[agent]", ("agent",)),
        ("[]", ()),
        ("", ()),
        ("default", ("default",)),
        ('a", "b', ("a", "b")),  # what is left of "a", "b" without the outer quotes
        ("['a',\n'b']", ("a", "b")),
    ],
)
def test_lists_are_read_in_every_notation_of_the_field(text: str, expected: tuple[str, ...]) -> None:
    assert parse_value(_option(Kind.LIST), text) == expected


@pytest.mark.parametrize("text", ["['a'", "a]", "[['a']]", "[None]", "['a'] + ['b']", "[1.5]"])
def test_broken_lists_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a list"):
        parse_value(_option(Kind.LIST), text)


@pytest.mark.parametrize(
    "text",
    [
        r'[{"event_id": "ima\\.", "severity_label" : "error"}]',
        r"[{'event_id': 'ima\\.', 'severity_label': 'error'}]",
        r"[{'event_id': 'ima\.', 'severity_label': 'error'}]",  # an escape that Python warns about
    ],
)
def test_mappings_are_read_as_json_and_as_python(text: str) -> None:
    assert parse_value(_option(Kind.MAPPINGS), text) == ({"event_id": r"ima\.", "severity_label": "error"},)


@pytest.mark.parametrize("text", ["", "{}", "[1]", "['a']", '[{"a": 1}]', "[{", "x" * 10, "[" * 5000])
def test_what_is_no_list_of_mappings_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="list of mappings"):
        parse_value(_option(Kind.MAPPINGS), text)


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "::1",
        "fe80::1%eth0",
        "localhost",
        "n1.test",
        "n1.test.",
        "my_host",
        "a-b.example",
        "xn--fsq.test",
    ],
)
def test_addresses_and_host_names_are_accepted(text: str) -> None:
    assert parse_value(_option(Kind.ADDRESS), text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "127.0.0.1:80",
        "256.0.0.1",
        "1.2.3",
        "https://host",
        "a b",
        "-a",
        "a..b",
        "a" * 64,
        "1::2::3",
        "häst",
        ".",
    ],
)
def test_what_cannot_be_an_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="host name"):
        parse_value(_option(Kind.ADDRESS), text)
    if text:
        with pytest.raises(ValueError, match="host name"):
            parse_value(_option(Kind.ADDRESSES), f"10.0.0.1, {text}")


@pytest.mark.parametrize(
    "kind", [Kind.ADDRESS, Kind.ADDRESSES, Kind.TEXT, Kind.PATH, Kind.LIST, Kind.INTEGER]
)
def test_a_placeholder_is_refused_as_such(kind: Kind) -> None:
    with pytest.raises(ValueError, match="placeholder <REMOTE_IP>"):
        parse_value(_option(kind), "<REMOTE_IP>")


def test_a_password_may_look_like_a_placeholder() -> None:
    assert parse_value(_option(Kind.SECRET), "<REMOTE_IP>") == "<REMOTE_IP>"


@pytest.mark.parametrize("text", ["", "1.0", "0x10", "1_000", "\u0661", "9 # ten", "--1", "1e3"])
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="whole number"):
        parse_value(_option(Kind.INTEGER), text)


@pytest.mark.parametrize("text", ["", "nan", "inf", "-inf", "1e999", "two", "1,5"])
def test_what_is_no_finite_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected a number"):
        parse_value(_option(Kind.NUMBER), text)


def test_limits_are_inclusive() -> None:
    port = _option(Kind.INTEGER, minimum=0, maximum=65535)
    assert (parse_value(port, "0"), parse_value(port, "65535")) == (0, 65535)
    with pytest.raises(ValueError, match="at most 65535"):
        parse_value(port, "65536")
    with pytest.raises(ValueError, match="at least 0"):
        parse_value(port, "-1")


def test_choices_bound_texts_and_every_element_of_lists() -> None:
    assert parse_value(_option(Kind.LIST, choices=("agent", "zeromq")), "zeromq") == ("zeromq",)
    with pytest.raises(ValueError, match="one of agent, zeromq"):
        parse_value(_option(Kind.LIST, choices=("agent", "zeromq")), "['agent', 'mail']")
    with pytest.raises(ValueError, match="one of once, always"):
        parse_value(_option(Kind.TEXT, choices=("once", "always")), "never")


@given(st.sampled_from([option for table in TABLES.values() for option in table.options]), st.text())
def test_any_text_is_a_value_or_a_value_error(option: Option, text: str) -> None:
    try:
        value = parse_value(option, text)
    except ValueError:
        return
    assert type(value) is type(option.default)
