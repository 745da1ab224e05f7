import uuid
from pathlib import Path

import pytest

from keylime.config.loader import load_settings
from keylime.config.settings import Settings
from keylime.errors import ConfigError
from keylime.setup.plan import Control, Node, agent_id_for, contradictions, node_command, snippet

NODE = Node(verifier="192.0.2.1", registrar="192.0.2.3", contact="192.0.2.2", agent_id="d111ec46")
NEW = uuid.UUID("7f2c5a3e-3d0e-4b5c-8a37-0f6d2f2f9a11")


def read(tmp_path: Path, component: str, **files: str) -> Settings:
    directory = tmp_path / f"{component}.conf.d"
    directory.mkdir(mode=0o700)
    for name, text in files.items():
        (directory / f"{name}.conf").write_text(text)
        (directory / f"{name}.conf").chmod(0o600)
    return load_settings(component, environ={}, etc=tmp_path, usr_etc=tmp_path / "none")


@pytest.mark.parametrize("component", ["verifier", "registrar", "agent"])
def test_what_is_written_is_what_is_read(tmp_path: Path, component: str) -> None:
    plan = {**Control(("192.0.2.1", "control.example")).options(), **NODE.options()}
    settings = read(tmp_path, component, setup=snippet(component, plan[component]))
    assert settings.warnings == ()
    assert contradictions(settings, plan[component]) == []
    assert settings.text("ip") == "0.0.0.0"  # noqa: S104


def test_servers_are_certified_for_each_name_and_tell_agents_of_both_kinds(tmp_path: Path) -> None:
    options = Control(("192.0.2.1", "control.example")).options()["verifier"]
    settings = read(tmp_path, "verifier", setup=snippet("verifier", options))
    assert settings.items("cert_subject_alternative_names") == ("192.0.2.1", "control.example")
    assert settings.items("enabled_revocation_notifications", "revocations") == ("agent", "zeromq")


def test_an_agent_is_found_where_it_says_and_knows_its_services(tmp_path: Path) -> None:
    settings = read(tmp_path, "agent", setup=snippet("agent", NODE.options()["agent"]))
    names = ("uuid", "contact_ip", "registrar_ip")
    assert [settings.text(name) for name in names] == ["d111ec46", "192.0.2.2", "192.0.2.3"]
    assert settings.items("revocation_notification_ip") == ("192.0.2.1",)


def test_with_an_ipv6_address_all_of_both_families_are_listened_on() -> None:
    assert Control(("192.0.2.1", "2001:db8::1")).options()["registrar"]["registrar", "ip"] == "::"


@pytest.mark.parametrize("name", ["192.0.2.300", "no name", "a'b", "", "<ADDRESS>"])
def test_what_is_no_address_is_refused_before_anything_is_written(name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be \[(agent|registrar|verifier)\]"):
        Node(verifier=name, registrar=name, contact=name, agent_id="a").options()
    with pytest.raises(ConfigError, match="cannot be an address of this machine"):
        Control((name,)).options()
    with pytest.raises(ConfigError, match=r"cannot be \[verifier\] ip"):
        Control(("192.0.2.1",), listen=name).options()


def test_a_later_file_that_says_otherwise_is_named(tmp_path: Path) -> None:
    options = NODE.options()["agent"]
    settings = read(
        tmp_path, "agent", setup=snippet("agent", options), site='[agent]\ncontact_ip = "192.0.2.77"\n'
    )
    (found,) = contradictions(settings, options)
    assert "site.conf, line 2" in found
    assert "[agent] contact_ip to something else than 192.0.2.2" in found


def test_a_machine_keeps_its_id_and_a_new_one_gets_one_that_stays() -> None:
    assert agent_id_for("generate", None, NEW) == str(NEW)
    assert agent_id_for("d111ec46", None, NEW) == "d111ec46"
    assert agent_id_for("hash_ek", None, NEW) == "hash_ek"
    assert agent_id_for("d111ec46", "web1", NEW) == "web1"


@pytest.mark.parametrize("asked", ["", "web 1", "-web1", "../web1", 'web1"', "x" * 81])
def test_what_can_be_no_id_is_refused_before_anybody_is_asked(asked: str) -> None:
    with pytest.raises(ConfigError, match=r"^--uuid: agent id .* is not valid"):
        agent_id_for("generate", asked, NEW)


def test_the_command_for_nodes_can_be_pasted() -> None:
    assert node_command("192.0.2.1", "AB:CD") == (
        "keylime-setup node --control 192.0.2.1 --fingerprint AB:CD"
    )
