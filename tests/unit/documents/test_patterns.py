import re

import pytest
import re2  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from keylime.documents.patterns import (
    MAX_BACKTRACKED_CHARS,
    MAX_PATTERN_CHARS,
    full_matcher,
    parse_pattern,
    re2_options,
)
from keylime.errors import PolicyError

PORTABLE = [
    r"^/opt/.*",
    r"/usr/(bin|sbin)/[^/]+$",
    r"/a{,3}$",
    r"/a{,}b",
    r"/a{2,}b?",
    r"/a{00}b{01,02}c{,03}d{1,010}e{02,}",
    "{a}",
    "a{1,2",
    r"a{x}{}",
    r"[]a]+",
    r"[^]a]+",
    r"[[:alpha:]]+",
    r"[](]",
    r"[^](]",
    r"[ab(|]",
    r"/\w+/\d+\s*\S\D\W",
    r"[\w.-]+\Z",
    r"(?i)/ABC",
    r"(?P<name>x)(?:y|z)*?",
    r"\x41\u00e9\.\-",
    r"\U00000041",
    r"[^\w]/",
    r"(?-i:x)",
    r"\A/",
    r"(a+)+$",
    r"x**".replace("**", "*"),
    "",
]
BACKTRACKING = [
    r"(?!/usr/).*",
    r"/a(?=b)",
    r"\bfoo\b",
    r"a++b",
    r"/x{2000}",
    r"(?<=/)a?",
    r"[\W]x",
    r"(?a)\w",
    r"(?:ab){2}(?=c)",
    r"(?:a?){3}(?!b)",
    r"(?:ab)?(?=c)",
    r"(?>a)b",
    r"(?<!/)a",
    r"a*+b",
    r"a{2}+b",
    r"a{,2}+b",
]
REFUSED = [
    r"(a)\1",
    r"(?x) a b",
    r"(a|aa)*(?=b)",
    r"(?:ab)*(?!c)",
    r".*a.*b.*(?!c)",
    r"(?:.*a.*b.*){}(?!c)",
    r"(?:a?){4000000000}(?!b)",
    r"(?:a+){64}(?!b)",
    r"(?:a?){30}(?=b)",
    "a?" * 30 + "(?!b)",
    "(?#c)x",
]
NAMES = [
    "",
    "/",
    "/opt/x",
    "/usr/bin/a",
    "/aaa",
    "/aaaa",
    "{a}",
    "a{1,2",
    " /",
    "/aab",
    "a{x}{}",
    "]a",
    "b]",
    "alpha:]",
    "[:lph",
    "/é_1/22 x\u0664y ",
    "foo bar",
    "/ABC",
    "xyzzy",
    "Aé.-",
    "aaaa",
    "/x",
    "\u3000",
]


@pytest.mark.parametrize("source", PORTABLE)
def test_a_pattern_means_to_re2_what_it_means_to_python(source: str) -> None:
    pattern = parse_pattern(source)
    assert pattern.re2_source is not None
    translated = re2.compile(pattern.re2_source, re2_options())
    for name in NAMES:
        assert bool(translated.match(name)) is bool(pattern.compiled.match(name)), name
        assert full_matcher(pattern)(name) is bool(pattern.compiled.fullmatch(name)), name


@pytest.mark.parametrize("source", BACKTRACKING)
def test_what_re2_cannot_do_runs_on_python_if_its_steps_are_bounded(source: str) -> None:
    pattern = parse_pattern(source)
    assert pattern.re2_source is None
    for name in NAMES:
        assert full_matcher(pattern)(name) is bool(pattern.compiled.fullmatch(name))


@pytest.mark.parametrize("source", REFUSED)
def test_what_could_run_for_ever_is_refused(source: str) -> None:
    re.compile(source)
    with pytest.raises(PolicyError, match="could take very long"):
        parse_pattern(source)


@pytest.mark.parametrize(
    ("within", "beyond"),
    [
        ("(a|b|c|d).*.*(?!x)", "(a|b|c|d|e).*.*(?!x)"),
        (".*.*a{1,4}(?!x)", ".*.*a{1,5}(?!x)"),
        (".*.*(?:a?){2}(?!x)", ".*.*(?:a?){3}(?!x)"),
    ],
)
def test_the_bound_is_a_product_of_sums(within: str, beyond: str) -> None:
    assert parse_pattern(within).re2_source is None
    with pytest.raises(PolicyError, match="could take very long"):
        parse_pattern(beyond)


def test_groups_nest_to_a_depth_of_forty() -> None:
    assert parse_pattern("(" * 40 + "a" + ")" * 40).re2_source is not None
    with pytest.raises(PolicyError, match="could take very long"):
        parse_pattern("(" * 41 + "a" + ")" * 41)


def test_a_pattern_may_be_as_long_as_the_limit() -> None:
    assert full_matcher(parse_pattern("a" * MAX_PATTERN_CHARS))("a" * MAX_PATTERN_CHARS)
    with pytest.raises(PolicyError, match=f"at most {MAX_PATTERN_CHARS}"):
        parse_pattern("a" * (MAX_PATTERN_CHARS + 1))


def test_names_too_long_for_backtracking_are_matched_by_no_pattern_that_does() -> None:
    longest = "/srv/".ljust(MAX_BACKTRACKED_CHARS, "x")
    backtracking, linear = full_matcher(parse_pattern("(?!/usr/).*")), full_matcher(parse_pattern("/srv/.*"))
    assert backtracking(longest)
    assert not backtracking(longest + "x")
    assert linear(longest + "x")


@pytest.mark.parametrize(
    "source", ["(", "*a", "[", "a{3,2}", "(?P<1>x)", r"\y", "(?a)(?u)x", "a" * 5000, "(" * 500 + ")" * 500]
)
def test_what_is_no_expression_is_refused(source: str) -> None:
    with pytest.raises(PolicyError):
        parse_pattern(source)


ATOMS = ["a", "b", "/", ".", "[ab]", "[^a]", r"\w", r"\d", "(a|b)", "(?:ab)", "[]x]", r"\.", "(?i:A)"]
QUANTIFIERS = ["", "", "*", "+", "?", "{2}", "{,2}", "{1,}", "*?", "{00}", "{01,02}", "{,02}"]


@given(
    st.lists(st.tuples(st.sampled_from(ATOMS), st.sampled_from(QUANTIFIERS)), max_size=6),
    st.text(st.sampled_from("abAx1/.]\u0664"), max_size=12),
)
def test_composed_patterns_match_the_same_in_both_engines(parts: list[tuple[str, str]], name: str) -> None:
    source = "".join(atom + quantifier for atom, quantifier in parts)
    pattern = parse_pattern(source)
    assert pattern.re2_source is not None
    assert bool(re2.compile(pattern.re2_source, re2_options()).match(name)) is bool(re.match(source, name))


@given(st.text(st.sampled_from(r"a|()[]{}^$.*+?\wdx,1:=!<P>i-"), max_size=14))
def test_any_text_is_a_pattern_or_refused(source: str) -> None:
    try:
        pattern = parse_pattern(source)
    except PolicyError:
        return
    if pattern.re2_source is not None:
        translated = re2.compile(pattern.re2_source, re2_options())
        for name in ("", "a", "aa1", "x-[", "d\\w", "i:{,1}"):
            assert bool(translated.match(name)) is bool(pattern.compiled.match(name))
