"""Every program over files that are missing, garbage, directories, closed or somebody else's.

It ends with one line that names the file and the remedy, an exit status that is not 0, and no traceback.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes.forked_programs import Order, console_scripts, run

FILE = "agent_data.json"  # of the tree, for programs that are given a file
COMMANDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "agent": ("keylime_agent", ()),
    "agent, pushing": ("keylime_push_model_agent", ()),
    "verifier": ("keylime_verifier", ()),
    "verifier, migration": ("keylime_verifier", ("--migrate",)),
    "registrar": ("keylime_registrar", ()),
    "registrar, migration": ("keylime_registrar", ("--migrate",)),
    "tenant": ("keylime_tenant", ("-c", "cvlist")),
    "tenant, policy": ("keylime_tenant", ("-c", "addruntimepolicy", "--runtime-policy", FILE)),
    "tenant, payload": ("keylime_tenant", ("-c", "add", "-f", FILE)),
    "tenant, certificate": ("keylime_tenant", ("-c", "add", "--cert", "ca")),
    "authority, certificate": ("keylime_ca", ("-c", "create", "-n", "node", "-d", "ca")),
    "authority, revocation": ("keylime_ca", ("-c", "revoke", "-n", "node", "-d", "ca")),
    "authority, list": ("keylime_ca", ("-c", "listen", "-n", FILE, "-d", "ca")),
    "authority, makers": ("keylime_ca", ("import-vendor", FILE, "--store", "store")),
    "payload": ("keylime_userdata_encrypt", (FILE,)),
    "emulator": ("keylime_ima_emulator", ("--ima-log", FILE)),
    "policy, check": ("keylime-policy", ("check", "--runtime-policy", FILE)),
    "policy, runtime": ("keylime-policy", ("create", "runtime", "--base-policy", FILE)),
    "policy, boot": ("keylime-policy", ("create", "measured-boot", "-e", FILE)),
    "policy, show": ("keylime-policy", ("show", FILE)),
    "policy, conversion": ("keylime-policy", ("convert", FILE, "-o", "out")),
    "policy, failure": ("keylime-policy", ("update", FILE, "--from-failure", FILE, "-o", "out")),
    "policy, image": ("keylime-policy", ("create", "runtime", "--oci-image", FILE, "-o", "out")),
    "policy, signature": ("keylime-policy", ("sign", "runtime", "-r", FILE, "-o", "out", "-k", FILE)),
    "evidence": ("keylime_attest", ("--evidence", FILE)),
    "configuration": ("keylime_upgrade_config", ("--input", FILE, "--out", ".")),
    "old conversion": ("keylime_convert_runtime_policy", ("-r", FILE, "-o", "out")),
    "old policy": ("keylime_create_policy", ("-B", FILE, "-m", "/dev/null", "-o", "out")),
    "old signature": ("keylime_sign_runtime_policy", ("-r", FILE, "-o", "out", "-k", FILE)),
}
CONFIGURED = [name for name in COMMANDS if name.startswith(("agent", "verifier", "registrar", "tenant"))]
_AUTHORITY = ("cacert.crt", "ca-private.pem", "private.yml", "server-cert.crt", "server-private.pem")
FILES = (
    *(
        FILE,
        "payload-private.pem",
        "server-private.pem",
        "server-cert.crt",
        "cv_data.sqlite",
        "reg_data.sqlite",
    ),
    *(
        f"{directory}/{name}"
        for directory in ("cv_ca", "reg_ca", "ca", "store")
        for name in (*_AUTHORITY, "client-cert.crt", "client-private.pem")
    ),
)
NOBODY = 65534
SOMEBODY = 12345
# What is fine for a program: any bytes can be encrypted, and with nothing there a service begins.
FINE = {
    **{kind: {"payload"} for kind in ("empty", "foreign", "garbage", "garbage certificates")},
    "missing": {"verifier", "verifier, migration", "registrar, migration"},
}
FINE["empty"] = FINE["empty"] | {"verifier, migration", "registrar, migration"}


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may enter, with a working directory in it."""
    with tempfile.TemporaryDirectory() as made:
        path = Path(made)
        path.chmod(0o755)
        (path / "keylime").mkdir(mode=0o700)
        yield path


def every_file(work_dir: Path, make: Callable[[Path], object]) -> None:
    for name in FILES:
        path = work_dir / name
        path.parent.mkdir(mode=0o700, exist_ok=True)
        make(path)


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff\x00garbage\n" * 3)
    path.chmod(0o600)


def foreign(path: Path) -> None:
    garbage(path)
    os.chown(path, SOMEBODY, SOMEBODY)


def bad_certificate(path: Path) -> None:
    path.write_text("-----BEGIN CERTIFICATE-----\nMAAA\n-----END CERTIFICATE-----\n")
    path.chmod(0o600)


def empty(path: Path) -> None:
    path.touch(0o600)


def nothing(path: Path) -> None:
    pass


def loop(path: Path) -> None:
    path.symlink_to(path.name)


KINDS: dict[str, Callable[[Path], object]] = {
    "directories": lambda path: path.mkdir(mode=0o700),
    "empty": empty,
    "foreign": foreign,
    "garbage": garbage,
    "garbage certificates": bad_certificate,
    "loops": loop,
    "missing": nothing,
}


def order(command: str, place: Path, *, directory: Path | None = None, user: int | None = None) -> Order:
    program, arguments = COMMANDS[command]
    (place / "empty.conf").touch()
    components = ("AGENT", "VERIFIER", "REGISTRAR", "TENANT", "CA", "LOGGING")
    environment = {
        "PATH": os.environ["PATH"],
        "KEYLIME_DIR": str(place / "keylime"),
        "KEYLIME_TEST": "on",
        "KEYLIME_AGENT_RUN_AS": "",
        "KEYLIME_CA_PASSWORD": "secret",
        "TCTI": "swtpm:host=127.0.0.1,port=1",
        # Would wait for the verifier to make what is not there.
        "KEYLIME_REGISTRAR_TLS_DIR": "generate",
        **{f"KEYLIME_{component}_CONFIG": str(place / "empty.conf") for component in components},
    }
    return Order(program, arguments, environment, str(directory or place), user)


def complaint(given: Order) -> str:
    """The one line that the program ends with."""
    ended = run(given, merged=True)
    assert "Traceback" not in ended.stdout, ended.stdout
    assert ended.returncode in (1, 2, 255), ended
    lines = [line for line in ended.stdout.splitlines() if line.startswith(f"{given.program}: error: ")]
    assert len(lines) == 1, ended.stdout
    return lines[0]


def demand_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away, and becomes somebody else")


def test_every_program_is_walked() -> None:
    elsewhere = {"keylime-setup"}  # knows no directory but the machine's own: test_setup.py
    assert {program for program, _ in COMMANDS.values()} == console_scripts().keys() - elsewhere


@pytest.mark.parametrize(
    ("command", "kind"),
    [(command, kind) for command in COMMANDS for kind in KINDS if command not in FINE.get(kind, ())],
)
def test_files_that_cannot_be_used(place: Path, command: str, kind: str) -> None:
    if kind == "foreign":
        demand_root()
    every_file(place / "keylime", KINDS[kind])
    assert complaint(order(command, place, directory=place / "keylime"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_in_place_of_the_working_directory(place: Path, command: str) -> None:
    (place / "keylime").rmdir()
    (place / "keylime").touch()
    assert complaint(order(command, place))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_working_directory_that_the_user_may_not_enter(place: Path, command: str) -> None:
    demand_root()
    (place / FILE).touch(0o600)
    (place / "ca").mkdir(0o700)
    line = complaint(order(command, place, user=NOBODY))
    assert command not in CONFIGURED or "Permission denied" in line or "may not" in line, line


@pytest.mark.parametrize("kind", ["garbage", "closed", "no options"])
@pytest.mark.parametrize("command", CONFIGURED)
def test_configuration_that_cannot_be_used(place: Path, command: str, kind: str) -> None:
    path = place / "broken.conf"
    match kind:
        case "garbage":
            garbage(path)
        case "closed":
            demand_root()
            path.touch(0o600)
        case "no options":
            path.write_text("no section\n")
    component = COMMANDS[command][0].removeprefix("keylime_").removeprefix("push_model_").upper()
    user = NOBODY if kind == "closed" else None
    for name in (component, "LOGGING"):
        given = order(command, place, user=user)
        changed = {**given.environ, f"KEYLIME_{name}_CONFIG": str(path)}
        assert str(path) in complaint(replace(given, environ=changed))
