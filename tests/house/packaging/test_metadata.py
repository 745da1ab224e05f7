"""What packages say about themselves, and recipes of containers, agree with the project."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from keylime.config.options import TABLES

ROOT = Path(__file__).parents[3]
PACKAGING = ROOT / "packaging"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PACKAGES = {
    *("keylime-agent", "keylime-common", "keylime-database", "keylime-doc", "keylime-firewalld"),
    *("keylime-ima-policy", "keylime-registrar", "keylime-tenant", "keylime-verifier"),
}
PORTS = {
    TABLES[component].by_key()[section, name].default
    for component, section, name in (
        ("registrar", "registrar", "port"),
        ("registrar", "registrar", "tls_port"),
        ("verifier", "verifier", "port"),
        ("verifier", "revocations", "zmq_port"),
    )
}


def _paragraphs() -> dict[str, str]:
    text = (PACKAGING / "debian" / "control").read_text("utf-8")
    return {
        found[1]: paragraph
        for paragraph in text.split("\n\n")
        if (found := re.match(r"Package: (\S+)", paragraph))
    }


def test_there_is_a_package_for_each_part() -> None:
    assert set(_paragraphs()) == PACKAGES


def test_only_the_servers_bring_a_database() -> None:
    bring = {name for name, text in _paragraphs().items() if "\n keylime-database (=" in text}
    assert bring == {"keylime-registrar", "keylime-verifier"}


def test_scripts_of_packages_are_scripts_and_change_no_owner_recursively() -> None:
    scripts = [
        path
        for path in (PACKAGING / "debian").iterdir()
        if path.suffix in (".postinst", ".postrm", ".prerm", ".preinst")
    ]
    assert len(scripts) >= 12
    for path in scripts:
        text = path.read_text("utf-8")
        assert path.stem in PACKAGES, path
        assert "#DEBHELPER#" in text, path
        assert not re.search(r"\b(chown|chmod|chgrp)\s+-\w*R", text), path
        subprocess.run(["/bin/sh", "-n", str(path)], check=True)  # noqa: S603 - only read


def test_purging_a_daemon_takes_only_what_is_its_own() -> None:
    common = (PACKAGING / "debian" / "keylime-common.postrm").read_text("utf-8")
    assert "rm -rf --one-file-system /var/lib/keylime" in common
    for role in ("agent", "registrar", "tenant", "verifier"):
        text = (PACKAGING / "debian" / f"keylime-{role}.postrm").read_text("utf-8")
        assert f"rm -rf /etc/keylime/{role}.conf.d" in text
        assert not re.search(r"rm -rf[^\n]*/var/lib", text)


@pytest.mark.skipif(shutil.which("rpmspec") is None, reason="rpmspec is not installed")
def test_the_rpms_are_split_in_the_same_way() -> None:
    command = [str(shutil.which("rpmspec")), "-q", "--qf", "%{name}\n"]
    spec = PACKAGING / "rpm" / "keylime.spec"
    done = subprocess.run([*command, spec], capture_output=True, text=True, check=True)  # noqa: S603 - of ours
    assert set(done.stdout.split()) - {"keylime"} == PACKAGES


def test_build_tools_are_pinned_with_hashes_and_no_place_to_fetch_them_from() -> None:
    lock = (ROOT / "requirements" / "build.txt").read_text("utf-8")
    names = (ROOT / "requirements" / "build.in").read_text("utf-8")
    wanted = set(re.findall(r"^([a-z0-9-]+)", names, re.MULTILINE))
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\\n    --hash=sha256:", lock, re.MULTILINE))
    assert wanted <= set(pinned)
    assert not re.search(r"https?:|index-url|--find-links|trusted-host", lock + names)


@pytest.mark.parametrize("name", ["control-plane", "agent"])
def test_images_keep_state_in_a_volume_and_check_their_health(name: str) -> None:
    text = (PACKAGING / "containers" / f"Containerfile.{name}").read_text("utf-8")
    assert "\nVOLUME /var/lib/keylime\n" in text
    assert "\nHEALTHCHECK " in text
    (user,) = re.findall(r"^USER (\S+)", text, re.MULTILINE)
    assert user == ("10000:10000" if name == "control-plane" else "0")
    exposed = {int(port) for port in re.findall(r"^EXPOSE ([\d ]+)", text, re.MULTILINE)[0].split()}
    assert exposed == (PORTS if name == "control-plane" else {9002})


def test_compose_runs_both_daemons_confined() -> None:
    services = yaml.safe_load((PACKAGING / "containers" / "compose.yaml").read_text("utf-8"))["services"]
    assert set(services) == {"registrar", "tenant", "verifier"}
    for service in services.values():
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["command"][0] in PROJECT["scripts"]
    assert services["registrar"]["depends_on"]["verifier"]["condition"] == "service_healthy"


def test_pods_have_probes_and_no_rights_that_they_do_not_need() -> None:
    text = (PACKAGING / "containers" / "kubernetes.yaml").read_text("utf-8")
    objects = {each["kind"]: each for each in yaml.safe_load_all(text)}
    pod = objects["StatefulSet"]["spec"]["template"]["spec"]
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsUser"] == 10000
    for container in pod["containers"]:
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container)
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["command"][0] in PROJECT["scripts"]
    assert {port["port"] for port in objects["Service"]["spec"]["ports"]} == PORTS


def test_the_metadata_names_the_versions_of_python_that_it_runs_on() -> None:
    named = re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"]))
    assert named == ["3.11", "3.12", "3.13", "3.14"]
