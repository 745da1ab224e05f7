"""Named policies for the content of boot logs: what one is, their registry, and operators' own modules.

Our own policies judge typed events (`ContentRules`). An operator's policy (`BootPolicy`) gets the log as
one document of plain JSON values, in the form that `document` describes; `DocumentRules` makes the one look
like the other.
"""

import abc
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from keylime.errors import ConfigError, PolicyError
from keylime.findings.finding import JsonValue
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.document import event_log_document
from keylime.measured_boot.event_log import EventLog
from keylime.measured_boot.rules import AcceptAll, RejectAll, Test
from keylime.safe_paths import require_safe_module

# A module named in `measured_boot_imports` offers its policies by a function of this name.
REGISTER_FUNCTION = "register_policies"


@dataclass(frozen=True, slots=True)
class Objection:
    """Why a policy does not accept a log; `event` is the number of the record, where there is one."""

    reason: str
    event: int | None = None
    observed: str | None = None
    expected: tuple[str, ...] = ()


# Judges a log by the digests of the one bank that the quote vouches for.
Judge: TypeAlias = Callable[[EventLog, HashAlgorithm], tuple[Objection, ...]]


class ContentRules(Protocol):
    """A policy over typed events."""

    def get_relevant_pcrs(self) -> frozenset[int]:
        """PCRs that the policy needs quoted; empty for all measured-boot PCRs."""

    def compile(self, refstate: JsonValue) -> Judge:
        """The judge for one reference state. Raises PolicyError, which names the field."""


class BootPolicy(abc.ABC):
    """A policy over the log as a document, for operators' own modules."""

    @abc.abstractmethod
    def get_relevant_pcrs(self) -> frozenset[int]:
        """PCRs that the policy needs quoted; empty for all measured-boot PCRs."""

    @abc.abstractmethod
    def refstate_to_test(self, refstate: JsonValue) -> Test:
        """The test that a log must pass for this reference state. Raises when that is malformed."""

    def evaluate(self, refstate: JsonValue, eventlog: JsonValue) -> str:
        """Why `eventlog` is not accepted, or the empty text when it is."""
        return self.refstate_to_test(refstate).why_not({}, eventlog)


@dataclass(frozen=True, slots=True)
class AcceptAllPolicy(BootPolicy):
    """No demands on events; the log must still reproduce the quoted PCRs."""

    def get_relevant_pcrs(self) -> frozenset[int]:
        """All of them."""
        return frozenset()

    def refstate_to_test(self, refstate: JsonValue) -> Test:
        """Accepts every log, whatever the reference state."""
        return AcceptAll()


@dataclass(frozen=True, slots=True)
class RejectAllPolicy(BootPolicy):
    """Accepts no log at all."""

    def get_relevant_pcrs(self) -> frozenset[int]:
        """All of them."""
        return frozenset()

    def refstate_to_test(self, refstate: JsonValue) -> Test:
        """Rejects every log, whatever the reference state."""
        return RejectAll("reject all")


@dataclass(frozen=True, slots=True)
class DocumentRules:
    """An operator's policy in the role of ContentRules."""

    policy: BootPolicy

    def get_relevant_pcrs(self) -> frozenset[int]:
        """As the policy says."""
        return self.policy.get_relevant_pcrs()

    def compile(self, refstate: JsonValue) -> Judge:
        """A judge that asks the policy. Raises PolicyError when the policy refuses the reference state."""
        try:
            self.policy.refstate_to_test(refstate)
        except MemoryError:  # ours, and says nothing about the machine
            raise
        except Exception as error:
            # An operator's code: any exception says that it cannot use the reference state.
            raise PolicyError(f"reference state for measured boot: {_describe(error)}") from error

        def judge(log: EventLog, bank: HashAlgorithm) -> tuple[Objection, ...]:
            try:
                # Only the quoted bank's digests: nothing vouches for those of the other banks.
                reason = self.policy.evaluate(refstate, event_log_document(log, banks=(bank,)))
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001  an operator's code, and it has not accepted
                reason = f"policy evaluation failed: {_describe(error)}"
            return (Objection(reason),) if reason else ()

        return judge


class PolicyRegistry:
    """Policies by name. A new one holds `accept-all` and `reject-all` and what is given."""

    def __init__(self, policies: Mapping[str, BootPolicy | ContentRules] | None = None) -> None:
        self._policies: dict[str, BootPolicy | ContentRules] = {
            "accept-all": AcceptAllPolicy(),
            "reject-all": RejectAllPolicy(),
        }
        self._policies.update(policies or {})

    def register(self, name: str, policy: BootPolicy | ContentRules) -> None:
        """Offers `policy` under `name`, instead of what had that name before."""
        self._policies[name] = policy

    def unregister(self, name: str) -> None:
        """Forgets `name`. Raises KeyError when nothing has that name."""
        del self._policies[name]

    def get_policy(self, name: str) -> BootPolicy | ContentRules | None:
        """What was registered under `name`."""
        return self._policies.get(name)

    def get_policy_names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._policies))

    def rejects_all(self, name: str) -> bool:
        """Whether no log at all is accepted under `name`, because nothing has that name or it says so."""
        return isinstance(self._policies.get(name, RejectAllPolicy()), RejectAllPolicy)

    def accepts_all(self, name: str) -> bool:
        """Whether `name` makes no demand on the content of a log."""
        return isinstance(self._policies.get(name), AcceptAllPolicy)

    def rules(self, name: str) -> ContentRules:
        """The rules named `name`; those that reject everything when nothing has that name."""
        policy = self._policies.get(name, RejectAllPolicy())
        return DocumentRules(policy) if isinstance(policy, BootPolicy) else policy


def load_policy_modules(names: Iterable[str], registry: PolicyRegistry) -> None:
    """Imports each module and calls its `register_policies(registry)`.

    Raises ConfigError, naming it, also for one whose files others may change.
    """
    for name in names:
        try:
            require_safe_module(name)
        except ConfigError as error:
            raise ConfigError(f"measured_boot_imports: module {name!r}: {error}") from error
        try:
            register = getattr(importlib.import_module(name), REGISTER_FUNCTION)
            register(registry)
        except Exception as error:
            # Any failure of an operator's module stops the start: its policies would be missing.
            raise ConfigError(f"measured_boot_imports: module {name!r}: {_describe(error)}") from error


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
