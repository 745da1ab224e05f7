"""`--check-config` and `--dump-config` of the daemons, which start nothing and make nothing."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

DAEMONS = ("agent", "registrar", "verifier")


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> "Asked":
    monkeypatch.setenv("KEYLIME_DIR", str(tmp_path / "work"))
    return Asked(tmp_path, monkeypatch, capsys)


class Asked:
    """A daemon's answer to flags, with a configuration file of its own."""

    def __init__(
        self, directory: Path, patch: pytest.MonkeyPatch, output: pytest.CaptureFixture[str]
    ) -> None:
        self._directory, self._patch, self._output = directory, patch, output

    def __call__(self, daemon: str, text: str, *flags: str) -> tuple[int, str, str]:
        path = self._directory / f"{daemon}.conf"
        path.write_text(text)
        path.chmod(0o600)
        # Absent files are the defaults, whatever is installed on this machine.
        for component in ("ca", "logging", "tenant"):
            empty = self._directory / f"{component}.conf"
            empty.write_text("")
            empty.chmod(0o600)
            self._patch.setenv(f"KEYLIME_{component.upper()}_CONFIG", str(empty))
        self._patch.setenv(f"KEYLIME_{daemon.upper()}_CONFIG", str(path))
        self._patch.setattr(sys, "argv", [f"keylime_{daemon}", *flags])
        status = 0
        try:
            importlib.import_module(f"keylime_{daemon}.main").main()
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        out, err = self._output.readouterr()
        assert not (self._directory / "work").exists()
        return status, out, err


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_good_configuration_is_called_good(daemon: str, asked: Asked) -> None:
    run_as = 'run_as = ""\n' if daemon == "agent" else ""
    status, out, err = asked(daemon, f"[{daemon}]\nport = 4711\nprot = 1\n{run_as}", "--check-config")
    assert (status, err) == (0, "")
    assert re.search(r"^warning: .*unknown option \"prot\".*did you mean \"port\"", out, re.MULTILINE)
    assert re.search(rf"^configuration is good \(.*{daemon}\.conf", out, re.MULTILINE)


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_bad_one_is_one_line_that_names_the_option(daemon: str, asked: Asked) -> None:
    status, out, err = asked(daemon, f"[{daemon}]\nport = many\n", "--check-config")
    assert (status, out) == (1, "")
    assert re.fullmatch(rf"keylime_{daemon}: error: .*line 2: \[{daemon}\] port = 'many': .*\n", err)


@pytest.mark.parametrize(
    "text", ["measured_boot_policy_name = exmaple", "measured_boot_imports = no_such_module"]
)
def test_a_boot_policy_that_is_not_there_is_no_good_configuration(text: str, asked: Asked) -> None:
    status, out, err = asked("verifier", f"[verifier]\n{text}\n", "--check-config")
    assert (status, out) == (1, "")
    assert re.fullmatch(rf"keylime_verifier: error: .*{text.split()[0]}.*{text.split()[2]}.*\n", err)


@pytest.mark.parametrize("daemon", DAEMONS)
def test_programs_can_ask_as_well(daemon: str, asked: Asked) -> None:
    status, out, _ = asked(daemon, f"[{daemon}]\nport = many\n", "--check-config", "--json")
    answer = json.loads(out)
    assert (status, answer["ok"]) == (1, False)
    assert "port" in answer["error"]
    status, out, _ = asked(daemon, f"[{daemon}]\nport = 4711\n", "--dump-config", "--json")
    port = json.loads(out)["configuration"][daemon][daemon]["port"]
    assert (status, port["value"], port["source"].rpartition("/")[2]) == (0, 4711, f"{daemon}.conf, line 2")


@pytest.mark.parametrize("daemon", DAEMONS)
def test_a_dump_tells_every_value_and_no_secret(daemon: str, asked: Asked) -> None:
    option = "server_key_password"
    status, out, _ = asked(daemon, f"[{daemon}]\n{option} = hunter2\n", "--dump-config")
    assert status == 0
    assert "hunter2" not in out
    assert re.search(rf"^\[{daemon}\] {option} = \W\*+", out, re.MULTILINE) or f"{option} = *" in out
    assert all(re.match(r"\[\w+\] \w+ =.*  # \S", line) for line in out.splitlines())


def test_a_registrar_tells_of_the_tenants_options_only_what_it_reads(asked: Asked) -> None:
    _, out, _ = asked("registrar", "", "--dump-config")
    assert [line.split(" =")[0] for line in out.splitlines() if line.startswith("[tenant]")] == [
        "[tenant] tpm_cert_store"
    ]


def test_json_alone_asks_nothing(asked: Asked) -> None:
    status, _, err = asked("verifier", "", "--json")
    assert status == 1
    assert "--json goes with --check-config or --dump-config" in err
