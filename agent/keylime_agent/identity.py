"""Who this agent is: the id behind the keywords of the `uuid` option."""

import hashlib
import uuid
from collections.abc import Callable, Mapping

from keylime.errors import ConfigError, MalformedMessage
from keylime.identifiers import AgentId, parse_agent_id

ID_VARIABLE = "KEYLIME_AGENT_UUID"


def resolve_agent_id(
    value: str,
    *,
    ek_pem: str,
    environ: Mapping[str, str],
    hostname: Callable[[], str],
    system_uuid: str | None,
    new_uuid: Callable[[], uuid.UUID] = uuid.uuid4,
) -> AgentId:
    """The id that `value` of `[agent] uuid` stands for (C9); fixed UUIDs are lower-cased.

    `system_uuid` is what dmidecode said, None where it was not asked. Raises ConfigError.
    """
    match value:
        case "generate":
            text = str(new_uuid())
        case "hash_ek":
            text = hashlib.sha256(ek_pem.encode()).hexdigest()
        case "hostname":
            text = hostname()
        case "environment":
            text = environ.get(ID_VARIABLE, "")
            if not text:
                raise ConfigError(f"[agent] uuid = environment, but {ID_VARIABLE} is not set")
        case "dmidecode":
            text = _system_uuid(system_uuid)
        case _:
            text = value
    try:
        return parse_agent_id(_normalised(text))
    except MalformedMessage as error:
        raise ConfigError(f"[agent] uuid = {value}: {error}") from error


def _system_uuid(text: str | None) -> str:
    try:
        return str(uuid.UUID((text or "").strip()))
    except ValueError:
        raise ConfigError(
            "[agent] uuid = dmidecode, but `dmidecode -s system-uuid` gave no UUID; it needs root"
        ) from None


def _normalised(text: str) -> str:
    """A UUID in its usual form; any other id as it is."""
    try:
        return str(uuid.UUID(text)) if len(text) == 36 else text
    except ValueError:
        return text
