"""The files of systemd/, judged by the programs that will read them."""

import configparser
import pwd
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest

from keylime.config.options import TABLES
from keylime_agent.main import FORBIDDEN

_SYSTEMD = Path(__file__).parents[2] / "systemd"
_DOCUMENT = Path(__file__).parents[2] / "docs/operation.md"
_SERVICES = ("keylime_agent", "keylime_push_model_agent", "keylime_registrar", "keylime_verifier")


def _tool(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def _unit(name: str) -> configparser.RawConfigParser:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string((_SYSTEMD / name).read_text())
    return unit


def test_systemd_understands_every_unit(tmp_path: Path) -> None:
    analyze = _tool("systemd-analyze")
    for path in (*_SYSTEMD.glob("*.service"), *_SYSTEMD.glob("*.mount")):
        text = path.read_text()
        for service in _SERVICES:
            stub = tmp_path / service
            stub.write_text("#!/bin/sh\n")
            stub.chmod(0o755)
            text = text.replace(f"/usr/bin/{service}", str(stub))
        (tmp_path / path.name).write_text(text)
    units = sorted(str(path) for path in tmp_path.iterdir() if path.suffix)
    assert len(units) == 6
    result = subprocess.run(  # noqa: S603
        [analyze, "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    ours = [line for line in result.stderr.splitlines() if "keylime" in line]
    assert (result.returncode, ours) == (0, [])


@pytest.mark.parametrize("service", _SERVICES)
def test_a_service_tells_when_it_is_ready_is_watched_and_reloads_on_a_hang_up(service: str) -> None:
    unit = _unit(f"{service}.service")["Service"]
    # Not notify-reload, which systemd 252 does not know; and with it NotifyAccess is `main` already.
    assert (unit["Type"], unit["ExecReload"]) == ("notify", "/bin/kill -HUP $MAINPID")
    assert unit["WatchdogSec"] == "60s"
    # Migrations and slow TPMs are part of the start now.
    assert unit["TimeoutStartSec"] == "10min"


@pytest.mark.parametrize("service", _SERVICES)
def test_a_service_starts_its_program_and_comes_back_after_failures(service: str) -> None:
    unit = _unit(f"{service}.service")
    assert unit["Service"]["ExecStart"] == f"/usr/bin/{service}"
    assert unit["Service"]["Restart"] == "on-failure"
    assert unit["Service"]["LimitCORE"] == "0"
    assert unit["Install"]["WantedBy"] == "multi-user.target"


def test_the_agent_starts_after_its_secure_directory_and_the_resource_manager() -> None:
    unit = _unit("keylime_agent.service")["Unit"]
    assert unit["Requires"] == "var-lib-keylime-secure.mount"
    assert {"var-lib-keylime-secure.mount", "tpm2-abrmd.service", "network-online.target"} <= set(
        unit["After"].split()
    )
    assert "tpm2-abrmd.service" in unit["Wants"].split()


@pytest.mark.parametrize("service", _SERVICES)
def test_what_may_be_mended_elsewhere_needs_no_hand_here(service: str) -> None:
    unit = _unit(f"{service}.service")
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert "StartLimitBurst" not in unit["Unit"]
    assert int(unit["Service"]["RestartSec"].removesuffix("s")) >= 10
    # Unknown before systemd 254, which would complain at each boot.
    assert "RestartSteps" not in unit["Service"]


def test_the_pauses_that_the_documents_advise_are_options_of_a_service() -> None:
    advice = re.search(r"```ini\n(# /etc/systemd/system/keylime_.*?)```", _DOCUMENT.read_text(), re.DOTALL)
    assert advice is not None
    drop_in = configparser.RawConfigParser()
    drop_in.optionxform = str  # type: ignore[assignment,method-assign]
    drop_in.read_string(advice[1])
    assert set(drop_in["Service"]) == {"RestartSteps", "RestartMaxDelaySec"}


def test_what_a_restart_cannot_mend_is_not_repeated() -> None:
    assert _unit("keylime_agent.service")["Service"]["RestartPreventExitStatus"] == str(FORBIDDEN)


@pytest.mark.parametrize("service", ["keylime_agent", "keylime_push_model_agent"])
def test_an_agent_starts_as_root(service: str) -> None:
    assert "User" not in _unit(f"{service}.service")["Service"]


def test_a_machine_has_an_agent_of_one_model() -> None:
    polled, pushing = _unit("keylime_agent.service"), _unit("keylime_push_model_agent.service")
    assert polled["Unit"]["Conflicts"] == "keylime_push_model_agent.service"
    assert pushing["Unit"]["Conflicts"] == "keylime_agent.service"
    # It takes no payload, and goes on when it is refused.
    assert "Requires" not in pushing["Unit"]
    assert "RestartPreventExitStatus" not in pushing["Service"]


@pytest.mark.parametrize("service", ["keylime_verifier", "keylime_registrar"])
def test_servers_run_as_keylime_with_nothing_but_their_working_directory(service: str) -> None:
    unit = _unit(f"{service}.service")["Service"]
    assert (unit["User"], unit["NoNewPrivileges"], unit["ProtectSystem"]) == ("keylime", "yes", "strict")
    assert "/var/lib/keylime" in unit["ReadWritePaths"].split()


@pytest.mark.parametrize(
    ("service", "tenths"),
    [
        ("keylime_verifier", 20),
        ("keylime_registrar", 20),
        ("keylime_agent", 50),
        ("keylime_push_model_agent", 40),
    ],
)
def test_services_are_exposed_no_more_than_they_must(service: str, tenths: int) -> None:
    command = [_tool("systemd-analyze"), "security", "--offline=true", "--no-pager", f"--threshold={tenths}"]
    result = subprocess.run(  # noqa: S603
        [*command, str(_SYSTEMD / f"{service}.service")], capture_output=True, text=True, check=False
    )
    if "unrecognized option" in result.stderr or "nknown" in result.stderr:
        pytest.skip("this systemd judges no unit that is not loaded")
    assert result.returncode == 0, result.stdout[-200:] + result.stderr


def test_payloads_of_the_agent_keep_what_they_have_always_had() -> None:
    """Firewall, files, processes, users; what they mount or unpack is where everybody sees it."""
    unit = (_SYSTEMD / "keylime_agent.service").read_text()
    taken = set(re.findall(r"CAP_\w+", unit))
    kept = {"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_CHOWN", "CAP_KILL"}
    assert not taken & {*kept, "CAP_SETUID", "CAP_SETGID"}
    options = {line.partition("=")[0] for line in unit.splitlines()}
    assert not options & {"NoNewPrivileges", "PrivateTmp", "ProtectHome", "ProtectSystem", "ReadWritePaths"}


def test_the_ima_policy_is_loaded_once_and_only_where_it_can_be() -> None:
    unit = (_SYSTEMD / "ima-policy.service").read_text()
    assert "ConditionPathExists=/etc/ima/ima-policy" in unit
    assert "ConditionPathExists=/sys/kernel/security/ima/policy" in unit


def test_each_line_of_the_ima_policy_is_a_rule_of_the_kernel() -> None:
    lines = (_SYSTEMD / "ima" / "ima-policy").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert all(
        re.fullmatch(r"(dont_)?measure( (fsmagic=0x[0-9a-f]+|func=[A-Z_]+|mask=MAY_EXEC))+", r) for r in rules
    )
    assert rules.index("measure func=BPRM_CHECK mask=MAY_EXEC") > rules.index("dont_measure fsmagic=0x9fa0")


def test_the_verifier_starts_before_the_registrar() -> None:
    assert _unit("keylime_verifier.service")["Unit"]["Before"] == "keylime_registrar.service"


def test_the_mount_unit_has_the_name_and_options_that_are_needed() -> None:
    unit = _unit("var-lib-keylime-secure.mount")
    assert unit["Mount"]["Where"] == "/var/lib/keylime/secure"
    assert {"mode=0700", "size=1m", "uid=keylime", "gid=tss"} <= set(unit["Mount"]["Options"].split(","))
    assert "keylime_agent.service" in unit["Unit"]["Before"].split()
    # Stays when the agent stops: nothing binds it to the service.
    assert not {"BindsTo", "PartOf", "StopWhenUnneeded"} & set(unit["Unit"])


def test_sysusers_makes_the_user_keylime_in_group_tss(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    command = [_tool("systemd-sysusers"), f"--root={tmp_path}", str(_SYSTEMD / "sysusers.d" / "keylime.conf")]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603
    users = [line.split(":") for line in (tmp_path / "etc/passwd").read_text().splitlines()]
    (keylime,) = [fields for fields in users if fields[0] == "keylime"]
    assert keylime[5] == "/var/lib/keylime"
    assert keylime[6].endswith("nologin")
    groups = [line.split(":") for line in (tmp_path / "etc/group").read_text().splitlines()]
    assert [fields[3] for fields in groups if fields[0] == "tss"] == ["keylime"]


def test_tmpfiles_makes_closed_directories(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    sysusers, tmpfiles = _tool("systemd-sysusers"), _tool("systemd-tmpfiles")
    for tool, options, file in (
        (sysusers, [], "sysusers.d/keylime.conf"),
        (tmpfiles, ["--create"], "tmpfiles.d/keylime.conf"),
    ):
        command = [tool, f"--root={tmp_path}", *options, str(_SYSTEMD / file)]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603
    modes = {
        "run/keylime": 0o700,
        "var/lib/keylime": 0o700,
        "var/lib/keylime/tpm_cert_store": 0o700,
        "var/log/keylime": 0o750,
    }
    users = [line.split(":") for line in (tmp_path / "etc/passwd").read_text().splitlines()]
    uid = next(int(fields[2]) for fields in users if fields[0] == "keylime")
    for name, mode in modes.items():
        status = (tmp_path / name).stat()
        assert (status.st_mode & 0o7777, status.st_uid) == (mode, uid), name


def test_the_firewall_opens_exactly_the_default_ports() -> None:
    service = ElementTree.parse(_SYSTEMD / "firewalld" / "keylime.xml").getroot()  # noqa: S314
    assert service.findtext("short") == "Keylime"
    opened = {(port.get("protocol"), int(port.get("port", "0"))) for port in service.iter("port")}
    listened = {
        ("agent", "agent", "port"),
        ("registrar", "registrar", "port"),
        ("registrar", "registrar", "tls_port"),
        ("verifier", "verifier", "port"),
        ("verifier", "revocations", "zmq_port"),
    }
    defaults = {TABLES[component].by_key()[section, name].default for component, section, name in listened}
    assert opened == {("tcp", port) for port in defaults}


def test_logrotate_understands_its_file(tmp_path: Path) -> None:
    try:
        pwd.getpwnam("keylime")
    except KeyError:
        pytest.skip("logrotate checks that the user keylime exists")
    command = [
        _tool("logrotate"),
        "-d",
        "-s",
        str(tmp_path / "state"),
        str(_SYSTEMD / "logrotate" / "keylime"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert (result.returncode, "error" in result.stderr) == (0, False), result.stderr
