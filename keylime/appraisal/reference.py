"""What is known good about one agent, compiled: its key, what it may use, and the policies it is held to."""

from dataclasses import dataclass, field

from keylime.hashes import HashAlgorithm
from keylime.ima.keyrings import Keyring
from keylime.ima.runtime_policy import PolicyHash, RuntimePolicy
from keylime.measured_boot.boot_policy import MeasuredBootPolicy
from keylime.tpm.keys import AttestationKey
from keylime.tpm.pcr import DATA_PCR, IMA_PCR
from keylime.tpm.tpm_policy import TpmPolicy

# `rsa` and `ecc` are what agents before API 2.5 call their only sizes.
_ALIASES = {"rsa": "rsa2048", "ecc": "ecc256"}


def canonical_algorithm(label: str) -> str:
    """`label` of an asymmetric algorithm with its size spelled out."""
    return _ALIASES.get(label, label)


@dataclass(frozen=True, slots=True)
class AcceptedAlgorithms:
    """The labels that an operator accepts for quotes; encryption labels are canonical."""

    hashes: frozenset[str]
    encryption: frozenset[str]
    signing: frozenset[str]


def demands_ima(*, runtime_policy: bool, tpm_policy: TpmPolicy, tenant_keyring: Keyring | None) -> bool:
    """Whether PCR 10 must be quoted and its list appraised: the runtime policy, keys or the mask say so."""
    has_keys = tenant_keyring is not None and bool(tenant_keyring.keys)
    return runtime_policy or has_keys or bool(tpm_policy.mask & (1 << IMA_PCR))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """The appraisal policy for one agent. Policies are shared by all agents that use the same text."""

    attestation_key: AttestationKey
    accepted: AcceptedAlgorithms
    tpm_policy: TpmPolicy
    runtime_policy: RuntimePolicy
    measured_boot: MeasuredBootPolicy | None = None
    tenant_keyring: Keyring | None = None
    ignore_tomtou: bool = False
    evaluate_boot_always: bool = False
    # Content hashes of runtime policies, see `Checkpoint.under_policy`.
    succeeded: frozenset[PolicyHash] = frozenset()
    demanded_pcrs: frozenset[int] = field(
        init=False
    )  # that every quote must cover (T2), the data PCR included
    # Whether PCR 10 must be quoted and its list appraised; policies decide, not the evidence.
    demands_ima: bool = field(init=False)
    encryption_label: str = field(init=False)  # the kind of the attestation key

    def __post_init__(self) -> None:
        asks_for_list = demands_ima(
            runtime_policy=self.runtime_policy.demands_ima,
            tpm_policy=self.tpm_policy,
            tenant_keyring=self.tenant_keyring,
        )
        object.__setattr__(self, "demands_ima", asks_for_list)
        object.__setattr__(self, "demanded_pcrs", self._demanded_pcrs())
        object.__setattr__(self, "encryption_label", self.attestation_key.encryption_label)

    @property
    def judges_nothing(self) -> bool:
        """Whether an accepted quote only says that the TPM is alive: no policy makes a demand."""
        return not (self.demands_ima or self.measured_boot is not None or self.tpm_policy.values)

    def _demanded_pcrs(self) -> frozenset[int]:
        pcrs = {index for index in range(24) if self.tpm_policy.mask & (1 << index)}
        pcrs.update(self.tpm_policy.values)
        pcrs.add(DATA_PCR)
        if self.demands_ima:
            pcrs.add(IMA_PCR)
        if self.measured_boot is not None:
            pcrs.update(self.measured_boot.required_pcrs)
        return frozenset(pcrs)

    def accepts_hash(self, algorithm: HashAlgorithm) -> bool:
        """Whether a quote may use `algorithm` for its PCR bank or its signature."""
        return algorithm.label in self.accepted.hashes
