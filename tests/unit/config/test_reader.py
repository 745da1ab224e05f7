import pytest
from hypothesis import given
from hypothesis import strategies as st

from keylime.config.reader import Assignment, parse_file
from keylime.errors import ConfigError


def _pairs(text: str, *, toml: bool = False) -> list[tuple[str, str, str]]:
    entries = parse_file(text, section="agent", origin="agent.conf", toml=toml)
    return [(entry.section, entry.name, entry.text) for entry in entries]


@pytest.mark.parametrize(
    "text",
    [
        '[agent]\nregistrar_ip = "10.0.0.1"\n',
        "[agent]\nregistrar_ip = 10.0.0.1\n",
        'registrar_ip = "10.0.0.1"\n',
        "registrar_ip = 10.0.0.1",
        " registrar_ip=10.0.0.1\r\n",
        "; remark\n# remark\n\n[agent] # here\nRegistrar_IP: 10.0.0.1\n",
        'registrar_ip = "10.0.0.1" # the control plane\n',
    ],
)
def test_toml_ini_and_header_less_snippets_mean_the_same(text: str) -> None:
    assert _pairs(text, toml=True) == [("agent", "registrar_ip", "10.0.0.1")]


def test_a_line_after_the_header_of_another_section_belongs_to_that_section() -> None:
    text = "port = 1\n[revocations]\nzmq_port = 2\n"
    assert parse_file(text, section="verifier", origin="x") == (
        Assignment("verifier", "port", "1", 1),
        Assignment("revocations", "zmq_port", "2", 3),
    )


def test_indented_lines_continue_a_value() -> None:
    text = "trusted_client_ca = ['a',\n    # remark\n    'b']\nport = 1\n"
    assert _pairs(text) == [("agent", "trusted_client_ca", "['a',\n'b']"), ("agent", "port", "1")]


def test_lines_of_equal_indent_are_options_of_their_own() -> None:
    assert _pairs("  ip = a\n  port = 1\n") == [("agent", "ip", "a"), ("agent", "port", "1")]


@pytest.mark.parametrize(
    ("raw", "toml", "expected"),
    [
        (r'"a\\b"', True, r"a\b"),
        (r'"a\\b"', False, r"a\\b"),
        (r'"a\qb"', True, r"a\qb"),  # no TOML: taken as it stands
        ("'literal'", True, "literal"),
        ("'kept'", False, "'kept'"),
        ('"unbalanced', False, "unbalanced"),
        ("9002 # port", True, "9002"),
        ("pass#word", True, "pass#word"),
        ("pass#word", False, "pass#word"),
        ('["a", "b"]', True, "['a', 'b']"),
        ("0x81010001", True, "0x81010001"),
        ("", True, ""),
        ("", False, ""),
        ('""', True, ""),
        ("https://host:1/?a=b", False, "https://host:1/?a=b"),
    ],
)
def test_values_lose_their_quotes_but_nothing_else(raw: str, toml: bool, expected: str) -> None:
    assert _pairs(f"option = {raw}\n", toml=toml) == [("agent", "option", expected)]


def test_an_option_set_twice_is_refused_with_both_lines() -> None:
    with pytest.raises(
        ConfigError, match=r"agent\.conf, line 4: \[agent\] port is set twice \(first in line 1\)"
    ):
        _pairs("port = 1\n\n[agent]\nPORT = 2\n")


@pytest.mark.parametrize("line", ["EOF", "[agent", "[]", "[[agent]]", "= value"])
def test_a_line_that_is_no_assignment_is_refused_with_its_number(line: str) -> None:
    with pytest.raises(ConfigError, match=r"agent\.conf, line 2: neither"):
        _pairs(f"port = 1\n{line}\n")


def test_a_refused_line_is_not_repeated_in_the_error() -> None:
    with pytest.raises(ConfigError) as caught:
        _pairs("password correct-horse\n")
    assert "correct-horse" not in str(caught.value)


@given(st.text(), st.booleans())
def test_any_text_is_entries_or_a_config_error(text: str, toml: bool) -> None:
    try:
        entries = parse_file(text, section="agent", origin="x", toml=toml)
    except ConfigError:
        return
    assert len({(entry.section, entry.name) for entry in entries}) == len(entries)


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,10}", fullmatch=True),
        st.from_regex(r"[a-zA-Z0-9./:-]{0,20}", fullmatch=True),
    )
)
def test_what_is_written_is_read(options: dict[str, str]) -> None:
    text = "".join(f"{name} = {value}\n" for name, value in options.items())
    assert [(name, value) for _, name, value in _pairs(text)] == list(options.items())
