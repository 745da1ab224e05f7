"""Compiles what is stored about an agent into the reference that its evidence is appraised against."""

import asyncio
import weakref
from collections.abc import Callable, Mapping, Sequence

from keylime.appraisal.reference import AcceptedAlgorithms, Reference, canonical_algorithm
from keylime.errors import PolicyError
from keylime.ima.policy_union import keeps_learned, unite
from keylime.ima.runtime_policy import PolicyHash, RuntimePolicy
from keylime.measured_boot.boot_policy import MeasuredBootPolicy
from keylime.tpm.tpm_policy import TpmPolicy
from keylime_verifier.agents.policy_categories import MEASURED_BOOT, RUNTIME, PolicyHashes, TextHash
from keylime_verifier.agents.records import Enrolment, HeldVersions
from keylime_verifier.policies.demands import CompileBootPolicy, decode_attestation_key, tenant_keyring
from keylime_verifier.policies.kept import KeptPolicies
from keylime_verifier.policies.runtime import compile_stored_policy
from keylime_verifier.policies.store import PolicyStore


class References:
    """Builds references; compiled policies are shared, by the hashes of their texts (`KeptPolicies`)."""

    def __init__(
        self,
        policies: PolicyStore,
        compile_boot_policy: CompileBootPolicy,
        *,
        ignore_tomtou: bool,
        evaluate_boot_always: bool,
        now: Callable[[], float],
    ) -> None:
        """`now` is the clock by which policies end."""
        self._policies = policies
        self._now = now
        self._compile_boot_policy = compile_boot_policy
        self._ignore_tomtou = ignore_tomtou
        self._evaluate_boot_always = evaluate_boot_always
        self._runtime = KeptPolicies()
        self._compiling = asyncio.Lock()
        self._demands_ima: dict[TextHash, bool] = {}
        self._boot: weakref.WeakValueDictionary[TextHash, MeasuredBootPolicy] = weakref.WeakValueDictionary()

    async def build(
        self, enrolment: Enrolment, stored: PolicyHashes | None = None
    ) -> tuple[Reference, HeldVersions]:
        """The reference of one agent, and what it was built of. Raises KeylimeError for what is of no use.

        It holds until the first of several runtime policies ends. Who has just read which policies are
        `stored` says so.
        """
        now = self._now()
        hashes = {part.name: await self._hash_of(RUNTIME, part.name, stored) for part in enrolment.parts}
        boot_name = enrolment.measured_boot_policy
        boot = None if boot_name is None else await self._hash_of(MEASURED_BOOT, boot_name, stored)
        versions = HeldVersions.found(enrolment, hashes, boot, now)
        if versions.runtime is None:
            raise PolicyError("every runtime policy of the agent has ended")
        policy = await self._united(versions.runtime)
        reference = Reference(
            attestation_key=decode_attestation_key(enrolment.ak_tpm),
            accepted=AcceptedAlgorithms(
                hashes=frozenset(enrolment.accept_tpm_hash_algs),
                encryption=frozenset(map(canonical_algorithm, enrolment.accept_tpm_encryption_algs)),
                signing=frozenset(enrolment.accept_tpm_signing_algs),
            ),
            tpm_policy=TpmPolicy.from_wire(enrolment.tpm_policy),
            runtime_policy=policy,
            measured_boot=None if boot is None else await self._boot_policy(boot),
            tenant_keyring=tenant_keyring(enrolment.ima_sign_verification_keys),
            ignore_tomtou=self._ignore_tomtou,
            evaluate_boot_always=self._evaluate_boot_always,
            succeeded=await self._succeeded(enrolment, hashes, policy, now),
        )
        return reference, versions

    def know(self, compiled: Mapping[TextHash, RuntimePolicy]) -> None:
        """Takes over policies that were compiled when their texts came; what is stored means the same."""
        for text_hash, policy in compiled.items():
            self._runtime.keep(text_hash, policy)

    async def compiled_parts(self, names: Sequence[str]) -> list[tuple[str, RuntimePolicy]]:
        """The named runtime policies as they are stored. Raises PolicyError."""
        return [(name, await self._compiled(await self._hash_of(RUNTIME, name))) for name in names]

    async def _united(self, together: TextHash) -> RuntimePolicy:
        """The policy that those with these hashes are, see `HeldVersions`."""
        hashes = [TextHash(one) for one in together.split("+")]
        if len(hashes) == 1:
            return await self._compiled(together)
        policy = self._runtime.get(together)
        if policy is None:
            parts = [await self._compiled(one) for one in hashes]
            policy = await asyncio.to_thread(unite, parts)
            self._runtime.keep(together, policy)
        return policy

    async def _succeeded(
        self, enrolment: Enrolment, hashes: Mapping[str, TextHash], policy: RuntimePolicy, now: float
    ) -> frozenset[PolicyHash]:
        """Runtime policies whose verdicts hold on, though others judge what comes from now on.

        Those that have ended, unless they vouched for keys that nobody vouches for any more, and former
        versions of which those that hold accept everything.
        """
        found = set(policy.part_hashes)
        for part in enrolment.parts:
            if part.holds(now):
                found |= await self._policies.covered(part.name, hashes[part.name])
                continue
            ended = await self._compiled(hashes[part.name])
            if keeps_learned(policy, ended):
                found.add(ended.content_hash)
        return frozenset(found)

    async def demands_ima(self, text_hash: TextHash | None) -> bool:
        """Whether the runtime policy with this text demands anything; one that cannot be read does.

        Remembered for each text, because a status must not cost the compilation of a policy.
        """
        if text_hash is None:
            return True
        known = self._demands_ima.get(text_hash)
        if known is None:
            try:
                known = (await self._compiled(text_hash)).demands_ima
            except PolicyError:
                known = True
            self._demands_ima[text_hash] = known
        return known

    async def _compiled(self, text_hash: TextHash) -> RuntimePolicy:
        policy = self._runtime.get(text_hash)
        if policy is not None:
            return policy
        async with self._compiling:  # a fleet that starts together compiles its policy once
            policy = self._runtime.get(text_hash)
            if policy is None:
                text = await self._text_of(text_hash)
                policy = await asyncio.to_thread(compile_stored_policy, text)
                self._runtime.keep(text_hash, policy)
        return policy

    async def _boot_policy(self, text_hash: TextHash) -> MeasuredBootPolicy | None:
        policy = self._boot.get(text_hash)
        if policy is None:
            policy = self._compile_boot_policy(await self._text_of(text_hash))
            if policy is not None:
                self._boot[text_hash] = policy
        return policy

    async def _hash_of(self, kind: str, name: str, stored: PolicyHashes | None = None) -> TextHash:
        text_hash = await self._policies.text_hash(kind, name) if stored is None else stored.get((kind, name))
        if text_hash is None:
            raise PolicyError(f"the {kind} policy {name!r} is gone from the database")
        return text_hash

    async def _text_of(self, text_hash: TextHash) -> str:
        text = await self._policies.text(text_hash)
        if text is None:
            raise PolicyError(f"the policy text {text_hash} is gone from the database")
        return text
