import importlib
import inspect
import json
import subprocess
import sys

import pytest

from keylime_tenant.arguments import (
    Arguments,
    build_parser,
    combination_problem,
    deprecations,
    parse_arguments,
    unknown_command,
)
from keylime_tenant.catalogue import COMMANDS, GROUPS
from keylime_tenant.commands import run_of
from keylime_tenant.forms import Form


def test_nothing_given_means_add_with_everything_from_the_configuration() -> None:
    assert parse_arguments([]) == Arguments()
    assert parse_arguments([]).command == "add"


def test_the_verifier_flag_without_a_value_leaves_the_configured_address() -> None:
    arguments = parse_arguments(["-v", "-t", "192.0.2.7", "-u", "node1", "--cert", "default", "-c", "add"])
    assert arguments.verifier_ip is None
    assert (arguments.agent_ip, arguments.agent_uuid, arguments.ca_dir) == ("192.0.2.7", "node1", "default")


def test_long_single_dash_flags_are_not_taken_for_values_of_short_ones() -> None:
    flags = "-v 192.0.2.1 -vp 9 -vi blue -t 192.0.2.2 -tp 8 -r h -rp 7 -nvc"
    arguments = parse_arguments(flags.split())
    assert (arguments.verifier_ip, arguments.verifier_port, arguments.verifier_id) == ("192.0.2.1", 9, "blue")
    assert (arguments.agent_ip, arguments.agent_port) == ("192.0.2.2", 8)
    assert (arguments.registrar_ip, arguments.registrar_port) == ("h", 7)
    assert not arguments.verifier_check


def test_flags_may_be_abbreviated() -> None:
    assert parse_arguments(["--incl", "d", "--cert", "x"]).include_dir == "d"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("-c addruntimepolicy", "--allowlist or --runtime_policy is required to add a runtime policy"),
        ("-c addallowlist", "--allowlist or --runtime_policy is required to add a runtime policy"),
        ("--exclude e", "--exclude cannot be used without an --allowlist"),
        (
            "--allowlist a --allowlist-url u",
            "--allowlist and --allowlist-url cannot be specified at the same time",
        ),
        (
            "--runtime-policy p --runtime-policy-url u",
            "--runtime_policy and --runtime_policy-url cannot be specified at the same time",
        ),
        (
            "--runtime-policy-url u",
            "--runtime_policy-url must have --runtime_policy-checksum to verifier integrity",
        ),
        (
            "--runtime-policy-checksum 00",
            "--runtime_policy-checksum must have either --runtime_policy or --runtime_policy-url",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(
    flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(flags.split())
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"keylime_tenant: error: {message}\n"


@pytest.mark.parametrize("flags", ["--port 1", "-tp 0", "-vp 65536", "-rp x", "--allow a"])
def test_unknown_flags_and_wrong_ports_are_one_line(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments([*flags.split(), "--json"])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line == f"keylime_tenant: error: {json.loads(captured.out)['error']}"
    assert "_port" not in line


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (
            "showruntimepolicy --runtime-policy-name caf\udce9",
            "--runtime-policy-name: 'caf\\udce9' is no text in this locale's encoding: "
            "set LANG to one of UTF-8",
        ),
        ("--uid x", "unrecognized arguments: --uid (did you mean --uuid?)"),
        ("cvlst", "Invalid command specified: cvlst (did you mean 'cvlist'?)"),
        ("add -c cvlist", "add and -c cvlist are two commands: give one"),
        ("-u x -v cvlist", "-v took the command cvlist for its address: write keylime_tenant cvlist -v"),
        ("cvlist --json -o name", "--json and -o name cannot be specified at the same time"),
        ("add --wait soon", "argument --wait: 'soon' is not a time in seconds"),
    ],
)
def test_wrong_usage_names_what_was_meant(line: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(line.split())
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"keylime_tenant: error: {told}\n"


@pytest.mark.parametrize(
    "line", ["cvstatus -u a -v", "-u a cvstatus", "-c cvstatus -u a", "--json -u a cvstatus"]
)
def test_the_command_may_be_a_word_of_its_own(line: str) -> None:
    arguments = parse_arguments(line.split())
    assert (arguments.command, arguments.names_command, arguments.agent_uuid) == ("cvstatus", True, "a")


def test_who_names_no_command_is_known() -> None:
    assert not parse_arguments(["-u", "a"]).names_command


def test_the_flag_that_was_typed_is_known() -> None:
    assert parse_arguments(["--uuid", "a"]).flag("agent_uuid", "-u") == "--uuid"
    assert parse_arguments(["-u", "a"]).flag("agent_uuid", "-u") == "-u"
    assert parse_arguments([]).flag("agent_uuid", "-u") == "-u"


@pytest.mark.parametrize(
    ("flags", "form"),
    [
        ((), None),
        (("--json",), Form.JSON),
        (("-o", "wide"), Form.WIDE),
        (("-o", "json", "--json"), Form.JSON),
    ],
)
def test_the_form_of_output(flags: tuple[str, ...], form: Form | None) -> None:
    assert parse_arguments(["cvlist", *flags]).form is form


def test_help_lists_every_command_in_its_group_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(["--help"])
    assert not ended.value.code
    lines = capsys.readouterr().out.splitlines()
    places = [lines.index(f"{group}:") for group in GROUPS]
    assert places == sorted(places)
    for word, command in COMMANDS.items():
        (line,) = [line for line in lines if line.split()[:1] == [word]]
        assert command.summary in line
        assert len(line) <= 80


@pytest.mark.parametrize("word", COMMANDS)
def test_help_about_a_command_shows_its_flags(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for line in ([word, "--help"], ["-c", word, "-h"], ["--help", f"--command={word}"]):
        with pytest.raises(SystemExit) as ended:
            parse_arguments(line)
        assert not ended.value.code
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2]
    assert texts[0].startswith(f"usage: keylime_tenant {word} [FLAGS]\n")
    assert ("--uuid" in texts[0]) == ("agent" in COMMANDS[word].flags)
    assert ("--include" in texts[0]) == (word in ("add", "update"))


@pytest.mark.parametrize("word", COMMANDS)
def test_every_command_can_be_carried_out(word: str) -> None:
    assert inspect.iscoroutinefunction(run_of(COMMANDS[word]))
    assert (COMMANDS[word].replacement or word) in COMMANDS


def test_every_flag_belongs_to_a_command() -> None:
    """Or to all of them: no flag is without a page that shows it."""
    sections = importlib.import_module("keylime_tenant.arguments")._SECTIONS
    assert set(sections) == {flag for command in COMMANDS.values() for flag in command.flags}
    build_parser()


def test_help_imports_nothing_that_only_commands_need() -> None:
    code = (
        "import sys; sys.argv = ['keylime_tenant', '--help']\n"
        "from keylime_tenant.program import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'asyncio', 'ssl', 'aiohttp', 'cryptography', 'msgspec', 'rich', 'logging', 'email'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)  # noqa: S603


def test_an_exclude_list_may_go_with_a_downloaded_allowlist() -> None:
    assert combination_problem(Arguments(exclude="e", allowlist_url="https://192.0.2.1/a")) is None


def test_a_misspelt_command_is_answered_with_the_nearest_one() -> None:
    text = unknown_command("cvstat", ["add", "cvstatus", "reglist"])
    assert text.startswith("Invalid command specified: cvstat")
    assert "'cvstatus'" in text


def test_old_flags_still_count_and_are_named_in_warnings() -> None:
    arguments = parse_arguments(["--allowlist", "a", "--exclude", "e", "--supported-version", "2.1"])
    assert arguments.api_version == "2.1"
    warned = " ".join(deprecations(arguments))
    assert all(flag in warned for flag in ("--allowlist ", "--exclude ", "--supported-version "))
    assert deprecations(Arguments(runtime_policy="p")) == ()


def test_repeatable_flags_collect_their_values() -> None:
    arguments = parse_arguments(["--sign_verification_key", "a", "--signature-verification-key", "b"])
    assert arguments.verification_keys == ("a", "b")
