"""What the verifier keeps about an agent, as typed values between the database and the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import msgspec
from msgspec.structs import replace

from keylime.appraisal.checkpoint import Checkpoint
from keylime.identifiers import AgentId
from keylime.messages.verifier import FindingSummary, OperationalState
from keylime_verifier.agents.deliveries import Channel, DeliveryState
from keylime_verifier.agents.policy_categories import TextHash
from keylime_verifier.agents.shards import ShardClaim, VerifierId, shard_of


@dataclass(frozen=True, slots=True)
class PolicyPart:
    """One of several runtime policies of an agent, by its name. `until` is in seconds since the epoch."""

    name: str
    until: int | None = None

    def holds(self, now: float) -> bool:
        """Whether it has not ended."""
        return self.until is None or now < self.until


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator gave when the agent was added. Does not change while the agent is there.

    Texts are kept as they came (checked at the edge); `v` and `revocation_key` are not here: they are read
    when they are needed, so that no object that is logged or passed around holds a secret.
    """

    agent_id: AgentId
    ip: str
    port: int
    mtls_cert: str | None
    ak_tpm: str
    verifier_id: VerifierId
    verifier_ip: str | None
    verifier_port: int | None
    has_v: bool
    meta_data: str
    tpm_policy: str
    runtime_policy: str
    measured_boot_policy: str | None
    ima_sign_verification_keys: str
    accept_tpm_hash_algs: tuple[str, ...]
    accept_tpm_encryption_algs: tuple[str, ...]
    accept_tpm_signing_algs: tuple[str, ...]
    # All of them, where there are several: `runtime_policy` names one that does not end.
    runtime_parts: tuple[PolicyPart, ...] = ()
    is_pushing: bool = False  # it attests by itself, and has no address: `ip` is empty, `port` is 0

    @property
    def parts(self) -> tuple[PolicyPart, ...]:
        """The runtime policies of the agent, those that have ended included."""
        return self.runtime_parts or (PolicyPart(self.runtime_policy),)

    def uses_runtime_policy(self, name: str) -> bool:
        """Whether the runtime policy of this name is one of them."""
        return any(part.name == name for part in self.parts)


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What polling has learned and decided; times are seconds since the epoch, 0 for never."""

    operational_state: OperationalState = OperationalState.START
    is_polled: bool = True  # false after a verdict that is final, and after a stop
    supported_version: str
    severity_level: int | None = None
    last_event_id: str | None = None
    last_findings: tuple[FindingSummary, ...] = ()
    attestation_count: int = 0
    last_received_quote: int = 0
    last_successful_attestation: int = 0
    unreachable_since: int | None = None
    hash_alg: str = ""
    enc_alg: str = ""
    sign_alg: str = ""
    v_delivered_to: str | None = None
    checkpoint: Checkpoint = msgspec.field(default_factory=Checkpoint.fresh)


class PushState(msgspec.Struct, frozen=True):
    """How far the attestations of an agent have come that attests by itself.

    `judged` is the number of the last one with a verdict; `deadline`, in seconds since the epoch, is when the
    next one is overdue, None before the first.
    """

    judged: int | None = None
    deadline: int | None = None


class RowVersion(NamedTuple):
    """The same as long as nobody acts on an agent, and nobody else takes it over or judges it."""

    generation: str  # begins with every act of an operator
    epoch: int  # of the shard, begins with every change of its owner
    recalls: int  # how often others had it judged again


class AgentRecord(msgspec.Struct, frozen=True):
    """One agent. `generation` names the time since an operator's last act; writes of another are refused.

    `claim` is what its shard was under when it was read; passes under another one are refused as well, and
    those from before the last of its `recalls`.
    """

    generation: str
    enrolment: Enrolment
    progress: Progress
    claim: ShardClaim = msgspec.field(default_factory=ShardClaim)
    recalls: int = 0
    push: PushState | None = None  # of an agent that attests by itself

    @property
    def agent_id(self) -> AgentId:
        return self.enrolment.agent_id

    @property
    def shard(self) -> int:
        return shard_of(self.enrolment.agent_id)

    def counting_on(self, known: "AgentRecord | None") -> "AgentRecord":
        """With the counters and times of `known`, if they are later ones of this generation.

        They may have been shown, and what is shown does not go back.
        """
        if known is None or known.generation != self.generation:
            return self
        ours, theirs = self.progress, known.progress
        counted = replace(
            ours,
            attestation_count=max(ours.attestation_count, theirs.attestation_count),
            last_received_quote=max(ours.last_received_quote, theirs.last_received_quote),
            last_successful_attestation=max(
                ours.last_successful_attestation, theirs.last_successful_attestation
            ),
        )
        return replace(self, progress=counted)

    @property
    def row_version(self) -> RowVersion:
        """What must not have changed in the database for a pass to count."""
        return RowVersion(self.generation, self.claim.epoch, self.recalls)


@dataclass(frozen=True, slots=True)
class HeldVersions:
    """Which texts an agent is held to: the SHA-256 of what is stored under its names, None for nothing.

    Of several runtime policies it has that of each, with a plus sign between; `until` is when the first of
    them ends, in seconds since the epoch.
    """

    runtime: TextHash | None = None
    boot: TextHash | None = None
    until: int | None = field(default=None, compare=False)

    @classmethod
    def found(
        cls,
        enrolment: "Enrolment",
        runtime: Mapping[str, TextHash],
        boot: TextHash | None,
        now: float,
    ) -> Self:
        """Those of an agent at `now`, of what is stored; `runtime` has the SHA-256 of texts by name."""
        return cls.of_parts(enrolment.parts, runtime, boot, now)

    @classmethod
    def of_parts(
        cls,
        all_parts: Sequence[PolicyPart],
        runtime: Mapping[str, TextHash],
        boot: TextHash | None,
        now: float,
    ) -> Self:
        """The same for an agent with these runtime policies."""
        parts = [part for part in all_parts if part.holds(now)]
        hashes = [runtime.get(part.name) for part in parts]
        ends = [part.until for part in parts if part.until is not None]
        together = None if None in hashes else "+".join(one for one in hashes if one is not None)
        return cls(None if not together else TextHash(together), boot, min(ends, default=None))


@dataclass(frozen=True, slots=True)
class AgentVersion:
    """What tells whether what is known of a polled agent is still true."""

    row: RowVersion
    policies: HeldVersions


@dataclass(frozen=True, slots=True)
class Secrets:
    """What only the verifier may know of an agent. `v` is base64, `revocation_key` is PEM or empty."""

    v: str | None
    revocation_key: str

    def __repr__(self) -> str:
        return "Secrets(...)"


@dataclass(frozen=True, slots=True)
class StoredRevocation:
    """A signed revocation with its id in the outbox."""

    revocation_id: str
    agent_id: AgentId
    created_at: int  # seconds since the epoch
    message: str
    signature: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """One revocation's way to one target. `number` is the revocation's, if it comes from a backlog.

    Then it is the first one of that backlog with a number above `after`.
    """

    revocation: StoredRevocation
    channel: Channel
    target: str
    attempts: int
    number: int | None = None
    after: int = 0

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from every other delivery."""
        return self.revocation.revocation_id, self.channel, self.target


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """How a delivery's last attempt ended; `delivery.attempts` counts it, `state` is one of the outbox's."""

    delivery: Delivery
    state: DeliveryState
    error: str | None
    at: int  # seconds since the epoch
