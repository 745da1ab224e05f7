import pytest

from keylime_tenant.arguments import (
    Arguments,
    combination_problem,
    deprecations,
    parse_arguments,
    unknown_command,
)


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
def test_flags_that_do_not_go_together_end_with_usage(
    flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(flags.split())
    assert ended.value.code == 2
    assert f"error: {message}\n" in capsys.readouterr().err


@pytest.mark.parametrize("flags", ["--port 1", "-tp 0", "-vp 65536", "-rp x", "--allow a"])
def test_unknown_flags_and_wrong_ports_end_with_usage(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_arguments(flags.split())
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


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
