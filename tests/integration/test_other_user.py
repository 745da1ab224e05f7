"""The operators' programs as a user who may not read everything: one line each, with the file and what to do.

As root, processes that have dropped to another user are asked; what they may not read is root's.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import trustme

NOBODY = 65534
PRIVATE, PUBLIC = 0o600, 0o644
_LIMIT_S = 100.0


# Where our packages are; the interpreter of the tests may be in a home that nobody else may enter.
_PACKAGES = os.pathsep.join(
    str(Path(entry).resolve()) for entry in sys.path if entry and not entry.startswith(sys.base_prefix)
)


def as_nobody(command: Sequence[str], environ: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A process that has dropped to another user, without root's groups."""
    return subprocess.run(  # noqa: S603 - our own programs
        command,
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": _PACKAGES, **environ},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_LIMIT_S,
        check=False,
    )


def _usable_interpreter() -> str | None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for interpreter in (sys.executable, f"/usr/bin/python{version}"):
        try:
            tried = as_nobody([interpreter, "-c", "import keylime_tenant.main, keylime_policy.main"], {})
        except OSError:
            continue
        if tried.returncode == 0:
            return interpreter
    return None


IS_ROOT = os.geteuid() == 0
INTERPRETER = _usable_interpreter() if IS_ROOT else None
pytestmark = [
    pytest.mark.skipif(not IS_ROOT, reason="not run by root, whose files others may not read"),
    pytest.mark.skipif(INTERPRETER is None, reason="another user may run no interpreter with our packages"),
]


@dataclass(frozen=True)
class Place:
    """A directory that everybody may enter, with an installation of root's in it."""

    root: Path

    @property
    def cv_ca(self) -> Path:
        return self.root / "lib/cv_ca"

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """A program of ours, run by somebody else."""
        name, *arguments = map(str, words)
        (script,) = entry_points(group="console_scripts", name=name)
        code = (
            f"import sys; sys.argv[0] = {name!r}; from {script.module} import {script.attr} as main; main()"
        )
        environ = {
            "KEYLIME_DIR": str(self.root / "lib"),
            "KEYLIME_TENANT_CONFIG": str(self.root / "tenant.conf"),
            "KEYLIME_CA_CONFIG": str(self.root / "ca.conf"),
            "KEYLIME_CA_PASSWORD": "secret",
        }
        return as_nobody([str(INTERPRETER), "-c", code, *arguments], environ)

    def allow(self, modes: Mapping[str, int]) -> None:
        """Who may use what, by the path below the directory."""
        for name, mode in modes.items():
            (self.root / name).chmod(mode)


@pytest.fixture
def place() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="keylime-other-user-") as name:
        root = Path(name)
        root.chmod(0o755)
        made = Place(root)
        made.cv_ca.mkdir(parents=True)
        ca = trustme.CA()
        client = ca.issue_cert(common_name="client")
        ca.cert_pem.write_to_path(made.cv_ca / "cacert.crt")
        client.cert_chain_pems[0].write_to_path(made.cv_ca / "client-cert.crt")
        client.private_key_pem.write_to_path(made.cv_ca / "client-private.pem")
        (root / "tenant.conf").write_text("[tenant]\nverifier_port = 1\nregistrar_port = 1\n")
        (root / "ca.conf").write_text("[ca]\n")
        (root / "list.txt").write_text(f"{'ab' * 32}  /usr/bin/x\n")
        (root / "closed").mkdir(mode=0o700)
        made.allow({"tenant.conf": PUBLIC, "ca.conf": PUBLIC, "list.txt": PRIVATE, "lib/cv_ca": 0o755})
        made.allow({f"lib/cv_ca/{file.name}": PRIVATE for file in made.cv_ca.iterdir()})
        yield made


CERTIFICATES = {"lib/cv_ca/cacert.crt": PUBLIC, "lib/cv_ca/client-cert.crt": PUBLIC}


@pytest.mark.parametrize(
    ("words", "modes", "file"),
    [
        (("keylime_tenant", "cvlist"), {"tenant.conf": PRIVATE}, "tenant.conf"),
        (("keylime_tenant", "cvlist"), {}, "lib/cv_ca/cacert.crt"),
        (("keylime_tenant", "cvlist"), {"lib/cv_ca/cacert.crt": PUBLIC}, "lib/cv_ca/client-cert.crt"),
        (("keylime_tenant", "cvlist"), CERTIFICATES, "lib/cv_ca/client-private.pem"),
        (("keylime_tenant", "cvlist"), {"lib/cv_ca": 0o700}, "lib/cv_ca/cacert.crt"),
        (("keylime_ca", "-c", "create", "-n", "x", "-d", "{}/closed"), {}, "closed"),
        (("keylime_ca", "-c", "init", "-d", "{}/new"), {}, "new"),
        (("keylime-policy", "convert", "{}/list.txt"), {}, "list.txt"),
        (("keylime-policy", "convert", "{}/list.txt", "-o", "{}/out"), {"list.txt": PUBLIC}, "out"),
        (("keylime-policy", "create", "runtime", "--rootfs", "{}/closed"), {}, "closed"),
        (("keylime_attest", "--evidence", "{}/closed"), {}, "closed"),
        (("keylime_upgrade_config", "--defaults", "--out", "{}/closed"), {}, "closed"),
    ],
)
def test_a_file_that_is_not_ours_is_named_with_what_to_do(
    place: Place, words: Sequence[str], modes: Mapping[str, int], file: str
) -> None:
    place.allow(modes)
    done = place.run(*(word.replace("{}", str(place.root)) for word in words))
    assert done.returncode == 1, done
    lines = [line for line in done.stderr.splitlines() if line.startswith(f"{words[0]}: error: ")]
    assert done.stderr.splitlines() == lines, done.stderr
    (line,) = lines
    assert str(place.root / file) in line
    assert "Permission denied" in line
    assert "root" in line.partition("Permission denied")[2], line
    assert "Traceback" not in done.stdout


def test_the_doctor_goes_on_and_tells_each_of_them(place: Place) -> None:
    place.allow({"lib/cv_ca": 0o700})
    done = place.run("keylime_tenant", "doctor", "-o", "table")
    assert done.returncode == 1
    told = [line for line in done.stdout.splitlines() if line.startswith("BAD")]
    assert sum("Permission denied" in line and str(place.cv_ca) in line for line in told) >= 1, done.stdout
    assert done.stderr.count("\n") == 1
    assert "things do not work" in done.stderr
