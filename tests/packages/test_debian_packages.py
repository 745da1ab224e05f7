"""Debian packages: built, installed each alone, used, upgraded, removed, purged (`make test-packages`)."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.packages.debian_root import DebianRoot

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / "build" / "wheels"
TOOLS = ("debootstrap", "dpkg-buildpackage", "lintian", "unshare")
ALONE = {
    "keylime-agent": {"keylime-common"},
    "keylime-common": set[str](),
    "keylime-doc": set[str](),
    "keylime-firewalld": set[str](),
    "keylime-ima-policy": set[str](),
    "keylime-registrar": {"keylime-common", "keylime-database"},
    "keylime-tenant": {"keylime-common"},
    "keylime-verifier": {"keylime-common", "keylime-database"},
}
SCRIPTS = {
    "keylime-agent": ("keylime_agent", "keylime_ima_emulator", "keylime_push_model_agent"),
    "keylime-registrar": ("keylime_registrar",),
    "keylime-tenant": ("keylime_tenant", "keylime-policy", "keylime_ca"),
    "keylime-verifier": ("keylime_verifier",),
}

pytestmark = [
    pytest.mark.skipif("KEYLIME_TEST_PACKAGES" not in os.environ, reason="run by `make test-packages`"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a system of its own"),
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)), reason=f"one of these is not installed: {', '.join(TOOLS)}"
    ),
    pytest.mark.timeout(3600),
]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Built now, or those of KEYLIME_TEST_PACKAGES_FROM."""
    output = Path(os.environ.get("KEYLIME_TEST_PACKAGES_FROM") or tmp_path_factory.mktemp("dist"))
    if not list(output.glob("*.deb")):
        # Nothing but the loopback: a build that reaches for the network fails.
        command = ["unshare", "--net", str(ROOT / "packaging/tools/make-deb"), str(WHEELS), str(output)]
        subprocess.run(command, check=True)  # noqa: S603
    return {path.name.partition("_")[0]: path for path in output.glob("*.deb")}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A minimal Debian, which no test changes."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text("utf-8").splitlines() if "=" in line
    )
    directory = Path(
        os.environ.get("KEYLIME_TEST_PACKAGES_ROOT") or tmp_path_factory.mktemp("system") / "root"
    )
    if not (directory / "packages").exists():
        DebianRoot.make(directory, release["VERSION_CODENAME"].strip('"'))
    return directory


@pytest.fixture
def system(fresh: Path, tmp_path: Path) -> Iterator[DebianRoot]:
    """Changes go to memory, and with the test."""
    memory, root = tmp_path / "memory", tmp_path / "root"
    for directory in (memory, root):
        directory.mkdir()
    with mounted("tmpfs", memory, "mode=0755"):
        (memory / "upper").mkdir()
        (memory / "work").mkdir()
        layers = f"lowerdir={fresh},upperdir={memory}/upper,workdir={memory}/work"
        with mounted("overlay", root, layers):
            yield DebianRoot(root)


@contextmanager
def mounted(kind: str, place: Path, options: str) -> Iterator[None]:
    command = ["mount", "-t", kind, "-o", options, kind, str(place)]
    subprocess.run(command, check=True)  # noqa: S603
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)  # noqa: S603, S607


def wanted(name: str, packages: dict[str, Path]) -> list[Path]:
    return [packages[each] for each in sorted({name, *ALONE[name]})]


def test_lintian_finds_nothing(packages: dict[str, Path]) -> None:
    kinds = ("--display-info", "--fail-on", "error,warning,info")
    command = ["lintian", "--allow-root", *kinds, *map(str, packages.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("name", ALONE)
def test_each_is_installed_alone_and_purged_without_a_trace(
    name: str, system: DebianRoot, packages: dict[str, Path]
) -> None:
    before = system.files()
    system.install(wanted(name, packages))
    assert system.installed() == {name, *ALONE[name]}
    for script in SCRIPTS.get(name, ()):
        assert system.run(script, "--version").stdout.startswith(f"{script} 8.")
        system.run(script, "--help")
    installed = sorted(system.installed())
    system.run("apt-get", "-qq", "remove", "-y", *installed)
    assert not [path for path in system.files() if path.startswith("usr/lib/keylime")]
    system.run("dpkg", "--purge", *installed)
    assert {path for path in system.files() - before if not path.endswith("-")} <= {
        "var/lib/private",
        "run/tss",
    }


def test_an_agent_comes_without_a_database(system: DebianRoot, packages: dict[str, Path]) -> None:
    system.install(wanted("keylime-agent", packages))
    python = "/usr/lib/keylime/bin/python3"
    for module in ("sqlalchemy", "psycopg", "alembic", "keylime_verifier"):
        assert system.run(python, "-I", "-c", f"import {module}", check=False).returncode != 0
    system.run(python, "-I", "-c", "import tpm2_pytss, keylime_agent.main")
    for program in ("keylime_agent", "keylime_push_model_agent"):
        told = system.run(program, "--check-config").stdout
        assert "configuration is good (/usr/etc/keylime/agent.conf" in told
        assert "[agent] verifier_url" in system.run(program, "--dump-config").stdout
        assert (system.directory / f"usr/share/man/man8/{program}.8.gz").is_file()
        (unit,) = system.run("dpkg", "--search", f"systemd/system/{program}.service").stdout.splitlines()
        assert unit.startswith("keylime-agent: ")


def test_users_directories_and_configuration(system: DebianRoot, packages: dict[str, Path]) -> None:
    system.install(sorted({path for name in ALONE for path in wanted(name, packages)}))

    def stat(path: str) -> str:
        return system.run("stat", "-c", "%U:%G %a", path).stdout.strip()

    assert system.run("id", "-nG", "keylime").stdout.split() == ["keylime", "tss"]
    assert stat("/var/lib/keylime") == "keylime:tss 700"
    assert stat("/run/keylime") == "keylime:tss 700"
    for component, group in (
        ("verifier", "keylime"),
        ("registrar", "keylime"),
        ("ca", "keylime"),
        ("agent", "tss"),
    ):
        assert stat(f"/etc/keylime/{component}.conf.d") == f"root:{group} 2750"
    # A snippet of root's, made with the usual mask, is read by the daemon and by nobody else.
    system.run(
        "sh", "-c", "umask 022; echo '[verifier]\nport = 4711' >/etc/keylime/verifier.conf.d/site.conf"
    )
    told = system.run(
        "setpriv", "--reuid=keylime", "--regid=keylime", "--init-groups", "keylime_verifier", "--dump-config"
    )
    assert "[verifier] port = 4711  # /etc/keylime/verifier.conf.d/site.conf, line 2" in told.stdout
    assert "[verifier] ip = 0.0.0.0  # /usr/etc/keylime/verifier.conf" in told.stdout
    assert (
        system.run("setpriv", "--reuid=nobody", "ls", "/etc/keylime/verifier.conf.d", check=False).returncode
        != 0
    )


def test_the_control_plane_starts_from_packaged_files_alone(
    system: DebianRoot, packages: dict[str, Path]
) -> None:
    system.install(wanted("keylime-verifier", packages))
    script = """
        ip link set lo up
        setpriv --reuid=keylime --regid=keylime --init-groups keylime_verifier >/tmp/log 2>&1 &
        for i in $(seq 1000); do grep -q Listening /tmp/log && break; sleep 0.1; done
        /usr/lib/keylime/bin/python3 -I -c 'import ssl, urllib.request
anyone = ssl._create_unverified_context()
print(urllib.request.urlopen("https://127.0.0.1:8881/healthz", context=anyone).status)'
        kill $!; wait $!; echo ended $?
    """
    done = system.run("sh", "-c", script)
    log = (system.directory / "tmp/log").read_text("utf-8")
    assert done.stdout.split() == ["200", "ended", "0"], log + done.stderr
    assert "Listening on 0.0.0.0:8881" in log


def test_an_upgrade_keeps_what_is_there_and_removal_keeps_state(
    system: DebianRoot, packages: dict[str, Path], tmp_path: Path
) -> None:
    names = ["keylime-verifier", *sorted(ALONE["keylime-verifier"])]
    system.install([packages[name] for name in names])
    system.run("sh", "-c", "echo '[verifier]\nport = 4711' >/etc/keylime/verifier.conf.d/site.conf")
    system.run(
        "sh", "-c", "chown root:root /etc/keylime/verifier.conf.d && chmod 700 /etc/keylime/verifier.conf.d"
    )
    system.run(
        "sh",
        "-c",
        "cd /var/lib/keylime && echo key >key && chown root key && touch cv_data.sqlite",
    )
    system.install([_next_version(packages[name], tmp_path) for name in names])
    assert system.run("dpkg-query", "-W", "-f", "${Version}", "keylime-verifier").stdout.endswith("+next")
    # What an administrator has decided about owners and modes stays; nothing is changed recursively.
    assert system.run("stat", "-c", "%U %a", "/etc/keylime/verifier.conf.d").stdout == "root 2700\n"
    assert system.run("stat", "-c", "%U", "/var/lib/keylime/key").stdout == "root\n"
    assert "port = 4711" in system.run("keylime_verifier", "--dump-config").stdout
    system.run("apt-get", "-qq", "remove", "-y", "keylime-verifier")
    assert (system.directory / "var/lib/keylime/cv_data.sqlite").exists()
    assert (system.directory / "etc/keylime/verifier.conf.d/site.conf").exists()
    system.run("dpkg", "--purge", "keylime-verifier")
    assert not (system.directory / "var/lib/keylime/cv_data.sqlite").exists()
    assert not (system.directory / "etc/keylime/verifier.conf.d").exists()
    assert (system.directory / "var/lib/keylime/key").exists()
    system.run("dpkg", "--purge", "keylime-database", "keylime-common")
    assert not (system.directory / "var/lib/keylime").exists()
    assert not (system.directory / "etc/keylime").exists()


def _next_version(package: Path, directory: Path) -> Path:
    """The same package with a later number."""
    tree, target = directory / package.stem, directory / package.name.replace("_8", "_next-8")
    subprocess.run(["dpkg-deb", "-R", str(package), str(tree)], check=True)  # noqa: S603, S607
    control = tree / "DEBIAN" / "control"
    text = control.read_text("utf-8")
    version = next(line for line in text.splitlines() if line.startswith("Version: ")).split()[1]
    control.write_text(text.replace(version, f"{version}+next"), "utf-8")
    build = ["dpkg-deb", "-Znone", "--root-owner-group", "-b", str(tree), str(target)]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
    return target
