import hashlib
import uuid

import pytest

from keylime.errors import ConfigError
from keylime_agent.identity import resolve_agent_id

FIXED = "d111ec46-34d8-41af-ad56-d560bc97b2e8"


def resolve(value: str, *, environ: dict[str, str] | None = None, system_uuid: str | None = None) -> str:
    return resolve_agent_id(
        value,
        ek_pem="-----BEGIN PUBLIC KEY-----\n",
        environ=environ or {},
        hostname=lambda: "n1.test",
        system_uuid=system_uuid,
        new_uuid=lambda: uuid.UUID(FIXED),
    )


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("generate", FIXED),
        (FIXED.upper(), FIXED),
        ("hostname", "n1.test"),
        ("hash_ek", hashlib.sha256(b"-----BEGIN PUBLIC KEY-----\n").hexdigest()),
        ("Rack-7_node.3", "Rack-7_node.3"),
    ],
)
def test_keywords_and_fixed_ids(value: str, expected: str) -> None:
    assert resolve(value) == expected


def test_the_environment_and_the_firmware_are_asked() -> None:
    assert resolve("environment", environ={"KEYLIME_AGENT_UUID": "node-1"}) == "node-1"
    assert resolve("dmidecode", system_uuid=f"{FIXED.upper()}\n") == FIXED


def test_every_start_generates_another_id() -> None:
    ids = {
        resolve_agent_id("generate", ek_pem="", environ={}, hostname=str, system_uuid=None) for _ in range(2)
    }
    assert len(ids) == 2
    assert all(uuid.UUID(agent_id).version == 4 for agent_id in ids)


@pytest.mark.parametrize("value", ["environment", "dmidecode", "../etc", "-v", "a" * 81, "", "<REMOTE_IP>"])
def test_what_gives_no_id_is_a_clear_error(value: str) -> None:
    with pytest.raises(ConfigError, match=r"\[agent\] uuid"):
        resolve(value)


def test_garbage_of_dmidecode_is_refused() -> None:
    with pytest.raises(ConfigError, match="dmidecode"):
        resolve("dmidecode", system_uuid="Not Settable")
