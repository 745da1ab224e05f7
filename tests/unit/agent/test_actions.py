import asyncio
import logging
import os
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from keylime_agent.actions import Action, ActionOptions, ActionRunner, find_action, parse_action_list
from keylime_agent.processes import child_environment
from keylime_agent.stand_ins.M2Crypto import X509
from tests.fakes.tls_material import self_signed

INSTALLED, PAYLOAD = Path("/installed"), Path("/payload")
OPTIONS = ActionOptions(configured=(), directory=INSTALLED, allow_payload=True)


@pytest.mark.parametrize(
    "text",
    [
        "a.sh\nlocal_b\n",
        "a.sh, local_b",
        "a.sh,local_b",
        "a.sh local_b a.sh",
        "[\"a.sh\", 'local_b']",
        "\r\na.sh\r\nlocal_b\r\n",
    ],
)
def test_every_style_of_list_is_read(text: str) -> None:
    assert parse_action_list(text) == ("a.sh", "local_b")


def test_an_empty_list_has_no_names() -> None:
    assert parse_action_list(" \n[]\n,,") == ()


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("a", {"/installed/a", "/payload/a"}, Action("a", INSTALLED / "a", False, False)),
        ("a", {"/payload/a", "/installed/a.py"}, Action("a", PAYLOAD / "a", False, True)),
        ("a", {"/installed/a.py", "/payload/a.py"}, Action("a", INSTALLED / "a.py", True, False)),
        ("a", {"/payload/a.py"}, Action("a", PAYLOAD / "a.py", True, True)),
        ("a.py", {"/payload/a.py"}, Action("a.py", PAYLOAD / "a.py", True, True)),
        ("a", set(), None),
    ],
)
def test_installed_comes_before_payload_and_exact_before_suffixed(
    name: str, files: set[str], expected: Action | None
) -> None:
    assert find_action(name, OPTIONS, PAYLOAD, lambda path: str(path) in files) == expected


@pytest.mark.parametrize("name", ["../x", "/bin/sh", "a/b", ".", "..", ".hidden", "-rf", "a\0b", "", "a b"])
def test_a_name_with_a_path_is_no_action(name: str) -> None:
    assert find_action(name, OPTIONS, PAYLOAD, lambda _: True) is None


def test_payload_actions_can_be_forbidden() -> None:
    options = ActionOptions((), INSTALLED, allow_payload=False)
    assert find_action("a", options, PAYLOAD, lambda path: path.parent == PAYLOAD) is None


def runner(tmp_path: Path, *configured: str, limit_s: float = 10, allow_payload: bool = True) -> ActionRunner:
    for name in ("installed", "payload", "work"):
        (tmp_path / name).mkdir()
    return ActionRunner(
        child_environment("agent", tmp_path / "work"),
        tmp_path / "work",
        tmp_path / "payload",
        ActionOptions(configured, tmp_path / "installed", allow_payload),
        limit_s=limit_s,
    )


def script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o700)


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_shell_action_gets_the_path_of_the_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    actions = runner(tmp_path, "first.sh")
    script(
        tmp_path / "installed" / "first.sh", "#!/bin/sh\necho $# $PWD; stat -c %a $1; cat $1; echo oops >&2\n"
    )
    (tmp_path / "payload" / "action_list").write_text("second\n")
    (tmp_path / "payload" / "second").write_text("echo no interpreter line\n")  # not executable either
    asyncio.run(actions.run_all(b'{"type":"revocation"}'))
    lines = messages(caplog)
    assert f"Action stdout: 1 {tmp_path / 'work'}" in lines
    assert "Action stdout: 600" in lines
    assert 'Action stdout: {"type":"revocation"}' in lines
    assert "Action stderr: oops" in lines
    assert "Action stdout: no interpreter line" in lines
    assert lines.index("Executing revocation action first.sh") < lines.index(
        "Executing revocation action second"
    )
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cleared", ["local_action_cleared.sh"]),
        ("revocation", ["block.sh", "local_action_block.sh"]),
        ("comm_error", ["block.sh", "local_action_block.sh"]),
    ],
)
def test_only_actions_named_for_it_hear_that_an_agent_is_trusted_again(
    tmp_path: Path, kind: str, expected: list[str]
) -> None:
    names = ("block.sh", "local_action_block.sh", "local_action_cleared.sh")
    actions = runner(tmp_path, *names)
    log = tmp_path / "ran"
    for name in names:
        program = tmp_path / "installed" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\necho {name} >> {log}\n")
        program.chmod(0o700)
    asyncio.run(actions.run_all(b'{"type":"%s"}' % kind.encode()))
    assert log.read_text().split() == expected


def test_a_failing_or_hanging_action_does_not_stop_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    actions = runner(tmp_path, "hang.sh", "fail.sh", "not-executable", "last.sh", limit_s=0.5)
    script(tmp_path / "installed" / "hang.sh", "#!/bin/sh\nsleep 60 & sleep 60\n")
    script(tmp_path / "installed" / "fail.sh", "#!/bin/sh\nexit 3\n")
    (tmp_path / "installed" / "not-executable").write_text("#!/bin/sh\n")
    (tmp_path / "installed" / "not-executable").chmod(0o600)
    script(tmp_path / "installed" / "last.sh", "#!/bin/sh\necho done\n")
    asyncio.run(actions.run_all(b"{}"))
    lines = messages(caplog)
    assert "revocation action hang.sh: stopped at its time limit" in lines
    assert "revocation action fail.sh: exit status 3" in lines
    assert any("not-executable cannot be run" in line for line in lines)
    assert lines[-1] == "Action stdout: done"


def test_modules_of_a_payload_need_the_prefix(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    actions = runner(tmp_path, "installed_module")
    module = "import os\nasync def execute(event):\n    print('ran', event['ip'])\n    os._exit(0)\n"
    (tmp_path / "installed" / "installed_module.py").write_text(module)
    (tmp_path / "payload" / "other.py").write_text(module)
    (tmp_path / "payload" / "local_action_x.py").write_text(
        "import sibling\n" + module.replace("ran", "local")
    )
    (tmp_path / "payload" / "sibling.py").write_text("")
    (tmp_path / "payload" / "action_list").write_text("other,local_action_x")
    asyncio.run(actions.run_all(b'{"ip":"10.0.0.7"}'))
    lines = messages(caplog)
    assert "revocation action other skipped: modules of a payload must be named local_action_..." in lines
    assert "Executing revocation action installed_module" in lines
    assert [line for line in lines if line.startswith("revocation action local_action_x")] == []


def test_modules_that_read_a_certificate_with_m2crypto_run_unchanged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    actions = runner(tmp_path, "first", limit_s=60)
    issued = self_signed("machine")
    (tmp_path / "certificate.crt").write_text(issued.pem)
    script = (
        "from M2Crypto import X509\nasync def execute(event):\n"
        f"    print('serial', X509.load_cert({str(tmp_path / 'certificate.crt')!r}).get_serial_number())\n"
    )
    (tmp_path / "installed" / "first.py").write_text(script)
    (tmp_path / "payload" / "local_action_own.py").write_text(script.replace("'serial'", "'own'"))
    (tmp_path / "payload" / "action_list").write_text("local_action_own")
    asyncio.run(actions.run_all(b"{}"))
    serial = issued.certificate.serial_number
    assert [line for line in messages(caplog) if line.startswith("Action stdout")] == [
        f"Action stdout: serial {serial}",
        f"Action stdout: own {serial}",
    ]
    own = "class X509:\n    load_cert = staticmethod(lambda path: None)\n"
    (tmp_path / "payload" / "M2Crypto.py").write_text(own)
    (tmp_path / "payload" / "local_action_own.py").write_text(
        "import M2Crypto\nasync def execute(event):\n    print('from', M2Crypto.__file__)\n"
    )
    asyncio.run(actions.run_all(b"{}"))
    assert f"Action stdout: from {tmp_path / 'payload' / 'M2Crypto.py'}" in messages(caplog), "a real one"


def test_what_stands_in_for_m2crypto_reads_both_formats_and_says_what_is_none() -> None:
    issued = self_signed("machine")
    der = issued.certificate.public_bytes(Encoding.DER)
    for certificate in (X509.load_cert_string(issued.pem), X509.load_cert_string(der, X509.FORMAT_DER)):
        assert certificate.get_serial_number() == issued.certificate.serial_number
    with pytest.raises(X509.X509Error, match="no certificate"):
        X509.load_cert_string("x")
    with pytest.raises(ValueError, match="Unknown format"):
        X509.load_cert_string("x", 7)


def test_nothing_of_the_agents_environment_reaches_an_action(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("KEYLIME_CA_PASSWORD", "canary")
    actions = runner(tmp_path, "env.sh")
    script(tmp_path / "installed" / "env.sh", "#!/bin/sh\nenv\n")
    asyncio.run(actions.run_all(b"{}"))
    names = {line.partition(": ")[2].partition("=")[0] for line in messages(caplog) if "stdout" in line}
    assert names - {"PWD", "_", "SHLVL"} == {"PATH", "LANG", "HOME", "USER", "AGENT_UUID", "KEYLIME_DIR"}


def test_payload_lists_are_not_read_when_payload_actions_are_forbidden(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    actions = runner(tmp_path, allow_payload=False)
    script(tmp_path / "payload" / "a.sh", "#!/bin/sh\necho ran\n")
    (tmp_path / "payload" / "action_list").write_text("a.sh")
    asyncio.run(actions.run_all(b"{}"))
    assert messages(caplog) == []


def test_a_list_of_a_payload_that_is_no_file_holds_nobody_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    actions = runner(tmp_path, "configured.sh")
    script(tmp_path / "installed" / "configured.sh", "#!/bin/sh\necho ran\n")
    path = tmp_path / "payload" / "action_list"
    os.mkfifo(path)
    writer = threading.Timer(20, lambda: os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK)))
    writer.start()  # whoever waits for one fails, and does not hang
    try:
        asyncio.run(actions.run_all(b'{"type":"revocation"}'))
    finally:
        writer.cancel()
    assert "Action stdout: ran" in messages(caplog)
    assert f"{path} is no file: its actions are not run" in messages(caplog)


def test_a_flood_of_output_is_cut(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    actions = runner(tmp_path, "flood.sh")
    script(tmp_path / "installed" / "flood.sh", "#!/bin/sh\nyes | head -c 3000000; printf 'a\\033[2Jb' >&2\n")
    asyncio.run(actions.run_all(b"{}"))
    lines = messages(caplog)
    assert len(lines) == 1 + 1000 + 1
    assert "Action stdout: ... further output is not logged" in lines
    assert "Action stderr: a?[2Jb" in lines
