from collections.abc import Mapping
from pathlib import Path

import pytest

from keylime.config.loader import load_settings
from keylime.config.settings import Settings, is_test_mode, path_below, work_dir
from keylime.errors import ConfigError


class Root:
    """A pair of configuration directories to write into and load from."""

    def __init__(self, directory: Path) -> None:
        self.etc = directory / "etc"
        self.usr_etc = directory / "usr"

    def write(self, name: str, text: str, mode: int = 0o600) -> Path:
        directory, _, rest = name.partition("/")
        path = {"etc": self.etc, "usr": self.usr_etc}[directory] / rest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    def load(self, component: str, environ: Mapping[str, str] | None = None) -> Settings:
        return load_settings(component, environ=environ or {}, etc=self.etc, usr_etc=self.usr_etc)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    return Root(tmp_path)


def test_base_files_of_servers_are_alternatives(root: Root) -> None:
    root.write("usr/verifier.conf", "[verifier]\nport = 1\nuuid = packaged\n")
    root.write("etc/verifier.conf", "[verifier]\nport = 2\n")
    settings = root.load("verifier")
    assert (settings.integer("port"), settings.text("uuid")) == (2, "default")


def test_a_base_file_that_says_nothing_does_not_count(root: Root) -> None:
    root.write("usr/verifier.conf", "[verifier]\nport = 1\n")
    root.write("etc/verifier.conf", "# nothing yet\n[verifier]\n")
    assert root.load("verifier").integer("port") == 1


def test_base_files_of_the_agent_are_layers(root: Root) -> None:
    root.write("usr/agent.conf", "[agent]\nport = 1\nuuid = packaged\n")
    root.write("usr/agent.conf.d/a", "ip = 10.0.0.1\nport = 5\n")
    root.write("etc/agent.conf", "[agent]\nport = 2\n")
    settings = root.load("agent")
    assert (settings.integer("port"), settings.text("uuid"), settings.text("ip")) == (
        2,
        "packaged",
        "10.0.0.1",
    )


def test_snippets_go_in_byte_order_whatever_their_suffix_and_etc_goes_last(root: Root) -> None:
    root.write("etc/verifier.conf", "[verifier]\nport = 1\nuuid = a\nip = 10.0.0.1\n")
    root.write("etc/verifier.conf.d/B", "[verifier]\nport = 4\n")
    root.write("etc/verifier.conf.d/a.txt", "[verifier]\nport = 5\n")
    root.write("usr/verifier.conf.d/z.conf", "[verifier]\nport = 2\nuuid = b\n")
    (root.etc / "verifier.conf.d" / "c").mkdir()
    settings = root.load("verifier")
    assert (settings.integer("port"), settings.text("uuid"), settings.text("ip")) == (5, "b", "10.0.0.1")


def test_snippets_count_without_a_base_file(root: Root) -> None:
    root.write("etc/verifier.conf.d/10", "port = 7\n")
    assert root.load("verifier").integer("port") == 7


def test_a_file_named_by_the_environment_replaces_all_others(root: Root, tmp_path: Path) -> None:
    root.write("etc/verifier.conf", "[verifier]\nport = 1\n")
    own = tmp_path / "own.conf"
    own.write_text("[verifier]\nuuid = x\n")
    settings = root.load("verifier", {"KEYLIME_VERIFIER_CONFIG": str(own), "KEYLIME_VERIFIER_IP": "::1"})
    assert (settings.integer("port"), settings.text("uuid"), settings.text("ip")) == (8881, "x", "::1")
    assert settings.files == (own,)


def test_a_missing_named_file_is_fatal_for_the_agent_and_a_warning_for_servers(root: Root) -> None:
    root.write("etc/verifier.conf", "[verifier]\nport = 1\n")
    settings = root.load("verifier", {"KEYLIME_VERIFIER_CONFIG": "/nowhere"})
    assert settings.integer("port") == 1
    assert "KEYLIME_VERIFIER_CONFIG names /nowhere" in settings.warnings[0]
    with pytest.raises(ConfigError, match="KEYLIME_AGENT_CONFIG names /nowhere"):
        root.load("agent", {"KEYLIME_AGENT_CONFIG": "/nowhere"})


def test_the_environment_beats_every_file(root: Root) -> None:
    root.write("etc/verifier.conf.d/10", "port = 7\n[revocations]\nzmq_ip = 10.0.0.1\n")
    environ = {"KEYLIME_VERIFIER_PORT": '"12"', "KEYLIME_VERIFIER_REVOCATIONS_ZMQ_IP": "10.0.0.2"}
    settings = root.load("verifier", environ)
    assert settings.integer("port") == 12
    assert settings.text("zmq_ip", "revocations") == "10.0.0.2"
    assert settings.source("port") == "environment variable KEYLIME_VERIFIER_PORT"
    assert settings.source("ip") == "default"


def test_every_value_is_read_as_its_kind(root: Root) -> None:
    path = root.write(
        "etc/verifier.conf",
        '[verifier]\nquote_interval = "0.5"\nmax_retries = 3\nenable_agent_mtls = "False"\n'
        "trusted_client_ca = ['/a', '/b']\nseverity_policy = [{'event_id': 'x', 'severity_label': 'info'}]\n",
    )
    settings = root.load("verifier")
    assert settings.number("quote_interval") == 0.5
    assert settings.integer("max_retries") == 3
    assert settings.flag("enable_agent_mtls") is False
    assert settings.items("trusted_client_ca") == ("/a", "/b")
    assert settings.mappings("severity_policy") == ({"event_id": "x", "severity_label": "info"},)
    assert settings.source("max_retries") == f"{path}, line 3"


def test_asking_wrongly_is_a_defect(root: Root) -> None:
    settings = root.load("verifier")
    with pytest.raises(LookupError, match="no_such"):
        settings.text("no_such")
    with pytest.raises(LookupError, match="zmq_ip"):
        settings.text("zmq_ip")
    for ask in (settings.text, settings.number, settings.flag, settings.items, settings.mappings):
        with pytest.raises(TypeError, match="port"):
            ask("port")
    with pytest.raises(TypeError, match="enable_agent_mtls"):
        settings.integer("enable_agent_mtls")


def test_a_wrong_value_names_file_line_section_option_and_expectation(root: Root) -> None:
    path = root.write("etc/verifier.conf", "[verifier]\nport = eighty\n")
    with pytest.raises(ConfigError) as caught:
        root.load("verifier")
    assert str(caught.value) == (
        f"{path}, line 2: [verifier] port = 'eighty': expected a whole number and nothing else in the line"
    )


def test_the_placeholder_of_packages_is_refused_unless_something_overrides_it(root: Root) -> None:
    path = root.write("usr/agent.conf", '[agent]\nregistrar_ip = "<REMOTE_IP>"\n')
    with pytest.raises(ConfigError, match=r"registrar_ip = '<REMOTE_IP>': the placeholder") as caught:
        root.load("agent")
    assert str(path) in str(caught.value)
    root.write("etc/agent.conf.d/agent.conf", 'registrar_ip = "10.0.0.1"\n')
    assert root.load("agent").text("registrar_ip") == "10.0.0.1"


def test_unknown_options_are_reported_with_the_nearest_name(root: Root) -> None:
    path = root.write("etc/agent.conf", "[agent]\nregistar_ip = 10.0.0.1\n[agnet]\nport = 1\n")
    assert root.load("agent").warnings == (
        f'{path}, line 2: unknown option "registar_ip" in section [agent] is ignored; '
        'did you mean "registrar_ip"?',
        f'{path}, line 4: unknown section [agnet], its option "port" is ignored; did you mean "agent"?',
    )


def test_an_option_in_the_wrong_section_is_reported_with_the_right_one(root: Root) -> None:
    root.write("etc/verifier.conf", "[revocations]\nquote_interval = 1\n")
    (warning,) = root.load("verifier").warnings
    assert warning.endswith("it belongs to section [verifier]")


@pytest.mark.parametrize("name", ["keylime_verifier_port", "Keylime_Verifier_Port"])
def test_h3_a_variable_in_another_case_is_reported(root: Root, name: str) -> None:
    settings = root.load("verifier", {name: "1"})
    assert settings.integer("port") == 8881
    assert settings.warnings == (
        f"environment variable {name} is ignored: its name must be KEYLIME_VERIFIER_PORT",
    )


def test_h3_unknown_variables_are_reported(root: Root) -> None:
    environ = {
        "KEYLIME_AGENT_PROT": "1",
        "KEYLIME_VERIFER_PORT": "1",
        "KEYLIME_VERIFIER_PROT": "1",  # the verifier's own start reports it
        "KEYLIME_DIR": "/x",
        "KEYLIME_TEST": "on",
        "PATH": "/bin",
    }
    misspelt_option, misspelt_component = root.load("agent", environ).warnings
    assert misspelt_option.endswith('KEYLIME_AGENT_PROT is ignored; did you mean "KEYLIME_AGENT_PORT"?')
    assert misspelt_component.startswith("unknown environment variable KEYLIME_VERIFER_PORT is ignored")
    assert root.load("ca", environ).warnings == ()


def test_options_without_effect_are_accepted_silently_unless_they_ask_for_something(root: Root) -> None:
    root.write("etc/verifier.conf", "[verifier]\nregistrar_ip = 127.0.0.1\nregistrar_port = 8891\n")
    assert root.load("verifier").warnings == ()
    root.write("etc/verifier.conf", "[verifier]\nregistrar_port = soon\n")
    warnings = root.load("verifier").warnings
    assert [warning.partition(": ")[2] for warning in warnings] == [
        'option "registrar_port" of section [verifier] has no effect',
    ]


def test_empty_texts_of_generated_agent_files_are_accepted(root: Root) -> None:
    root.write(
        "etc/agent.conf",
        '[agent]\nagent_data_path = ""\nverifier_url = ""\ncertification_keys_server_identifier = ""\n'
        'uefi_logs_evidence_version = ""\nrevocation_actions = "[]"\n',
    )
    settings = root.load("agent")
    assert settings.warnings == ()
    assert settings.items("revocation_actions") == ()
    assert settings.text("agent_data_path") == ""


def test_revocation_options_in_their_former_section_are_used_with_a_warning(root: Root) -> None:
    root.write(
        "etc/verifier.conf", "[verifier]\nzmq_ip = 10.0.0.1\nzmq_port = 1\n[revocations]\nzmq_port = 2\n"
    )
    settings = root.load("verifier")
    assert settings.text("zmq_ip", "revocations") == "10.0.0.1"
    assert settings.integer("zmq_port", "revocations") == 2
    assert 'option "zmq_ip" has moved to section [revocations]' in settings.warnings[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("etc/ca.conf", "[ca]\npassword = hunter2\n"),
        ("etc/ca.conf.d/x", "password = hunter2\n"),
        ("etc/ca.conf", "[ca]\ncert_crl_dist = http://me:hunter2@host/\n"),
    ],
)
def test_a_secret_that_everybody_can_read_is_refused_and_not_repeated(
    root: Root, name: str, text: str
) -> None:
    path = root.write(name, text, mode=0o644)
    with pytest.raises(ConfigError, match="may be read by everybody") as caught:
        root.load("ca")
    assert f"chmod o-rwx {path}" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    path.chmod(0o640)
    assert root.load("ca").files == (path,)


@pytest.mark.parametrize("text", ["password = default\n", "password =\n", "cert_bits = 4096\n"])
def test_a_file_without_secrets_may_be_read_by_everybody(root: Root, text: str) -> None:
    root.write("etc/ca.conf", text, mode=0o644)
    assert len(root.load("ca").files) == 1


def test_a_file_or_directory_that_everybody_can_write_is_refused(root: Root) -> None:
    path = root.write("etc/verifier.conf", "[verifier]\nport = 1\n", mode=0o602)
    with pytest.raises(ConfigError, match=f"{path} may be written by everybody"):
        root.load("verifier")
    path.unlink()
    root.write("etc/verifier.conf.d/x", "port = 1\n")
    (root.etc / "verifier.conf.d").chmod(0o777)
    with pytest.raises(ConfigError, match=r"verifier\.conf\.d may be written by everybody"):
        root.load("verifier")


def test_a_wrong_value_with_a_password_is_not_repeated(root: Root) -> None:
    with pytest.raises(ConfigError, match="revocation_notification_ip: expected") as caught:
        root.load("agent", {"KEYLIME_AGENT_REVOCATION_NOTIFICATION_IP": "http://me:hunter2@host"})
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_no_text_is_refused(root: Root) -> None:
    path = root.write("etc/agent.conf.d/.agent.swp", "")
    path.write_bytes(b"b0VIM\x00\xff\xfe")
    with pytest.raises(ConfigError, match=f"{path} is not a text file"):
        root.load("agent")


def test_work_dir_is_the_variable_or_the_usual_place() -> None:
    assert work_dir({}) == work_dir({"KEYLIME_DIR": ""}) == Path("/var/lib/keylime")
    assert work_dir({"KEYLIME_DIR": "/srv/keylime"}) == Path("/srv/keylime")
    assert work_dir({"KEYLIME_DIR": "here"}) == Path.cwd() / "here"


def test_test_mode_is_on_or_off_and_nothing_else() -> None:
    assert is_test_mode({"KEYLIME_TEST": "on"})
    assert not is_test_mode({"KEYLIME_TEST": "false"})
    assert not is_test_mode({})
    with pytest.raises(ConfigError, match="KEYLIME_TEST"):
        is_test_mode({"KEYLIME_TEST": "maybe"})


@pytest.mark.parametrize(
    ("snippet", "expected"),
    [
        ("", "/srv/keylime/tpm_cert_store"),
        ("tpm_cert_store = /var/lib/keylime/tpm_cert_store\n", "/srv/keylime/tpm_cert_store"),
        ("tpm_cert_store = certificates\n", "/srv/keylime/certificates"),
        ("tpm_cert_store = /etc/tpm\n", "/etc/tpm"),
        ("tpm_cert_store = /var/lib/keylime/other\n", "/var/lib/keylime/other"),
    ],
)
def test_a_path_left_at_its_default_is_in_the_working_directory(
    tmp_path: Path, snippet: str, expected: str
) -> None:
    file = tmp_path / "tenant.conf"
    file.write_text(f"[tenant]\n{snippet}")
    settings = load_settings("tenant", environ={"KEYLIME_TENANT_CONFIG": str(file)})
    assert path_below(Path("/srv/keylime"), settings, "tpm_cert_store") == Path(expected)


def test_changes_are_told_by_option_and_never_for_ignored_ones(root: Root) -> None:
    before = root.load("registrar", {"KEYLIME_REGISTRAR_PORT": "8890"})
    assert before.changed(root.load("registrar")) == ()
    later = root.load(
        "registrar", {"KEYLIME_REGISTRAR_PORT": "8000", "KEYLIME_REGISTRAR_LOG_DESTINATION": "x"}
    )
    assert before.changed(later) == (("registrar", "port"),)


@pytest.mark.parametrize(
    ("component", "option", "value", "right"),
    [
        ("verifier", "authorization_provider", "my.module", "simple"),
        ("registrar", "authorization_provider", "my.module", "simple"),
        ("verifier", "durable_attestation_import", "keylime.da.examples.redis", ""),
        ("registrar", "durable_attestation_import", "keylime.da.examples.redis", ""),
    ],
)
def test_what_this_release_cannot_do_stops_the_start_and_its_usual_value_does_not(
    component: str, option: str, value: str, right: str
) -> None:
    name = f"KEYLIME_{component.upper()}_{option.upper()}"
    with pytest.raises(ConfigError, match=rf"\[{component}\] {option} = '{value}'.*remove the line"):
        load_settings(component, environ={name: value})
    assert load_settings(component, environ={name: right}).warnings == ()
