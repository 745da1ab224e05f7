"""Configuration of earlier releases: our loader reads what comes of it, and nothing is lost in silence."""

import math
import stat
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keylime.config.loader import load_settings
from keylime.config.model import DefaultValue, Kind, Option
from keylime.config.options import TABLES
from keylime.config.reader import parse_file
from keylime.config.render import render
from keylime.config.settings import Settings
from keylime.config.upgrade.conversion import ConfigSource, Upgrade, upgrade
from keylime.config.upgrade.single_file import MOVED
from keylime.takeover.upgrade_config import main

SHIPPED = Path(__file__).parents[2] / "data" / "old-configuration" / "keylime-6.4.3.conf"
WORD = st.text("abcXYZ019_./:-", min_size=1, max_size=12)
PHRASE = st.text("abc XYZ019_./:-=#;,'\"\\[]{}äß", max_size=20).map(lambda text: text.strip(" \t\"'#;"))


def upgraded(text: str, name: str = "keylime.conf") -> Upgrade:
    component = name.partition(".")[0]
    entries = parse_file(text, section=component, origin=name, toml=component == "agent")
    return upgrade([ConfigSource(name, entries)])


def loaded(component: str, text: str, directory: Path) -> Settings:
    path = directory / f"{component}.conf"
    path.write_text(text)
    path.chmod(0o600)
    found = load_settings(component, environ={f"KEYLIME_{component.upper()}_CONFIG": str(path)})
    assert not found.warnings
    return found


def test_every_option_of_then_goes_to_one_of_today() -> None:
    known = {(table.component, *option.key) for table in TABLES.values() for option in table.options}
    assert set(MOVED.values()) <= known


def test_the_file_as_it_was_shipped_has_nothing_to_say_but_its_tpm_policy(tmp_path: Path) -> None:
    result = upgraded(SHIPPED.read_text())
    assert set(result.files) == {"agent", "verifier", "tenant", "registrar", "ca"}
    assert [remark.partition(" = ")[0] for remark in result.remarks] == ["keylime.conf: [tenant] tpm_policy"]
    assert "--tpm_policy" in result.remarks[0]
    verifier = loaded("verifier", result.files["verifier"], tmp_path)
    assert verifier.text("tls_dir") == "generate"
    assert verifier.text("client_cert") == "default"
    assert verifier.text("database_url") == "sqlite"
    assert verifier.items("enabled_revocation_notifications", "revocations") == ("agent",)
    tenant = loaded("tenant", result.files["tenant"], tmp_path)
    assert tenant.items("accept_tpm_hash_algs") == ("sha512", "sha384", "sha256", "sha1")
    agent = loaded("agent", result.files["agent"], tmp_path)
    assert agent.text("uuid") == "d432fbb3-d2f1-4a97-9ef7-75bd81c00000"
    assert (agent.text("server_key"), agent.text("run_as")) == ("default", "")
    assert agent.text("tpm_hash_alg") == "sha1"


@pytest.mark.parametrize(
    ("text", "component", "option", "value"),
    [
        ("[cloud_verifier]\ndatabase_drivername = postgresql\ndatabase_username = u\n"
         "database_password = p@/\ndatabase_host = h\ndatabase_name = n\n", "verifier", "database_url", "postgresql://u:p%40%2F@h/n"),
        ("[registrar]\ndatabase_name = /srv/r.sqlite\n[general]\n", "registrar", "database_url", None),
        ("[general]\nenable_tls = True\n[registrar]\ndatabase_name = /srv/r.sqlite\n", "registrar",
         "database_url", "sqlite:////srv/r.sqlite"),
        ("[cloud_verifier]\nrevocation_notifier = True\nrevocation_notifier_webhook = True\n", "verifier",
         ("enabled_revocation_notifications", "revocations"), ("zeromq", "webhook")),
        ("[cloud_verifier]\nrevocation_notifiers = zeromq,webhook\n", "verifier",
         ("enabled_revocation_notifications", "revocations"), ("zeromq", "webhook")),
        ("[cloud_agent]\nlisten_notfications = False\n", "agent", "enable_revocation_notifications", False),
        ("[cloud_agent]\nrevocation_actions = a, b\n", "agent", "revocation_actions", ("a", "b")),
        ("[cloud_verifier]\ntls_dir = CV\n", "verifier", "tls_dir", "default"),
        ("[cloud_verifier]\nwebhook_url = ''\n", "verifier", ("webhook_url", "revocations"), ""),
    ],
)  # fmt: skip
def test_words_of_then_are_those_of_today(
    tmp_path: Path, text: str, component: str, option: str | tuple[str, str], value: DefaultValue | None
) -> None:
    result = upgraded(text)
    name, section = option if isinstance(option, tuple) else (option, component)
    if value is None:
        return
    assert loaded(component, result.files[component], tmp_path).value(name, section) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[general]\nenable_tls = False\n", "[general] enable_tls has no effect"),
        ("[cloud_verifier]\ncheck_client_cert = False\n", "check_client_cert has no effect"),
        ("[webapp]\nwebapp_port = 443\n", "no web application"),
        ("[general]\nx = 1\n[tenant]\nima_allowlist = /root/a.txt\n", "--runtime-policy"),
        ("[general]\nx = 1\n", "[general] x is no option"),
        ("[cloud_verifier]\nregistrar_tls_dir = /x\n", "registrar_tls_dir has no effect"),
        ("[cloud_verifier]\ntls_dir = generate\nprivate_key = mine.pem\n", "becomes default"),
        ("[cloud_verifier]\ntls_dir = generate\n[registrar]\ntls_dir = generate\n", "trusted_server_ca"),
        ("[cloud_agent]\nregistrar_ip = <REMOTE_IP>\n", "placeholder"),
        ("[cloud_agent]\ncloudagent_port = many\n", "cannot be used"),
    ],
)
def test_what_has_no_effect_any_more_is_said(text: str, words: str) -> None:
    (remark, *_) = [remark for remark in upgraded(text).remarks if words in remark]
    assert len(remark.splitlines()) == 1


def test_split_files_of_any_format_are_read(tmp_path: Path) -> None:
    text = (
        "[verifier]\nversion = 2.0\nenabled_revocation_notifications = [agent]\nzmq_ip = 10.0.0.1\n"
        "mode = push\nlog_destination = file\nquote_intervall = 3\nip = 10.0.0.2\n"
    )
    result = upgraded(text, "verifier.conf")
    verifier = loaded("verifier", result.files["verifier"], tmp_path)
    assert verifier.text("zmq_ip", "revocations") == "10.0.0.1"
    assert verifier.text("ip") == "10.0.0.2"
    said = "\n".join(result.remarks)
    assert "log_destination has no effect" in said
    assert 'quote_intervall is unknown, and left out (did you mean "quote_interval"?)' in said
    agent = upgraded(
        '[agent]\nuuid = "hash_ek"\nrevocation_actions = "[]"\nagent_data_path = ""\n', "agent.conf"
    )
    assert loaded("agent", agent.files["agent"], tmp_path).text("uuid") == "hash_ek"


def test_secrets_are_carried_and_never_said(tmp_path: Path) -> None:
    text = "[cloud_verifier]\nprivate_key_pw = hush\nserver = hush\n[cloud_agent]\ntpm_ownerpassword = hush\n"
    result = upgraded(text)
    assert result.secret == {"verifier", "agent"}
    assert "hush" not in "\n".join(result.remarks)
    assert loaded("verifier", result.files["verifier"], tmp_path).text("server_key_password") == "hush"


def values_of(option: Option) -> st.SearchStrategy[DefaultValue]:
    least = math.ceil(option.minimum or 0)
    most = least + 10_000 if option.maximum is None else int(option.maximum)
    match option.kind:
        case Kind.FLAG:
            return st.booleans()
        case Kind.INTEGER:
            return st.integers(least, most)
        case Kind.NUMBER:
            return st.integers(least, most).map(float)
        case Kind.ADDRESS:
            return st.sampled_from(["127.0.0.1", "::1", "host.example.org"])
        case Kind.ADDRESSES:
            return st.just(("10.0.0.1", "::1"))
        case Kind.LIST if not option.choices:
            return st.lists(WORD, max_size=3).map(tuple)
        case Kind.LIST:
            return st.lists(st.sampled_from(option.choices), max_size=3).map(tuple)
        case Kind.MAPPINGS:
            mapping: dict[str, str] = {"event_id": "a.*", "severity_label": "info"}
            return st.just((mapping,))
        case _ if option.choices:
            return st.sampled_from(option.choices)
        case _:
            return PHRASE


@pytest.mark.parametrize("component", TABLES)
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_what_is_written_is_read_again_as_it_was(tmp_path: Path, component: str, data: st.DataObject) -> None:
    table = TABLES[component]
    options = [option for option in table.options if not option.ignored and option.name != "version"]
    chosen = data.draw(st.lists(st.sampled_from(options), max_size=6, unique_by=lambda option: option.key))
    values = {option.key: data.draw(values_of(option)) for option in chosen}
    text = render(table, values)
    found = loaded(component, text, tmp_path)
    assert {key: found.value(key[1], key[0]) for key in values} == values
    entries = parse_file(text, section=component, origin="x", toml=component == "agent")
    again = upgrade([ConfigSource("x", entries)])
    assert again.files.get(component, text) == text, "a file of today comes out as it is"
    assert not again.remarks


@given(st.text(max_size=200))
def test_no_text_brings_the_conversion_down(text: str) -> None:
    lines = [line for line in text.split("\n") if "=" in line and line.strip()[0] not in "#;=:["]
    for section in ("general", "cloud_verifier", "verifier", "nowhere"):
        try:
            entries = parse_file(f"[{section}]\n" + "\n".join(lines[:1]), section=section, origin="x")
        except Exception:  # noqa: BLE001, S112  the reader has tests of its own
            continue
        for remark in upgrade([ConfigSource("x", entries)]).remarks:
            assert remark


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["keylime_upgrade_config", *map(str, arguments)])
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return int(end.code or 0)
    return 0


def test_nothing_is_overwritten_without_being_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--input", SHIPPED, "--output", tmp_path, "--debug")
    assert run(monkeypatch, *arguments) == 0
    assert f"read {SHIPPED}" in capsys.readouterr().err
    assert stat.S_IMODE((tmp_path / "agent.conf").stat().st_mode) == 0o640
    assert run(monkeypatch, *arguments) == 0
    assert "Configuration is up-to-date" in capsys.readouterr().err
    before = "# mine\n" + (tmp_path / "ca.conf").read_text()
    (tmp_path / "ca.conf").write_text(before)
    assert run(monkeypatch, *arguments) == 1
    assert "--force replaces it" in capsys.readouterr().err
    assert (tmp_path / "ca.conf").read_text() == before
    assert run(monkeypatch, *arguments, "--force") == 0
    assert (tmp_path / "ca.conf.bkp").read_text() == before
    assert run(monkeypatch, "--component", "ca", "--defaults", "--out", tmp_path, "--force") == 0
    assert (tmp_path / "ca.conf").read_text() == render(TABLES["ca"])
    assert (tmp_path / "ca.conf.bkp.1").is_file()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--input", "/nonexistent", "--out", "."], 1, "cannot read /nonexistent"),
        (["--out", "/nonexistent"], 1, "is not a directory"),
        (["--version", "1.0"], 2, "only format 2.6"),
        (["--defaults", "--input", "x"], 2, "leave out --input"),
        (["--component", "nothing"], 2, "invalid choice"),
    ],
)
def test_what_it_cannot_do_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    words: str,
) -> None:
    assert run(monkeypatch, *arguments) == status
    assert words in capsys.readouterr().err.splitlines()[-1]
