"""What the linter says, and what it does not."""

import json
from typing import Any

import pytest

from keylime.ima.runtime_policy import EMPTY_POLICY, compile_runtime_policy
from keylime_policy.distributions import DISTRIBUTIONS, EXCLUDES
from keylime_policy.lint import Remark, lint, lint_excludes

SHA256 = "ab" * 32
FILES = ("/usr/bin/a", "/usr/bin/b", "/usr/lib/c.so", "/etc/d", "/usr/sbin/e", "/opt/f")


def remarks(digests: dict[str, list[str]] | None = None, excludes: tuple[str, ...] = ()) -> list[Remark]:
    document: dict[str, Any] = json.loads(EMPTY_POLICY)
    document["digests"] = {key: [SHA256] for key in FILES} if digests is None else digests
    document["excludes"] = list(excludes)
    return lint(compile_runtime_policy(document))


def about(expression: str, *listed: str) -> str:
    return "; ".join(remark.text for remark in lint_excludes([expression], dict.fromkeys(listed)))


def test_a_plain_policy_has_no_remarks() -> None:
    assert remarks(excludes=(r"/var/log/[^/]+\.log$", "/home/", r"/srv/(a|b)$", r"/run/x\.[0-9]+$")) == []


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_our_own_exclude_sets_do_not_reach_where_programs_are(name: str) -> None:
    sources = [expression for one in EXCLUDES[name] for expression in one.expressions]
    assert [remark.text for remark in lint_excludes(sources, {}) if "programs" in remark.text] == []


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        (".*", "excludes every file"),
        ("/", "excludes every file"),
        ("^", "excludes every file"),
        ("/usr/", "places where programs are, such as /usr/bin/bash"),
        ("/usr/local/.*", "places where programs are, such as /usr/local/bin/backup"),
        (r".*\.ko$", "places where programs are"),
        ("/opt/app", "has no end"),
        ("/run/a|/run/b$", "ends only its last alternative"),
        ("/var/log/x.log$", "stands for any character"),
        (r".*\.pyc$", "in every directory"),
        ("var/log/", "never matches"),
        ("/var/log/*", "looks like a shell pattern"),
    ],
)
def test_expressions_that_are_other_than_they_look(expression: str, text: str) -> None:
    assert text in about(expression)


@pytest.mark.parametrize("expression", ["/run/(a|b)$", r"/var/log/x\.log$", r"/a/[.]x$", "boot_aggregate"])
def test_expressions_that_are_as_they_look(expression: str) -> None:
    assert about(expression) == ""


def test_an_expression_that_takes_out_what_digests_list_is_named() -> None:
    assert "excludes 2 files whose digests are listed, such as '/opt/a'" in about(
        "/opt/[ab]$", "/opt/a", "/opt/b", "/etc/c", "boot_aggregate"
    )


def test_an_expression_that_is_there_twice_is_named_once() -> None:
    found = list(lint_excludes(["/a$", "/a$"], {}))
    assert [(remark.place, remark.text) for remark in found] == [(("excludes", 1), "'/a$' is there twice")]


@pytest.mark.parametrize("name", ["usr/bin/a", "/a b", "/a//b", "/a/../b", "/a/"])
def test_a_name_that_no_kernel_prints_is_found(name: str) -> None:
    (remark,) = remarks({name: [SHA256], "boot_aggregate": [SHA256]})
    assert remark.place == ("digests", name)
    assert "will not match" in remark.text


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("/bin/a", "/bin/b", "/lib/c", "/share/d", "/libexec/e"), "their /usr were missing"),
        (
            ("/mnt/img/usr/bin/a", "/mnt/img/usr/bin/b", "/mnt/img/etc/c", "/mnt/img/bin/d", "/mnt/img/x"),
            "begin with /mnt/img",
        ),
        (("/x/a", "/x/b", "/y/c", "/y/d", "/z"), "no name is in a directory"),
        ((*FILES, *(f"/bin/{one}" for one in "cdexy")), "/bin is /usr/bin"),
    ],
)
def test_names_with_a_wrong_beginning_are_found(names: tuple[str, ...], text: str) -> None:
    (remark,) = remarks({key: [SHA256] for key in names})
    assert text in remark.text


def test_a_single_name_of_an_initrd_is_no_matter() -> None:
    assert remarks({key: [SHA256] for key in (*FILES, "/bin/busybox")}) == []


def test_a_machine_with_separate_directories_has_right_names() -> None:
    assert remarks({key: [SHA256] for key in ("/bin/a", "/sbin/b", "/lib/c", "/etc/d", "/usr/bin/e")}) == []


def test_digests_of_another_algorithm_and_of_zeros_are_found() -> None:
    found = remarks({**{key: [SHA256] for key in FILES}, "/opt/g": ["ab" * 20], "/opt/h": ["00" * 32]})
    assert [remark.place for remark in found] == [("digests", "/opt/g"), ("digests", "/opt/h")]


def test_a_policy_that_judges_nothing_is_said_to() -> None:
    (remark,) = remarks({})
    assert "judges nothing" in remark.text
