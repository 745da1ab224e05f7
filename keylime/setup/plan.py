"""What `keylime-setup` writes, and what it makes of what it finds. Pure.

A plan has the options of each component as their files spell them; `snippet` makes the file of them, and
`contradictions` says which of them other files set to something else, so that the plan would not count.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from keylime.config.model import DefaultValue
from keylime.config.options import TABLES
from keylime.config.values import parse_value
from keylime.errors import ConfigError, MalformedMessage
from keylime.identifiers import parse_agent_id

Options: TypeAlias = Mapping[tuple[str, str], str]
"""Section and name of each option, and its value as text."""

_HEADER = "# Written by keylime-setup, and anew at each run: what is to differ belongs into another file.\n"


class ComponentSettings(Protocol):
    """What a component reads from all files together: `keylime.config.loader.Settings`."""

    @property
    def component(self) -> str: ...

    def value(self, option: str, section: str | None = None) -> DefaultValue: ...

    def source(self, option: str, section: str | None = None) -> str: ...


@dataclass(frozen=True, slots=True)
class Control:
    """The machine of verifier and registrar: under which names it is reached, and where it listens."""

    names: tuple[str, ...]
    listen: str | None = None

    def options(self) -> Mapping[str, Options]:
        """Of each component. Raises ConfigError for what is no name or address."""
        for name in self.names:
            _demand("verifier", ("verifier", "ip"), name, "an address of this machine")
        listen = everywhere(self.names) if self.listen is None else self.listen
        return _checked(
            {
                "verifier": {
                    ("verifier", "ip"): listen,
                    ("verifier", "cert_subject_alternative_names"): _list(self.names),
                    ("revocations", "enabled_revocation_notifications"): _list(("agent", "zeromq")),
                    ("revocations", "zmq_ip"): listen,
                },
                "registrar": {("registrar", "ip"): listen},
            }
        )


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that is to be watched."""

    verifier: str
    registrar: str
    contact: str
    agent_id: str
    listen: str | None = None

    def options(self) -> Mapping[str, Options]:
        """Of the agent. Raises ConfigError for what is no address."""
        values = {
            "uuid": self.agent_id,
            "ip": everywhere([self.contact]) if self.listen is None else self.listen,
            "contact_ip": self.contact,
            "registrar_ip": self.registrar,
            "revocation_notification_ip": self.verifier,
        }
        return _checked({"agent": {("agent", name): value for name, value in values.items()}})


def everywhere(addresses: Iterable[str]) -> str:
    """Where to listen so that all of `addresses` are served; the IPv6 one serves IPv4 as well."""
    return "::" if any(":" in address for address in addresses) else "0.0.0.0"  # noqa: S104


def agent_id_for(configured: str, asked: str | None, new: uuid.UUID) -> str:
    """The id of a machine: the one that is asked for, else its own, else a new one that stays.

    Raises ConfigError for what can be no id.
    """
    if asked is not None:
        try:
            return parse_agent_id(asked)
        except MalformedMessage as error:
            raise ConfigError(f"--uuid: {error}") from error
    # An agent that is someone else at each start has to be added at each start.
    return str(new) if configured == "generate" else configured


def _list(items: Sequence[str]) -> str:
    return f"[{', '.join(repr(item) for item in items)}]"


def _checked(plan: Mapping[str, Options]) -> Mapping[str, Options]:
    for component, options in plan.items():
        for key, text in options.items():
            _demand(component, key, text, f"[{key[0]}] {key[1]}")
    return plan


def _demand(component: str, key: tuple[str, str], text: str, what: str) -> None:
    try:
        parse_value(TABLES[component].by_key()[key], text)
    except ValueError as error:
        raise ConfigError(f"{text!r} cannot be {what}: {error}") from error


def snippet(component: str, options: Options) -> str:
    """The file; the agent's has texts in quotes, as its other readers want them."""
    lines = [_HEADER]
    sections = dict.fromkeys(section for section, _ in options)
    for section in sections:
        lines.append(f"[{section}]\n")
        for (of, name), text in options.items():
            if of == section:
                lines.append(f'{name} = "{text}"\n' if component == "agent" else f"{name} = {text}\n")
    return "".join(lines)


def contradictions(settings: ComponentSettings, options: Options) -> list[str]:
    """Which options have other values in `settings`, although the file of the plan is among those read."""
    table = TABLES[settings.component].by_key()
    found = []
    for (section, name), text in options.items():
        if settings.value(name, section) != parse_value(table[section, name], text):
            found.append(
                f"{settings.source(name, section)} sets [{section}] {name} to something else than {text}"
            )
    return found


def node_command(name: str, fingerprint: str) -> str:
    """What to run on each machine that is to be watched."""
    return f"keylime-setup node --control {name} --fingerprint {fingerprint}"
