"""RPMs, built from the same stage as Debian packages (opt-in: `make test-packages`)."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.skipif("KEYLIME_TEST_PACKAGES" not in os.environ, reason="run by `make test-packages`"),
    pytest.mark.skipif(shutil.which("rpmbuild") is None, reason="rpmbuild is not installed"),
    pytest.mark.timeout(3600),
]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Built now, or those of KEYLIME_TEST_RPMS_FROM."""
    output = Path(os.environ.get("KEYLIME_TEST_RPMS_FROM") or tmp_path_factory.mktemp("rpms"))
    if not list(output.glob("*.rpm")):
        command = [str(ROOT / "packaging/tools/make-rpm"), str(ROOT / "build" / "wheels"), str(output)]
        subprocess.run(command, check=True)  # noqa: S603
    return {path.name.partition("-8.")[0]: path for path in output.glob("*.rpm")}


def query(package: Path, *arguments: str) -> list[str]:
    command = ["rpm", "--query", "--package", *arguments, str(package)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    return done.stdout.splitlines()


def test_programs_units_and_configuration_are_in_their_packages(packages: dict[str, Path]) -> None:
    for role in ("agent", "registrar", "tenant", "verifier"):
        files = query(packages[f"keylime-{role}"], "--list")
        assert {
            f"/usr/bin/keylime_{role}",
            f"/usr/etc/keylime/{role}.conf",
            f"/etc/keylime/{role}.conf.d",
        } <= {*files}
        assert not [file for file in files if "/sqlalchemy/" in file]
    assert [file for file in query(packages["keylime-database"], "--list") if "/sqlalchemy/" in file]
    assert "/usr/lib/systemd/system/var-lib-keylime-secure.mount" in query(
        packages["keylime-agent"], "--list"
    )
    assert query(packages["keylime-ima-policy"], "--configfiles") == ["/etc/ima/ima-policy"]


def test_snippets_are_closed_to_others_from_the_start(packages: dict[str, Path]) -> None:
    for role, group in (("agent", "tss"), ("registrar", "keylime"), ("verifier", "keylime")):
        told = query(
            packages[f"keylime-{role}"],
            "--queryformat",
            "[%{FILENAMES} %{FILEMODES:perms} %{FILEGROUPNAME}\n]",
        )
        assert f"/etc/keylime/{role}.conf.d drwxr-s--- {group}" in told


def test_no_file_is_in_two_packages_nor_names_the_place_it_was_built_at(
    packages: dict[str, Path], tmp_path: Path
) -> None:
    files = [file for package in packages.values() for file in query(package, "--list")]
    owned = [file for file in files if not file.endswith(("/site-packages",))]
    assert len(owned) == len(set(owned))
    tree = tmp_path / "tree"
    command = ["rpm", "--install", "--root", str(tree), "--dbpath", "/rpmdb", "--nodeps", "--noscripts"]
    subprocess.run([*command, "--nosignature", str(packages["keylime-verifier"])], check=True)  # noqa: S603
    launcher = tree / "usr/bin/keylime_verifier"
    assert launcher.read_text("utf-8").startswith("#!/usr/lib/keylime/bin/python3 -I\n")
