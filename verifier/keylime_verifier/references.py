"""Compiles what is stored about an agent into the reference that its evidence is appraised against."""

import asyncio
import base64
import binascii
import weakref
from collections.abc import Callable

from keylime.appraisal.reference import AcceptedAlgorithms, Reference, canonical_algorithm
from keylime.errors import MalformedMessage, PolicyError
from keylime.ima.keyrings import Keyring, parse_keyring
from keylime.policy.measured_boot import MeasuredBootPolicy
from keylime.policy.runtime import RuntimePolicy
from keylime.policy.tpm_policy import TpmPolicy
from keylime.tpm.keys import AttestationKey, parse_attestation_key
from keylime_verifier.policy_store import MEASURED_BOOT, RUNTIME, PolicyStore
from keylime_verifier.records import Enrolment, PolicyVersions
from keylime_verifier.runtime_policies import compile_stored_policy

CompileBootPolicy = Callable[[str], MeasuredBootPolicy | None]


class References:
    """Builds references; compiled policies are shared, by content hash, for as long as an agent uses them."""

    def __init__(
        self,
        policies: PolicyStore,
        compile_boot_policy: CompileBootPolicy,
        *,
        ignore_tomtou: bool,
        evaluate_boot_always: bool,
    ) -> None:
        self._policies = policies
        self._compile_boot_policy = compile_boot_policy
        self._ignore_tomtou = ignore_tomtou
        self._evaluate_boot_always = evaluate_boot_always
        self._runtime: weakref.WeakValueDictionary[str, RuntimePolicy] = weakref.WeakValueDictionary()
        self._compiling = asyncio.Lock()
        self._demands_ima: dict[str, bool] = {}
        self._boot: weakref.WeakValueDictionary[str, MeasuredBootPolicy] = weakref.WeakValueDictionary()

    async def build(self, enrolment: Enrolment) -> tuple[Reference, PolicyVersions]:
        """The reference of one agent, and what it was built of. Raises KeylimeError for what is of no use."""
        runtime = await self._hash_of(RUNTIME, enrolment.runtime_policy)
        boot_name = enrolment.measured_boot_policy
        boot = None if boot_name is None else await self._hash_of(MEASURED_BOOT, boot_name)
        reference = Reference(
            attestation_key=decode_attestation_key(enrolment.ak_tpm),
            accepted=AcceptedAlgorithms(
                hashes=frozenset(enrolment.accept_tpm_hash_algs),
                encryption=frozenset(map(canonical_algorithm, enrolment.accept_tpm_encryption_algs)),
                signing=frozenset(enrolment.accept_tpm_signing_algs),
            ),
            tpm_policy=TpmPolicy.from_wire(enrolment.tpm_policy),
            runtime_policy=await self._compiled(runtime),
            measured_boot=None if boot is None else await self._boot_policy(boot),
            tenant_keyring=tenant_keyring(enrolment.ima_sign_verification_keys),
            ignore_tomtou=self._ignore_tomtou,
            evaluate_boot_always=self._evaluate_boot_always,
        )
        return reference, PolicyVersions(runtime, boot)

    async def demands_ima(self, content_hash: str | None) -> bool:
        """Whether the runtime policy with this text demands anything; one that cannot be read does.

        Remembered for each text, because a status must not cost the compilation of a policy.
        """
        if content_hash is None:
            return True
        known = self._demands_ima.get(content_hash)
        if known is None:
            try:
                known = (await self._compiled(content_hash)).demands_ima
            except PolicyError:
                known = True
            self._demands_ima[content_hash] = known
        return known

    async def _compiled(self, content_hash: str) -> RuntimePolicy:
        policy = self._runtime.get(content_hash)
        if policy is not None:
            return policy
        async with self._compiling:  # a fleet that starts together compiles its policy once
            policy = self._runtime.get(content_hash)
            if policy is None:
                text = await self._text_of(content_hash)
                policy = await asyncio.to_thread(compile_stored_policy, text)
                self._runtime[content_hash] = policy
        return policy

    async def _boot_policy(self, content_hash: str) -> MeasuredBootPolicy | None:
        policy = self._boot.get(content_hash)
        if policy is None:
            policy = self._compile_boot_policy(await self._text_of(content_hash))
            if policy is not None:
                self._boot[content_hash] = policy
        return policy

    async def _hash_of(self, kind: str, name: str) -> str:
        content_hash = await self._policies.content_hash(kind, name)
        if content_hash is None:
            raise PolicyError(f"the {kind} policy {name!r} is gone from the database")
        return content_hash

    async def _text_of(self, content_hash: str) -> str:
        text = await self._policies.text(content_hash)
        if text is None:
            raise PolicyError(f"the policy text {content_hash} is gone from the database")
        return text


def decode_attestation_key(ak_tpm: str) -> AttestationKey:
    """The AK in base64 `ak_tpm`. Raises MalformedMessage, MalformedEvidence or UnsuitableKey (T3)."""
    try:
        public = base64.b64decode(ak_tpm, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedMessage(f"ak_tpm is not base64: {error}") from error
    return parse_attestation_key(public)


def tenant_keyring(text: str) -> Keyring | None:
    """The keyring in the deprecated `ima_sign_verification_keys`, if any. Raises PolicyError."""
    return parse_keyring(text) if text else None
