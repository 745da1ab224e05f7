"""What the verifier keeps about an agent, as typed values between the database and the rest."""

from dataclasses import dataclass, field

from keylime.appraisal.checkpoint import Checkpoint
from keylime.identifiers import AgentId
from keylime.messages.verifier import FindingSummary, OperationalState
from keylime_verifier.ownership import Claim, shard_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolment:
    """What an operator gave when the agent was added. Does not change while the agent is there.

    Texts are kept as they came (checked at the edge); `v` and `revocation_key` are not here: they are read
    when they are needed, so that no object that is logged or passed around holds a secret.
    """

    agent_id: AgentId
    ip: str
    port: int
    mtls_cert: str | None
    ak_tpm: str
    verifier_id: str
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
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
    checkpoint: Checkpoint = field(default_factory=Checkpoint.fresh)


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """One agent. `incarnation` names the span since an operator's last act; writes of another are refused.

    `claim` is what its shard was under when it was read; writes under an older epoch are refused as well.
    """

    incarnation: str
    enrolment: Enrolment
    progress: Progress
    claim: Claim = field(default_factory=Claim)

    @property
    def agent_id(self) -> AgentId:
        return self.enrolment.agent_id

    @property
    def shard(self) -> int:
        return shard_of(self.enrolment.agent_id)

    @property
    def span(self) -> tuple[str, int]:
        """The same as long as nobody acts on the agent and nobody else takes it over."""
        return self.incarnation, self.claim.epoch


@dataclass(frozen=True, slots=True)
class PolicyVersions:
    """Which texts an agent is held to: the SHA-256 of what is stored under its names, None for nothing."""

    runtime: str | None = None
    boot: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """What tells whether what is known of a polled agent is still true."""

    incarnation: str
    epoch: int
    versions: PolicyVersions

    @property
    def span(self) -> tuple[str, int]:
        """As that of a record."""
        return self.incarnation, self.epoch


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
    """One revocation's way to one target. `number` is the revocation's, if it comes from a backlog."""

    revocation: StoredRevocation
    channel: str
    target: str
    attempts: int
    number: int | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from every other delivery."""
        return self.revocation.revocation_id, self.channel, self.target


@dataclass(frozen=True, slots=True)
class Attempt:
    """How a delivery's last attempt ended; `delivery.attempts` counts it, `state` is one of the outbox's."""

    delivery: Delivery
    state: str
    error: str | None
    at: int  # seconds since the epoch
