"""Wrong usage of programs: one line that helps, and a document where one was asked for."""

import json

import pytest

from keylime.command_line import OneLineParser


def build() -> OneLineParser:
    parser = OneLineParser(prog="tool")
    actions = parser.add_subparsers(required=True, metavar="make|show", parser_class=OneLineParser)
    make = actions.add_parser("make")
    make.add_argument("--rootfs", required=True)
    make.add_argument("--algo", choices=("sha1", "sha256"))
    make.add_argument("--json", action="store_true")
    actions.add_parser("show").add_argument("path")
    return parser


WRONG = {
    "mkae": "there is no command 'mkae' (did you mean 'make'?)",
    "xyzzy": "there is no command 'xyzzy' (`tool --help` lists them)",
    "": "make|show must be given (`tool --help` lists them)",
    "make": "make: --rootfs must be given (`tool make --help` lists them)",
    "make --rotfs=/": "make: unrecognized arguments: --rotfs=/ (did you mean '--rootfs'?)",
    "make --rootfs / --agol sha1": "make: unrecognized arguments: --agol sha1 (did you mean '--algo'?)",
    "make --rootfs / --qqqqqq": "make: unrecognized arguments: --qqqqqq (`tool make --help` lists them)",
    "make --rootfs": "make: argument --rootfs: expected one argument",
    "show": "show: path must be given (`tool show --help` lists them)",
    "show a b": "show: unrecognized arguments: b (`tool show --help` lists them)",
    "show -- a --b": "show: unrecognized arguments: --b (`tool show --help` lists them)",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_usage_is_one_line_with_what_would_be_right(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        build().parse_args(line.split())
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", f"tool: error: {WRONG[line]}\n")


def test_a_wrong_choice_of_a_flag_is_told_with_the_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build().parse_args(["make", "--rootfs", "/", "--algo", "md5"])
    assert "tool: error: make: argument --algo: invalid choice: 'md5'" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["make --json --rotfs /", "mkae --json", "make --json"])
def test_a_program_that_asked_for_a_document_gets_one(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build().parse_args(line.split())
    told = capsys.readouterr()
    assert told.err == f"tool: error: {json.loads(told.out)['error']}\n"


def test_what_was_typed_stays_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build().parse_args(["show", "a", "--two\nlines\x1b[0m"])
    assert capsys.readouterr().err.splitlines() == [
        "tool: error: show: unrecognized arguments: --two lines [0m (`tool show --help` lists them)"
    ]


def test_right_usage_is_argparses(capsys: pytest.CaptureFixture[str]) -> None:
    assert build().parse_args(["make", "--rootfs", "/"]).rootfs == "/"
    assert capsys.readouterr() == ("", "")
