"""Attacks through files (catalogue H): programs do not start on what somebody else may change."""

import os
import stat
from pathlib import Path

import pytest

from tests.fakes import forked_programs
from tests.fakes.forked_programs import Order
from tests.fakes.running_verifier import install_certificates

STRANGER = 65534

PROGRAMS = {
    "keylime_verifier": ("verifier", ()),
    "keylime_registrar": ("registrar", ()),
    "keylime_agent": ("agent", ()),
    "keylime_tenant": ("tenant", ("-c", "reglist")),
}
KEYS = {"keylime_verifier": "server", "keylime_registrar": "server", "keylime_tenant": "client"}


def run(program: str, home: Path, **environ: str) -> str:
    """What the program says at its end on standard error: one line, after exit status 1."""
    component, arguments = PROGRAMS[program]
    environment = {
        "PATH": os.environ["PATH"],
        "KEYLIME_DIR": str(home),
        f"KEYLIME_{component.upper()}_CONFIG": str(home / "config"),
        "KEYLIME_VERIFIER_PORT": "0",
        "KEYLIME_REGISTRAR_PORT": "0",
        "KEYLIME_REGISTRAR_TLS_PORT": "0",
        "KEYLIME_REGISTRAR_MAX_WORKERS": "1",
        "KEYLIME_VERIFIER_NUM_WORKERS": "1",
        "KEYLIME_AGENT_RUN_AS": "",
        "KEYLIME_AGENT_REVOCATION_ACTIONS_DIR": str(home / "actions"),
        "KEYLIME_AGENT_REVOCATION_CERT": str(home / "notifier.crt"),
        "TCTI": "device:/nonexistent",
    }
    if component == "agent":
        environment["KEYLIME_TEST"] = "True"  # no tmpfs is mounted
    done = forked_programs.run(Order(program, arguments, environment | environ))
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{program}: error: ")
    return line


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A working directory with all that the programs need, and nothing that others may change."""
    install_certificates(tmp_path)
    (tmp_path / "actions").mkdir()
    for name in ("config", "notifier.crt", "actions/local_action_x"):
        (tmp_path / name).write_text("")
    (tmp_path / "tpm_cert_store").mkdir()
    return tmp_path


THINGS = [
    *((program, thing) for program in PROGRAMS for thing in (".", "config", "cv_ca", "cv_ca/cacert.crt")),
    *((program, f"cv_ca/{name}-private.pem") for program, name in KEYS.items()),
    *(("keylime_agent", thing) for thing in ("actions", "actions/local_action_x", "notifier.crt")),
    ("keylime_registrar", "tpm_cert_store"),
]


@pytest.mark.parametrize(("program", "thing"), THINGS)
def test_h1_what_everybody_may_write_stops_the_start(home: Path, program: str, thing: str) -> None:
    path = home / thing
    path.chmod(path.stat().st_mode | stat.S_IWOTH)
    line = run(program, home)
    assert str(path) in line
    assert f"chmod o-w {path}" in line or f"chmod 0600 {path}" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(
    ("program", "thing"),
    [(program, thing) for program, thing in THINGS if program == "keylime_verifier" or "/" not in thing],
)
def test_h1_what_belongs_to_somebody_else_stops_the_start(home: Path, program: str, thing: str) -> None:
    path = home / thing
    os.chown(path, STRANGER, STRANGER)
    line = run(program, home)
    assert f"{path} belongs to nobody; run: chown root {path}" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_h1_a_group_that_is_not_ours_stops_the_start(home: Path) -> None:
    path = home / "cv_ca" / "cacert.crt"
    os.chown(path, 0, STRANGER)
    path.chmod(0o664)
    line = run("keylime_verifier", home, KEYLIME_VERIFIER_TLS_DIR="default")
    assert "[verifier] trusted_client_ca: " in line
    assert f"{path} may be written by group nogroup (mode 0664); run: chmod g-w {path}" in line


@pytest.mark.parametrize("program", ["keylime_verifier", "keylime_registrar"])
def test_h2_a_database_that_is_a_link_stops_the_start(home: Path, program: str) -> None:
    name = {"keylime_verifier": "cv_data.sqlite", "keylime_registrar": "reg_data.sqlite"}[program]
    target = home / "elsewhere"
    target.write_bytes(b"")
    target.chmod(0o644)
    (home / name).symlink_to(target)
    assert f"{home / name} is a symbolic link" in run(program, home)
    assert (target.read_bytes(), stat.S_IMODE(target.stat().st_mode)) == (b"", 0o644)


@pytest.mark.parametrize("program", ["keylime_verifier", "keylime_registrar"])
def test_h1_a_file_that_is_not_ours_is_left_as_it_is(home: Path, program: str) -> None:
    foreign = home / "shadow"
    foreign.write_text("root:*:19000:0:99999:7:::\n" * 50)
    foreign.chmod(0o644)
    before = foreign.read_bytes(), foreign.stat().st_mode, foreign.stat().st_mtime_ns, sorted(home.iterdir())
    option = f"{program.upper()}_DATABASE_URL"
    line = run(program, home, **{option: f"sqlite:///{foreign}"})
    assert f"{foreign} is no SQLite database and is left as it is" in line
    after = foreign.read_bytes(), foreign.stat().st_mode, foreign.stat().st_mtime_ns, sorted(home.iterdir())
    assert after == before


@pytest.mark.parametrize("program", PROGRAMS)
def test_h1_a_nul_character_in_an_option_stops_the_start(home: Path, program: str) -> None:
    option = "uuid" if program in ("keylime_verifier", "keylime_agent") else "tls_dir"
    (home / "config").write_bytes(f"# first\n{option} = a\0b\n".encode())
    line = run(program, home)
    assert f"{home / 'config'}, line 2: [{PROGRAMS[program][0]}] {option} holds a NUL character" in line


def test_h1_a_module_of_policies_that_others_may_change_stops_the_start(home: Path) -> None:
    modules = home / "modules"
    modules.mkdir()
    module = modules / "boot_rules.py"
    module.write_text("raise SystemExit('this ran')\n")
    module.chmod(0o646)
    options = {"KEYLIME_VERIFIER_MEASURED_BOOT_IMPORTS": "boot_rules", "PYTHONPATH": str(modules)}
    line = run("keylime_verifier", home, KEYLIME_VERIFIER_TLS_DIR="default", **options)
    assert f"measured_boot_imports: module 'boot_rules': {module} may be written by everybody" in line
