"""Wrong usage of `keylime-policy`: one line that says what was mistyped."""

import pytest

from keylime_policy.arguments import build_parser


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("shwo", "x"), "there is no command 'shwo' (did you mean 'show'?)"),
        (("create", "run-time"), "create: there is no command 'run-time' (did you mean 'runtime'?)"),
        (("qqq",), "there is no command 'qqq' (`keylime-policy --help` lists them)"),
        (("merge",), "merge: POLICY must be given (`keylime-policy merge --help` lists them)"),
        (
            ("show", "x", "--no-such"),
            "show: unrecognized arguments: --no-such (`keylime-policy show --help` lists them)",
        ),
    ],
)
def test_wrong_usage_is_one_line(
    arguments: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        build_parser(["example"]).parse_args(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"keylime-policy: error: {line}\n"
