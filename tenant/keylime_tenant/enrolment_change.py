"""The decisions of `update`: what a verifier is told to change, and what it had before."""

import base64
from collections.abc import Mapping
from typing import TypeVar

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from keylime.errors import PolicyError
from keylime.messages.verifier import AddAgentRequest, NewPayload, UpdateAgentRequest
from keylime.tpm.pcr import IMA_PCR, MEASURED_BOOT_PCRS
from keylime.tpm.tpm_policy import TpmPolicy
from keylime_tenant.arguments import Arguments
from keylime_tenant.config import Address, AllowedAlgorithms
from keylime_tenant.enrolment import Candidate, add_request
from keylime_tenant.errors import CommandFailed
from keylime_tenant.payload import NOTHING, PayloadDelivery
from keylime_tenant.policies import AgentPolicies, operator_policy
from keylime_tenant.told_status import ToldStatus

T = TypeVar("T")


def change_request(
    arguments: Arguments,
    candidate: Candidate,
    version: str,
    policies: AgentPolicies,
    delivery: PayloadDelivery,
    accepted: AllowedAlgorithms,
) -> UpdateAgentRequest:
    """What the command line names of an enrolment, and the identity that was just proven."""
    runtime = _named(
        policies.runtime_policy or None, arguments.names_runtime_policy, arguments.no_runtime_policy
    )
    boot = _named(policies.mb_policy, arguments.names_mb_policy, arguments.no_mb_policy)
    has_address = bool(arguments.agent_ip or arguments.cv_targethost)
    return UpdateAgentRequest(
        tpm_policy=_named(
            operator_policy(arguments.tpm_policy).to_wire(),
            arguments.tpm_policy is not None,
            arguments.no_tpm_policy,
        ),
        runtime_policy=runtime,
        runtime_policy_name=UNSET if runtime is UNSET else policies.runtime_policy_name or None,
        runtime_policies=policies.runtime_policies,
        runtime_policy_key=policies.runtime_policy_key if runtime else UNSET,
        mb_policy=boot,
        mb_policy_name=UNSET if boot is UNSET else policies.mb_policy_name or None,
        # The keys belong to the runtime policy: both go together.
        ima_sign_verification_keys=_named(
            policies.ima_keyring,
            arguments.names_verification_keys,
            arguments.no_runtime_policy and not arguments.names_verification_keys,
        ),
        accept_tpm_hash_algs=list(accepted.hashes),
        accept_tpm_encryption_algs=list(accepted.encryption),
        accept_tpm_signing_algs=list(accepted.signing),
        ak_tpm=candidate.ak_tpm,
        mtls_cert=candidate.mtls_certificate,
        cloudagent_ip=candidate.verifier_contact.host if has_address else UNSET,
        cloudagent_port=candidate.verifier_contact.port if has_address or arguments.agent_port else UNSET,
        supported_version=version,
        payload=_payload(delivery),
    )


def _named(value: T, is_named: bool, is_removed: bool) -> T | UnsetType | None:
    if is_removed:
        return None
    return value if is_named else UNSET


def _payload(delivery: PayloadDelivery) -> NewPayload | UnsetType:
    if delivery.v_share is None:
        return UNSET
    return NewPayload(v=delivery.v_share, metadata=delivery.metadata, revocation_key=delivery.revocation_key)


def restored_request(
    candidate: Candidate, version: str, found: ToldStatus, own: Mapping[str, str | None]
) -> AddAgentRequest | None:
    """The enrolment in the status `found`, with the policies that came with it (`own`, by kind).

    None when it has a policy of a name that the verifier does not tell. Nor is its revocation key told.
    """
    if (found.has_runtime_policy and own["allowlists"] is None) or (
        found.has_mb_refstate and own["mbpolicies"] is None
    ):
        return None
    return AddAgentRequest(
        v=found.v,
        cloudagent_ip=found.ip or candidate.verifier_contact.host,
        cloudagent_port=found.port or candidate.verifier_contact.port,
        verifier_ip=found.verifier_ip,
        verifier_port=found.verifier_port,
        tpm_policy=found.tpm_policy or "{}",
        runtime_policy=_base64(own["allowlists"]),
        runtime_policy_name="",
        runtime_policy_key="",
        mb_policy=own["mbpolicies"],
        mb_policy_name="",
        ima_sign_verification_keys="",
        metadata=found.meta_data or "{}",
        revocation_key="",
        accept_tpm_hash_algs=found.accept_tpm_hash_algs,
        accept_tpm_encryption_algs=found.accept_tpm_encryption_algs,
        accept_tpm_signing_algs=found.accept_tpm_signing_algs,
        ak_tpm=candidate.ak_tpm,
        mtls_cert=candidate.mtls_certificate,
        supported_version=version,
    )


def whole_request(
    arguments: Arguments,
    candidate: Candidate,
    version: str,
    policies: AgentPolicies,
    delivery: PayloadDelivery,
    accepted: AllowedAlgorithms,
    found: ToldStatus,
    own: Mapping[str, str | None],
) -> AddAgentRequest:
    """The whole new enrolment, for a verifier that cannot change one. Raises CommandFailed, PolicyError.

    What is not named is taken from the status `found` and from the policies in `own`.
    """
    keeps_runtime = not (arguments.names_runtime_policy or arguments.no_runtime_policy)
    keeps_boot = not (arguments.names_mb_policy or arguments.no_mb_policy)
    for keeps, is_there, kind, flag in (
        (
            keeps_runtime,
            found.has_runtime_policy,
            "allowlists",
            "--runtime-policy-name or --no-runtime-policy",
        ),
        (keeps_boot, found.has_mb_refstate, "mbpolicies", "--mb-policy-name or --no-mb-policy"),
    ):
        if keeps and is_there and own[kind] is None:
            raise CommandFailed(
                "the verifier is of a release that does not tell which policy agent "
                f"{candidate.agent_id} has, so that it cannot be kept: give {flag}"
            )
    request = add_request(
        candidate,
        version=version,
        policies=policies,
        delivery=delivery,
        accepted=accepted,
        verifier=Address(found.verifier_ip or "", found.verifier_port or 0),
    )
    request = replace(request, verifier_ip=found.verifier_ip, verifier_port=found.verifier_port)
    if keeps_runtime:
        request = replace(request, runtime_policy=_base64(own["allowlists"]))
    if keeps_boot:
        request = replace(request, mb_policy=own["mbpolicies"])
    if not (arguments.agent_ip or arguments.cv_targethost):
        request = replace(request, cloudagent_ip=found.ip or request.cloudagent_ip)
        if not arguments.agent_port:
            request = replace(request, cloudagent_port=found.port or request.cloudagent_port)
    if delivery == NOTHING:
        request = replace(request, v=found.v, metadata=found.meta_data or request.metadata)
    return replace(request, tpm_policy=_tpm_policy(arguments, found, request))


def _tpm_policy(arguments: Arguments, found: ToldStatus, request: AddAgentRequest) -> str:
    keeps = arguments.tpm_policy is None and not arguments.no_tpm_policy
    try:
        policy = (
            TpmPolicy.from_wire(found.tpm_policy or "{}") if keeps else operator_policy(arguments.tpm_policy)
        )
    except PolicyError as error:
        raise CommandFailed(f"the TPM policy that the agent has cannot be kept: {error}") from error
    if request.runtime_policy or request.runtime_policy_name or request.ima_sign_verification_keys:
        policy = policy.with_mask({IMA_PCR})
    if request.mb_policy is not None or request.mb_policy_name:
        policy = policy.with_mask(MEASURED_BOOT_PCRS)
    return policy.to_wire()


def _base64(text: str | None) -> str:
    return base64.b64encode((text or "").encode()).decode("ascii")
