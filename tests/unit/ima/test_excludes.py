import pytest

from keylime.documents.patterns import MAX_BACKTRACKED_CHARS
from keylime.errors import PolicyError
from keylime.ima.excludes import MAX_EXCLUDES, compile_excludes


def test_expressions_match_at_the_start_and_need_not_reach_the_end() -> None:
    excludes = compile_excludes(["/usr/bin/b", "bin", "^/var/(cache|lib)/", "boot_aggregate"])
    for name, excluded in {
        "/usr/bin/bash": True,
        "/usr/bin/a": False,
        "/sbin": False,
        "bin/x": True,
        "/var/lib/x": True,
        "/var/log/x": False,
        "boot_aggregate": True,
        "/x/boot_aggregate": False,
    }.items():
        assert excludes.match(name) is excluded, name


def test_no_expression_excludes_nothing_and_the_empty_one_everything() -> None:
    assert not compile_excludes([]).match("/a")
    assert compile_excludes([""]).match("/a")


def test_many_expressions_of_both_engines_make_one_matcher() -> None:
    excludes = compile_excludes(
        [rf"/opt/app-{number}/.*\.tmp$" for number in range(1200)] + [r"/srv/(?!keep/)"]
    )
    assert excludes.match("/opt/app-1199/x.tmp")
    assert excludes.match("/srv/x")
    assert not excludes.match("/srv/keep/x")
    assert not excludes.match("/opt/app-1200/x.tmp")


@pytest.mark.timeout(10)
def test_i14_what_the_linear_engine_takes_is_never_left_to_backtracking() -> None:
    excludes = compile_excludes(["/(a+)+b"])
    assert not excludes.match("/" + "a" * 60)
    assert excludes.match("/" + "a" * 60 + "b")


def test_names_too_long_for_a_backtracking_expression_are_not_excluded_by_it() -> None:
    excludes = compile_excludes([r"/srv/(?!keep/)"])
    longest = "/srv/".ljust(MAX_BACKTRACKED_CHARS, "x")
    assert excludes.match(longest)
    assert not excludes.match(longest + "x")
    assert compile_excludes(["/srv/"]).match(longest + "x"), "only those that could run for long"


def test_more_expressions_than_the_limit_are_refused() -> None:
    assert compile_excludes(["/"] * MAX_EXCLUDES).match("/a")
    with pytest.raises(PolicyError, match=f"{MAX_EXCLUDES + 1} regular expressions"):
        compile_excludes(["/"] * (MAX_EXCLUDES + 1))


def test_a_bad_expression_disables_none_but_is_refused_with_its_place() -> None:
    with pytest.raises(PolicyError, match=r"excludes\[1\]: '\('"):
        compile_excludes(["/a", "("])
    with pytest.raises(PolicyError, match=r"line\[0\]"):
        compile_excludes(["("], where="line")


@pytest.mark.parametrize("source", [".*", "", "/", "(/.*|x)"])
def test_broad_expressions_are_doubted(source: str) -> None:
    assert compile_excludes(["^/ok/$", source]).warnings[0].startswith("excludes[1]: ")


def test_an_expression_that_ends_within_a_name_is_doubted() -> None:
    assert "no end" in compile_excludes(["/usr/bin/b"]).warnings[0]


@pytest.mark.parametrize(
    "source", ["^/usr/bin/b$", "/var/cache/", r"^/srv/.*\.log$", r"(?!/usr/|/lib/).*", "boot_aggregate"]
)
def test_careful_expressions_are_not_doubted(source: str) -> None:
    assert compile_excludes([source]).warnings == ()


@pytest.mark.parametrize("source", ["/a$", "^/a$", "(/a$|/b)"])
def test_an_end_is_the_very_end_of_a_name(source: str) -> None:
    excludes = compile_excludes([source])
    assert excludes.match("/a")
    assert not excludes.match("/a\n")
