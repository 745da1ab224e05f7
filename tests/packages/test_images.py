"""Images of control plane and agent, built from packages and run confined (`make test-packages`)."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.waiting import await_value
from tests.packages.debian_root import DebianRoot

ROOT = Path(__file__).parents[2]
TOOLS = ("buildah", "podman", "debootstrap")
BASE = "localhost/debian:12-slim"
_CONFINED = (
    *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "all"),  # noqa: S108 - in the container
    *("--security-opt", "no-new-privileges", "--network", "none", "--pull", "never"),
    # Where nothing may raise its limits.
    *("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000"),
)

pytestmark = [
    pytest.mark.skipif("KEYLIME_TEST_PACKAGES" not in os.environ, reason="run by `make test-packages`"),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for a base image of its own"),
    pytest.mark.skipif(
        not all(map(shutil.which, TOOLS)), reason=f"one of these is not installed: {', '.join(TOOLS)}"
    ),
    pytest.mark.timeout(3600),
]


class Engine:
    """buildah and podman with images and containers in a folder of their own."""

    def __init__(self, directory: Path) -> None:
        places = ("--root", str(directory / "storage"), "--runroot", str(directory / "run"))
        self._buildah = ("buildah", *places)
        # crun refuses machines with both generations of control groups.
        runtime = ("--runtime", "runc") if shutil.which("runc") else ()
        self._podman = ("podman", *places, "--cgroup-manager", "cgroupfs", "--log-level", "error", *runtime)

    def buildah(self, *arguments: str) -> str:
        return self._run(*self._buildah, *arguments)

    def podman(self, *arguments: str) -> str:
        return self._run(*self._podman, *arguments)

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            raise AssertionError(
                f"{command}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
            )
        return done.stdout + done.stderr  # logs of containers come on both


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """With a base image made by debootstrap, in place of a registry's."""
    directory = tmp_path_factory.mktemp("images")
    engine = Engine(directory)
    system = Path(os.environ.get("KEYLIME_TEST_PACKAGES_ROOT") or directory / "root")
    if not (system / "packages").exists():
        DebianRoot.make(system, "bookworm")
    container = engine.buildah("from", "scratch").strip()
    engine.buildah("add", "--quiet", container, str(system), "/")
    engine.buildah("commit", "--quiet", container, BASE)
    yield engine
    engine.podman("rm", "--all", "--force")
    engine.podman("rmi", "--all", "--force")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What recipes are built in: packages and recipes."""
    context = tmp_path_factory.mktemp("context")
    output = Path(os.environ.get("KEYLIME_TEST_PACKAGES_FROM") or context / "dist")
    if not list(output.glob("*.deb")):
        command = [str(ROOT / "packaging/tools/make-deb"), str(ROOT / "build" / "wheels"), str(output)]
        subprocess.run(command, check=True)  # noqa: S603
    shutil.copytree(ROOT / "packaging" / "containers", context / "packaging" / "containers")
    if not (context / "dist").exists():
        shutil.copytree(
            output, context / "dist", ignore=lambda _, names: {n for n in names if not n.endswith(".deb")}
        )
    return context


def build(engine: Engine, context: Path, name: str) -> dict[str, object]:
    """Builds an image and tells what it is configured with."""
    recipe = str(context / "packaging" / "containers" / f"Containerfile.{name}")
    # By chroot, and with this machine's network: Debian's mirror, where what packages need is fetched from.
    how = ("--format", "docker", "--isolation", "chroot", "--network", "host", "--pull-never")
    tag = f"localhost/keylime-{name}"
    engine.buildah(
        "build", "--quiet", *how, "--build-arg", f"BASE={BASE}", "-f", recipe, "-t", tag, str(context)
    )
    (image,) = json.loads(engine.podman("image", "inspect", tag))
    config: dict[str, object] = image["Config"]
    return config


def test_the_control_plane_runs_as_nobody_in_particular_and_changes_only_its_volume(
    engine: Engine, context: Path
) -> None:
    config = build(engine, context, "control-plane")
    assert config["User"] == "10000:10000"
    assert config["Volumes"] == {"/var/lib/keylime": {}}
    volume = ("--volume", "state:/var/lib/keylime")
    image = "localhost/keylime-control-plane"
    engine.podman("run", "--detach", "--name", "verifier", *_CONFINED, *volume, image)
    await_value(lambda: "Listening on 0.0.0.0:8881" in engine.podman("logs", "verifier"), "verifier", 100)
    engine.podman("exec", "verifier", "/usr/libexec/keylime-healthcheck")
    registrar = ("--env", "HEALTH_URL=http://127.0.0.1:8890/healthz", image, "keylime_registrar")
    engine.podman("run", "--detach", "--name", "registrar", *_CONFINED, *volume, *registrar)
    await_value(
        lambda: "Listening on 0.0.0.0:8890/8891" in engine.podman("logs", "registrar"), "registrar", 100
    )
    engine.podman("exec", "registrar", "/usr/libexec/keylime-healthcheck")
    told = engine.podman("exec", "verifier", "keylime_tenant", "-c", "cvlist")
    assert '{"uuids": []}' in told
    begun = time.monotonic()
    engine.podman("stop", "--time", "60", "verifier", "registrar")
    assert time.monotonic() - begun < 60
    state = engine.podman("inspect", "--format", "{{.State.ExitCode}}", "verifier", "registrar")
    assert state.split() == ["0", "0"]


def test_an_agent_without_a_tpm_says_so_in_one_line(engine: Engine, context: Path) -> None:
    config = build(engine, context, "agent")
    assert config["User"] == "0"
    assert list(config["ExposedPorts"]) == ["9002/tcp"]  # type: ignore[call-overload]
    rights = ("--cap-add", "setuid,setgid,dac_read_search")
    secure = ("--tmpfs", "/var/lib/keylime/secure:rw,size=1m,mode=0700")
    image = ("localhost/keylime-agent", "keylime_agent", "--check-config")
    told = engine.podman("run", "--rm", *_CONFINED, *rights, *secure, *image)
    assert re.search(r"^configuration is good \(/usr/etc/keylime/agent.conf", told, re.MULTILINE), told
    assert "warning" not in told.partition("configuration is good")[0]
    engine.podman("run", "--detach", "--name", "agent", *_CONFINED, *rights, *secure, image[0])
    await_value(
        lambda: engine.podman("inspect", "--format", "{{.State.Status}}", "agent").strip() == "exited",
        "its end",
        100,
    )
    log = engine.podman("logs", "agent")
    assert "Traceback" not in log
    assert re.search(r"^keylime_agent: error: .*(TPM|cv_ca/cacert)", log, re.MULTILINE), log
