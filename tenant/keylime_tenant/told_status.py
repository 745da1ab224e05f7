"""What verifiers of all releases tell of an agent: typed as far as we know it, and whole as it came.

Scripts get the document, with members that no release of ours knows; decisions read the fields. A member that
is not there, or of another shape than expected, is one that was not told. Pure.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from keylime.messages.verifier import FindingSummary, OperationalState, PolicyPart

T = TypeVar("T")

_STATES = {word: state for state in OperationalState for word in (int(state), state.text)}


class ToldStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A verifier's status of one agent; None, or what a comment says, for what was not told.

    Times are in epoch seconds, `tpm_policy` and `meta_data` are JSON texts.
    """

    document: Mapping[str, Any] = {}
    operational_state: int | str | None = None
    attestation_status: Any = None  # only words that we know count, and anything else is no pass
    attestation_text: str = ""
    attestation_count: int | None = None
    last_successful_attestation: int | None = None
    maximum_attestation_interval: str | None = None  # "10s"
    last_event_id: str | None = None
    last_findings: list[Any] = []  # each as it came
    unreachable_since: int | None = None
    reboots: int = 0
    ip: str | None = None
    port: int | None = None
    verifier_id: str | None = None
    verifier_ip: str | None = None
    verifier_port: int | None = None
    v: str | None = None
    meta_data: str | None = None
    tpm_policy: str | None = None
    has_runtime_policy: bool | int = False
    has_mb_refstate: bool | int = False
    runtime_policy_name: str | None = None
    runtime_policy_version: int | None = None
    runtime_policies: list[Any] | UnsetType = UNSET  # where there are several, each as it came
    mb_policy_name: str | UnsetType | None = UNSET
    mb_policy_version: int | None = None
    hash_alg: str | None = None
    enc_alg: str | None = None
    sign_alg: str | None = None
    accept_tpm_hash_algs: list[str] = []
    accept_tpm_encryption_algs: list[str] = []
    accept_tpm_signing_algs: list[str] = []
    attestation_mode: str | None = None
    ima_entries: int | None = None  # judged of its list since it was started
    deadline: int | None = None  # of an agent that attests by itself: until when it passes

    @property
    def attests_by_itself(self) -> bool:
        """Whether nobody asks the agent."""
        return self.attestation_mode == "push"

    @property
    def state(self) -> OperationalState | None:
        """The state, whether it was told as number or in words; None for one that we do not know."""
        return None if self.operational_state is None else _STATES.get(self.operational_state)

    @property
    def state_text(self) -> int | str | None:
        """The words for the state; one that we do not know stays as it is."""
        return self.operational_state if self.state is None else self.state.text

    @property
    def passes(self) -> int:
        """How often the agent has passed."""
        return self.attestation_count or 0

    @property
    def longest_interval_s(self) -> int | None:
        """How long after a pass the next one is late; None where that was not told."""
        told = self.maximum_attestation_interval or ""
        number, unit = told[:-1], told[-1:]
        return int(number) if unit == "s" and number.isascii() and number.isdecimal() else None

    @property
    def can_be_changed(self) -> bool:
        """Whether its verifier can change an enrolment: those who can tell the names of policies."""
        return self.mb_policy_name is not UNSET

    @property
    def findings(self) -> list[FindingSummary]:
        """The reasons of the last rejection, as far as they can be read."""
        return _readable(self.last_findings, FindingSummary)

    @property
    def parts(self) -> list[PolicyPart]:
        """The runtime policies where there are several, as far as they can be read."""
        return _readable(self.runtime_policies or [], PolicyPart)

    def for_scripts(self) -> dict[str, Any]:
        """The document with the state in words, other members untouched.

        Some verifiers show the V share of a payload key; that goes to no terminal and no log (P14, Y5).
        """
        hidden = {"v": None} if "v" in self.document else {}
        if self.attests_by_itself:  # the wire's state says nothing of it
            shown = {name: value for name, value in self.document.items() if name != "operational_state"}
            return shown | hidden
        state = self.document.get("operational_state") if self.state is None else self.state.text
        return {**self.document, **hidden, "operational_state": state}


def told_status(document: Mapping[str, Any]) -> ToldStatus:
    """What `document`, results of `GET /agents/{id}`, tells."""
    values: dict[str, Any] = {"document": document}
    for field in msgspec.structs.fields(ToldStatus):
        if field.name in document and field.name not in values:
            try:
                values[field.name] = msgspec.convert(document[field.name], field.type)
            except msgspec.ValidationError:  # of another release
                continue
    return ToldStatus(**values)


def read_part(part: object, kind: type[T]) -> T | None:
    """A part of a status as it came; None for one of another form."""
    try:
        return msgspec.convert(part, kind)
    except msgspec.ValidationError:  # of another release
        return None


def _readable(parts: Sequence[object], kind: type[T]) -> list[T]:
    return [one for one in (read_part(part, kind) for part in parts) if one is not None]
