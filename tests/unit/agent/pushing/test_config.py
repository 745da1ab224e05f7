from pathlib import Path

import pytest

from keylime.config.loader import load_settings
from keylime.errors import ConfigError
from keylime_agent.pushing.config import PushConfig, push_config
from keylime_agent.pushing.pace import Pacing


def config(tmp_path: Path, snippet: str = "") -> PushConfig:
    (tmp_path / "agent.conf.d").mkdir(mode=0o700)
    file = tmp_path / "agent.conf.d" / "agent.conf"
    file.write_text(f"[agent]\n{snippet}")
    file.chmod(0o600)
    environ = {"KEYLIME_DIR": "/var/lib/agent"}
    settings = load_settings("agent", environ=environ, etc=tmp_path, usr_etc=tmp_path / "none")
    return push_config(settings, environ)


def test_the_defaults_are_those_of_the_table(tmp_path: Path) -> None:
    agent = config(tmp_path)
    assert agent.verifiers == ("https://localhost:8881",)
    assert agent.authority == Path("/var/lib/agent/cv_ca/cacert.crt")
    assert agent.pacing == Pacing(interval_s=60, initial_s=10, max_s=300)
    assert (agent.key_identifier, agent.boot_log_version) == ("ak", "2.1")


def test_empty_texts_of_generated_files_are_the_defaults(tmp_path: Path) -> None:
    snippet = (
        'verifier_url = ""\ncertification_keys_server_identifier = ""\nuefi_logs_evidence_version = ""\n'
    )
    agent = config(tmp_path, snippet)
    assert agent.verifiers == ("https://localhost:8881",)
    assert (agent.key_identifier, agent.boot_log_version) == ("ak", "2.1")


def test_several_verifiers_are_a_list(tmp_path: Path) -> None:
    agent = config(tmp_path, "verifier_url = ['https://a:8881/', 'https://[::1]:8881', 'https://a:8881']\n")
    assert agent.verifiers == ("https://a:8881", "https://[::1]:8881")


def test_options_of_a_listener_mean_nothing(tmp_path: Path) -> None:
    assert config(tmp_path, "trusted_client_ca = all\nenable_agent_mtls = False\n").verifiers


@pytest.mark.parametrize(
    "url",
    [
        "http://a:8881",
        "a:8881",
        "https://",
        "https://a:x",
        "https://a:0",
        "https://u:p@a:8881",
        "https://a/v3",
        "https://a?b",
        "https://a:8881, http://b",
    ],
)
def test_a_url_that_cannot_be_used_is_named(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"\[agent\] verifier_url = "):
        config(tmp_path, f"verifier_url = {url}\n")
