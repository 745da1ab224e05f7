"""`make install` puts files where programs and systemd look for them; libraries and pages are left out."""

import importlib.util
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]


def _load(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    tools = ROOT / "packaging" / "tools"
    monkeypatch.syspath_prepend(str(tools))
    spec = importlib.util.spec_from_file_location("stage", tools / "stage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "stage", module)  # where dataclasses look for annotations
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("prefix", ["/usr", "/usr/local"])
def test_everything_is_below_destdir(prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = _load(monkeypatch)
    units = f"{prefix}/lib/systemd/system"
    layout = stage.Layout(tmp_path, prefix, units, f"{prefix}/share/zsh/site-functions")
    stage._launchers(layout, SCRIPTS)
    stage._configuration(layout)
    stage._system(layout)
    stage._documentation(layout)
    found = {f"/{path.relative_to(tmp_path)}" for path in tmp_path.rglob("*") if path.is_file()}
    assert {f"{prefix}/bin/{script}" for script in SCRIPTS} <= found
    assert {f"/usr/etc/keylime/{path.name}" for path in (ROOT / "config").glob("*.conf")} <= found
    for file in (
        *(f"{units}/{path.name}" for path in (ROOT / "systemd").iterdir() if path.is_file()),
        f"{prefix}/lib/sysusers.d/keylime.conf",
        f"{prefix}/lib/tmpfiles.d/keylime.conf",
        f"{prefix}/lib/firewalld/services/keylime.xml",
        f"{prefix}/share/doc/keylime/docs/installation.md",
        f"{prefix}/share/doc/keylime/docs/images/dashboard-fleet.png",
        f"{prefix}/share/keylime/ima/ima-policy",
        "/etc/logrotate.d/keylime",
    ):
        assert file in found
    assert (tmp_path / "etc/keylime/verifier.conf.d").is_dir()
    unit = (tmp_path / units.lstrip("/") / "keylime_verifier.service").read_text("utf-8")
    assert f"\nExecStart={prefix}/bin/keylime_verifier\n" in unit
    assert not [path for path in tmp_path.rglob("*") if path.stat().st_mode & 0o022]


def test_a_launcher_runs_its_program_in_its_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = _load(monkeypatch)
    layout = stage.Layout(tmp_path, "/usr", "/units", "/zsh")
    # An environment of a moment: its interpreter is in DESTDIR, where the first line does not look for it.
    site = layout.site
    (site / "some").mkdir(parents=True)
    (site / "some" / "__init__.py").write_text("def main() -> int:\n    return 42\n")
    environment = layout.at(layout.environment)
    (environment / "bin").mkdir()
    (environment / "bin" / "python3").symlink_to(Path(sys.executable).resolve())
    (environment / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
    stage._launchers(layout, {"some": "some:main"})
    launcher = tmp_path / "usr/bin/some"
    assert launcher.read_text("utf-8").startswith("#!/usr/lib/keylime/bin/python3 -I\n")
    assert os.access(launcher, os.X_OK)
    done = subprocess.run(  # noqa: S603 - what was just written
        [environment / "bin" / "python3", "-I", launcher], cwd=tmp_path, check=False
    )
    assert done.returncode == 42


def test_pins_are_read_without_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    pins = _load(monkeypatch)._pins("runtime.txt")
    assert len(pins) > 25
    assert all("==" in pin and "--hash" not in pin and "\\" not in pin for pin in pins)
