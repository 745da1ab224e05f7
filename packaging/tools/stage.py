"""Installs everything below a directory: what `make install`, Debian packages and RPMs have in common.

    PYTHON packaging/tools/stage.py --destdir DIR [--prefix /usr] --wheels DIR [...]

PYTHON becomes the interpreter of the programs. Programs and libraries live in an environment of their own,
PREFIX/lib/keylime, which no other package and no PYTHONPATH reaches into; nothing is taken from the network.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from parts import distributions, installed_files, installed_metadata

ROOT = Path(__file__).resolve().parents[2]
_COMPONENTS = ("agent", "ca", "logging", "registrar", "tenant", "verifier")
_LAUNCHER = """#!{python} -I
import sys

from {module} import {function}

sys.exit({function}())
"""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things go; directories start with a slash and are below `destdir`."""

    destdir: Path
    prefix: str
    units: str
    zsh: str

    def at(self, place: str) -> Path:
        return self.destdir / place.lstrip("/")

    @property
    def environment(self) -> str:
        return f"{self.prefix}/lib/keylime"

    @property
    def site(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.at(f"{self.environment}/lib/{version}/site-packages")


def stage(layout: Layout, wheels: Path, owners: Path | None) -> None:
    """Everything. `owners` is where parts.py finds what it needs about Python distributions."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    with tempfile.TemporaryDirectory() as directory:
        tools = Path(directory)
        _environment(layout, wheels, tools)
        _pages(layout, tools)
    if owners is not None:
        owners.write_text(json.dumps(_owners(layout.site, project)), "utf-8")
    for record in layout.site.glob("*.dist-info/RECORD"):
        record.unlink()  # of files that are elsewhere, or nowhere, in packages
    _launchers(layout, project["scripts"])
    _configuration(layout)
    _system(layout)
    _documentation(layout)


def _environment(layout: Layout, wheels: Path, tools: Path) -> None:
    """The libraries and the programs, installed from wheels."""
    environment = layout.at(layout.environment)
    interpreter = Path(sys.executable)
    for name in ("python3", "python"):
        link = environment / "bin" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(interpreter)
    (environment / "pyvenv.cfg").write_text(
        f"home = {interpreter.parent}\ninclude-system-site-packages = false\n"
        f"version = {sys.version_info.major}.{sys.version_info.minor}\n"
    )
    _run(sys.executable, "-m", "venv", str(tools))
    pip = (str(tools / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check")
    offline = ("--no-index", "--find-links", str(wheels))
    _run(*pip, "install", *offline, *_pins("build.txt"))
    _run(*pip, "wheel", *offline, "--no-deps", "--no-build-isolation", "--wheel-dir", str(tools), str(ROOT))
    shutil.rmtree(layout.site, ignore_errors=True)
    target = ("--no-compile", "--no-deps", "--target", str(layout.site))
    ours = map(str, tools.glob("keylime-*.whl"))
    _run(*pip, "install", *offline, *target, *_pins("runtime.txt"), *ours)
    for leftover in ("bin", "include", "share"):  # scripts of another interpreter; headers; configuration
        shutil.rmtree(layout.site / leftover, ignore_errors=True)
    for tests in (*layout.site.glob("*/test"), *layout.site.glob("*/tests")):
        shutil.rmtree(tests)  # of libraries
    for place in layout.site.glob("*.dist-info/direct_url.json"):
        place.unlink()  # names a folder of the machine that made this


def _pins(name: str) -> list[str]:
    """Pins by number alone: hashes were checked before, and some wheels were made of the sources."""
    return [
        line.split("\\")[0].strip()
        for line in (ROOT / "requirements" / name).read_text("utf-8").splitlines()
        if "==" in line and not line.startswith((" ", "#"))
    ]


def _pages(layout: Layout, tools: Path) -> None:
    share = layout.at(f"{layout.prefix}/share")
    _run(
        *(str(tools / "bin" / "python"), str(ROOT / "packaging" / "tools" / "pages.py")),
        *(str(ROOT / "pyproject.toml"), str(share / "man")),
        *(str(share / "bash-completion" / "completions"), str(layout.at(layout.zsh))),
        str(share / "fish" / "vendor_completions.d"),
        PYTHONPATH=str(layout.site),
        PYTHONDONTWRITEBYTECODE="1",
    )


def _run(*command: str, **environ: str) -> None:
    subprocess.run(command, check=True, env={**os.environ, **environ})  # noqa: S603 - our own


def _owners(site: Path, project: Mapping[str, Mapping[str, list[str]]]) -> dict[str, str]:
    """The package of each file in site-packages that came with a distribution of others."""
    extras, base = project["optional-dependencies"], list(project["dependencies"])
    packages = distributions(base, extras, installed_metadata(site))
    return {file: packages[name] for file, name in installed_files(site).items() if name in packages}


def _launchers(layout: Layout, scripts: Mapping[str, str]) -> None:
    for script, place in scripts.items():
        module, _, function = place.partition(":")
        text = _LAUNCHER.format(python=f"{layout.environment}/bin/python3", module=module, function=function)
        _write(layout.at(f"{layout.prefix}/bin/{script}"), text, mode=0o755)


def _configuration(layout: Layout) -> None:
    """At the places that programs look at, whatever the prefix."""
    for component in _COMPONENTS:
        _copy(ROOT / "config" / f"{component}.conf", layout.at(f"/usr/etc/keylime/{component}.conf"))
        layout.at(f"/etc/keylime/{component}.conf.d").mkdir(parents=True, exist_ok=True)
    layout.at("/usr/libexec/keylime").mkdir(parents=True, exist_ok=True)


def _system(layout: Layout) -> None:
    systemd = ROOT / "systemd"
    for unit in (*systemd.glob("*.service"), *systemd.glob("*.mount")):
        text = unit.read_text("utf-8").replace("=/usr/bin/keylime", f"={layout.prefix}/bin/keylime")
        _write(layout.at(f"{layout.units}/{unit.name}"), text)
    for source, place in (
        ("sysusers.d/keylime.conf", f"{layout.prefix}/lib/sysusers.d/keylime.conf"),
        ("tmpfiles.d/keylime.conf", f"{layout.prefix}/lib/tmpfiles.d/keylime.conf"),
        ("firewalld/keylime.xml", f"{layout.prefix}/lib/firewalld/services/keylime.xml"),
        ("logrotate/keylime", "/etc/logrotate.d/keylime"),
        ("ima/ima-policy", f"{layout.prefix}/share/keylime/ima/ima-policy"),
    ):
        _copy(systemd / source, layout.at(place))


def _documentation(layout: Layout) -> None:
    place = layout.at(f"{layout.prefix}/share/doc/keylime")
    pictures = (ROOT / "docs" / "images").iterdir()
    for page in (*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")), *sorted(pictures)):
        _copy(page, place / page.relative_to(ROOT))


def _copy(source: Path, target: Path) -> None:
    _write(target, source.read_bytes())


def _write(path: Path, content: str | bytes, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    path.chmod(mode)


def main() -> None:
    os.umask(0o022)
    parser = argparse.ArgumentParser(description="Install everything below a directory.")
    parser.add_argument("--destdir", type=Path, required=True)
    parser.add_argument("--prefix", default="/usr")
    parser.add_argument("--wheels", type=Path, required=True, help="directory that collect-wheels filled")
    parser.add_argument("--units", help="directory of units (default: PREFIX/lib/systemd/system)")
    parser.add_argument("--zsh", help="directory of completion for zsh (PREFIX/share/zsh/site-functions)")
    parser.add_argument("--owners", type=Path, help="file for parts.py")
    arguments = parser.parse_args()
    prefix = "/" + arguments.prefix.strip("/")
    layout = Layout(
        arguments.destdir.resolve(),
        prefix,
        arguments.units or f"{prefix}/lib/systemd/system",
        arguments.zsh or f"{prefix}/share/zsh/site-functions",
    )
    stage(layout, arguments.wheels.resolve(), arguments.owners)


if __name__ == "__main__":
    main()
