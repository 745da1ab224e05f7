"""An operator's `POST /agents/{id}` turned into a checked enrolment. Everything is refused here or never."""

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass, replace
from typing import TypeVar

import msgspec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from msgspec import UNSET, UnsetType

from keylime.errors import CredentialError, MalformedEvidence, MalformedMessage, PolicyError, UnsuitableKey
from keylime.identifiers import AgentId
from keylime.ima.policy_union import MAX_PARTS
from keylime.ima.runtime_policy import EMPTY_POLICY, RuntimePolicy
from keylime.messages import verifier as wire
from keylime.messages.verifier import AddAgentRequest, EnrolmentSummary, UpdateAgentRequest
from keylime.messages.versions import CURRENT_VERSION, SUPPORTED_VERSIONS
from keylime.nesting import is_too_deep
from keylime.pki.agent_certificate import AgentTls, PinnedKey, PlainHttp, read_agent_tls
from keylime.tpm.pcr import IMA_PCR, MEASURED_BOOT_PCRS
from keylime.tpm.tpm_policy import TpmPolicy
from keylime_verifier.agents.policy_categories import (
    MEASURED_BOOT,
    RUNTIME,
    PolicyKey,
    TextHash,
    hash_of_text,
)
from keylime_verifier.agents.pushing import AttestationMode
from keylime_verifier.agents.records import Enrolment, HeldVersions, PolicyPart, Secrets
from keylime_verifier.agents.shards import VerifierId
from keylime_verifier.policies.demands import CompileBootPolicy, decode_attestation_key, tenant_keyring
from keylime_verifier.policies.runtime import accept_runtime_policy

T = TypeVar("T")

_KEY_SIZES = (16, 32)
_FORMER_NAMES = {"allowlist": "runtime_policy", "mb_refstate": "mb_policy"}
_MAX_REVOCATION_KEY = 2800
_LAST_SECOND = 253402300799  # of the year 9999
# Names, IPv4 and IPv6 addresses; nothing that would end the authority of a URL.
HOST = re.compile(r"[0-9A-Za-z._:%\[\]-]{1,255}")
_POLICY_NAME = re.compile(r"[^\x00-\x1f\x7f/]{1,255}")


@dataclass(frozen=True, slots=True)
class EnrolmentRules:
    """What the verifier's configuration says about new agents."""

    verifier_id: VerifierId
    verifier_ip: str  # shown when the operator names no other
    verifier_port: int
    require_mtls: bool
    require_policy_signatures: bool
    compile_boot_policy: CompileBootPolicy
    mode: AttestationMode = AttestationMode.PULL


@dataclass(frozen=True, slots=True)
class NewAgent:
    """A checked request: what to store. `new_policies` maps (kind, name) to the text that came along.

    `compiled` is what a runtime policy among them means.
    """

    enrolment: Enrolment
    secrets: Secrets | None  # None for those of an update that keeps what is stored
    version: str
    new_policies: dict[PolicyKey, str]
    compiled: dict[TextHash, RuntimePolicy]


def check_request(agent_id: AgentId, request: AddAgentRequest, rules: EnrolmentRules) -> NewAgent:
    """The enrolment that `request` asks for. Raises MalformedMessage or PolicyError, which name the field."""
    is_pushing = _is_pushing(request, rules)
    if not is_pushing and isinstance(_tls_of(request.mtls_cert), PlainHttp) and rules.require_mtls:
        hint = (
            " One that attests by itself is added with --push-model."
            if rules.mode is AttestationMode.BOTH
            else ""
        )
        raise MalformedMessage(f"mTLS certificate for agent is required!{hint}")
    _check_attestation_key(request.ak_tpm)
    _check_texts(request)
    policies: dict[PolicyKey, str] = {}
    compiled: dict[TextHash, RuntimePolicy] = {}
    enrolment = Enrolment(
        agent_id=agent_id,
        # Nobody calls an agent that attests by itself, and no protocol brings it a payload.
        ip="" if is_pushing else _host(request.cloudagent_ip or "", "cloudagent_ip"),
        port=0 if is_pushing else _port(request.cloudagent_port or "", "cloudagent_port"),
        mtls_cert=None if is_pushing else request.mtls_cert or None,
        ak_tpm=request.ak_tpm,
        verifier_id=rules.verifier_id,
        verifier_ip=_host(request.verifier_ip or rules.verifier_ip, "verifier_ip"),
        verifier_port=_port(request.verifier_port or rules.verifier_port, "verifier_port"),
        has_v=request.v is not None and not is_pushing,
        meta_data=request.metadata,
        tpm_policy=request.tpm_policy,
        runtime_policy=_runtime_policy(agent_id, request, rules, policies, compiled),
        runtime_parts=_runtime_parts(request),
        measured_boot_policy=_boot_policy(agent_id, request, rules, policies),
        ima_sign_verification_keys=request.ima_sign_verification_keys,
        accept_tpm_hash_algs=tuple(request.accept_tpm_hash_algs),
        accept_tpm_encryption_algs=tuple(request.accept_tpm_encryption_algs),
        accept_tpm_signing_algs=tuple(request.accept_tpm_signing_algs),
        is_pushing=is_pushing,
    )
    secrets = Secrets(None if is_pushing else _share(request.v), _revocation_key(request.revocation_key))
    return NewAgent(enrolment, secrets, _version(request.supported_version), policies, compiled)


def _is_pushing(request: AddAgentRequest, rules: EnrolmentRules) -> bool:
    """Whether the agent attests by itself. Raises MalformedMessage when this verifier does not do that.

    Tenants of the field do not say it: what they add is polled, unless no agent is.
    """
    asked = request.attestation_mode
    if not isinstance(asked, UnsetType) and asked not in ("pull", "push"):
        raise MalformedMessage("attestation_mode is neither pull nor push")
    if rules.mode is AttestationMode.BOTH:
        return asked == "push"
    if not isinstance(asked, UnsetType) and asked != rules.mode.value:
        raise MalformedMessage(
            f"attestation_mode is {asked}, and this verifier serves {rules.mode.value} alone: set "
            "`[verifier] mode = both` there"
        )
    return rules.mode is AttestationMode.PUSH


def check_update(
    enrolment: Enrolment,
    version: str,
    *,
    demands_ima: bool,
    request: UpdateAgentRequest,
    rules: EnrolmentRules,
) -> NewAgent:
    """What an agent of this `enrolment` becomes by `request`; without new `secrets` when those stay.

    `demands_ima` says whether its runtime policy does so far. Raises MalformedMessage or PolicyError, which
    name the field.
    """
    keeps_runtime = (
        request.runtime_policy is UNSET
        and request.runtime_policy_name is UNSET
        and request.runtime_policies is UNSET
    )
    keeps_boot = request.mb_policy is UNSET and request.mb_policy_name is UNSET
    payload = None if request.payload is UNSET else request.payload
    port: int | str = enrolment.port
    whole = AddAgentRequest(
        tpm_policy=_kept(request.tpm_policy, enrolment.tpm_policy) or "{}",
        metadata=enrolment.meta_data if payload is None else payload.metadata,
        ima_sign_verification_keys=_kept(
            request.ima_sign_verification_keys, enrolment.ima_sign_verification_keys
        )
        or "",
        revocation_key="" if payload is None else payload.revocation_key,
        accept_tpm_hash_algs=_kept(request.accept_tpm_hash_algs, list(enrolment.accept_tpm_hash_algs)),
        accept_tpm_encryption_algs=_kept(
            request.accept_tpm_encryption_algs, list(enrolment.accept_tpm_encryption_algs)
        ),
        accept_tpm_signing_algs=_kept(
            request.accept_tpm_signing_algs, list(enrolment.accept_tpm_signing_algs)
        ),
        ak_tpm=_kept(request.ak_tpm, enrolment.ak_tpm),
        cloudagent_ip=_kept(request.cloudagent_ip, enrolment.ip),
        cloudagent_port=_kept(request.cloudagent_port, port),
        mb_policy=_kept(request.mb_policy, None),
        mb_policy_name=enrolment.measured_boot_policy if keeps_boot else _kept(request.mb_policy_name, None),
        runtime_policies=told_parts(enrolment) if keeps_runtime else request.runtime_policies,
        runtime_policy=_kept(request.runtime_policy, None) or "",
        runtime_policy_name=(
            enrolment.runtime_policy if keeps_runtime else _kept(request.runtime_policy_name, None)
        ),
        runtime_policy_key=_kept(request.runtime_policy_key, None),
        attestation_mode="push" if enrolment.is_pushing else "pull",
        mtls_cert=_kept(request.mtls_cert, enrolment.mtls_cert),
        supported_version=_kept(request.supported_version, version),
        v=None if payload is None else payload.v,
        verifier_ip=_kept(request.verifier_ip, enrolment.verifier_ip),
        verifier_port=_kept(request.verifier_port, enrolment.verifier_port),
    )
    new = check_request(AgentId(enrolment.agent_id), whole, replace(rules, verifier_id=enrolment.verifier_id))
    uses_ima = bool(whole.ima_sign_verification_keys) or (
        demands_ima if keeps_runtime else bool(whole.runtime_policy or whole.runtime_policy_name)
    )
    changed = msgspec.structs.replace(
        new.enrolment,
        tpm_policy=_with_mask(new.enrolment, used_logs=request.tpm_policy is UNSET, uses_ima=uses_ima),
        has_v=enrolment.has_v if payload is None else True,
    )
    return replace(new, enrolment=changed, secrets=None if payload is None else new.secrets)


def _with_mask(enrolment: Enrolment, *, used_logs: bool, uses_ima: bool) -> str:
    """The TPM policy, with the PCRs of the logs in its mask as the other policies need them.

    `used_logs`: whether the mask is an old one, with the PCRs of former policies. Raises PolicyError when
    there are values for a PCR that a boot log explains.
    """
    policy = TpmPolicy.from_wire(enrolment.tpm_policy)
    uses_boot = enrolment.measured_boot_policy is not None
    for pcr in sorted(policy.values.keys() & MEASURED_BOOT_PCRS) if uses_boot else ():
        raise PolicyError(f"tpm_policy: PCR {pcr} is used by measured boot and cannot be in the policy")
    if used_logs:
        logs = {IMA_PCR, *MEASURED_BOOT_PCRS} - policy.values.keys()
        policy = replace(policy, mask=policy.mask & ~sum(1 << pcr for pcr in logs))
    needed = ({IMA_PCR} if uses_ima else set()) | (set(MEASURED_BOOT_PCRS) if uses_boot else set())
    return policy.with_mask(needed).to_wire()


def _kept(given: T | UnsetType, before: T) -> T:
    return before if isinstance(given, UnsetType) else given


def summarise_enrolment(enrolment: Enrolment, versions: HeldVersions) -> EnrolmentSummary:
    """What operators are told of an enrolment, with the `versions` of its policies. No secrets."""
    return EnrolmentSummary(
        ip=enrolment.ip,
        port=enrolment.port,
        mtls_cert_hash=_hash(enrolment.mtls_cert),
        mtls_key_hash=_key_hash(enrolment.mtls_cert),
        ak_hash=hashlib.sha256(enrolment.ak_tpm.encode()).hexdigest(),
        tpm_policy=enrolment.tpm_policy,
        runtime_policy=None if versions.runtime == _hash(EMPTY_POLICY) else enrolment.runtime_policy,
        runtime_policy_hash=None if versions.runtime == _hash(EMPTY_POLICY) else versions.runtime,
        mb_policy=enrolment.measured_boot_policy,
        mb_policy_hash=versions.boot,
        ima_sign_verification_keys_hash=_hash(enrolment.ima_sign_verification_keys),
        accept_tpm_hash_algs=list(enrolment.accept_tpm_hash_algs),
        accept_tpm_encryption_algs=list(enrolment.accept_tpm_encryption_algs),
        accept_tpm_signing_algs=list(enrolment.accept_tpm_signing_algs),
        has_payload=enrolment.has_v,
        meta_data=enrolment.meta_data,
        runtime_policies=told_parts(enrolment),
    )


def told_parts(enrolment: Enrolment, now: float | None = None) -> list[wire.PolicyPart] | UnsetType:
    """Several runtime policies as they are on the wire; `now` tells which have ended."""
    parts = enrolment.runtime_parts
    return [
        wire.PolicyPart(part.name, part.until, now is not None and not part.holds(now)) for part in parts
    ] or UNSET


def _hash(text: str | None) -> str | None:
    return hashlib.sha256(text.encode()).hexdigest() if text else None


def _key_hash(pem: str | None) -> str | None:
    """What the agent's connections are pinned to; None where nothing is."""
    try:
        tls = read_agent_tls(pem)
    except CredentialError:
        return None
    return tls.pin.hex() if isinstance(tls, PinnedKey) else None


def _check_texts(request: AddAgentRequest) -> None:
    for old, new in _FORMER_NAMES.items():
        if getattr(request, old):
            raise MalformedMessage(f"{old} is no longer read: give the policy as {new}, and only there")
    TpmPolicy.from_client(request.tpm_policy)
    if is_too_deep(request.metadata):
        raise MalformedMessage("metadata is nested too deeply")
    try:
        json.loads(request.metadata)
    except ValueError as error:
        raise MalformedMessage(f"metadata is not JSON: {error}") from error
    try:
        tenant_keyring(request.ima_sign_verification_keys, is_stored=False)
    except PolicyError as error:
        raise PolicyError(f"ima_sign_verification_keys: {error}") from error


def _check_attestation_key(ak_tpm: str) -> None:
    try:
        decode_attestation_key(ak_tpm)
    except (MalformedEvidence, UnsuitableKey) as error:
        raise MalformedMessage(f"ak_tpm cannot be used: {error}") from error


def _tls_of(mtls_cert: str | None) -> AgentTls:
    try:
        return read_agent_tls(mtls_cert)
    except CredentialError as error:
        raise MalformedMessage(f"mtls_cert: {error}") from error


def _host(text: str, field: str) -> str:
    if not HOST.fullmatch(text):
        raise MalformedMessage(f"{field} is not an address or host name")
    return text


def _port(value: int | str, field: str) -> int:
    try:
        port = int(value)
    except ValueError as error:
        raise MalformedMessage(f"{field} is not a number") from error
    if not 0 < port < 65536:
        raise MalformedMessage(f"{field} is not a port: expected 1 to 65535")
    return port


def _version(text: str | None) -> str:
    """The agent's API version; one we do not know is settled with the agent at the first request."""
    return text if text in SUPPORTED_VERSIONS else CURRENT_VERSION


def _share(v: str | None) -> str | None:
    if v is None:
        return None
    try:
        raw = base64.b64decode(v, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MalformedMessage("v is not base64") from error
    if len(raw) not in _KEY_SIZES:
        raise MalformedMessage("v has the wrong length: expected 16 or 32 bytes")
    return v


def _revocation_key(pem: str) -> str:
    if not pem:
        return ""
    if len(pem) > _MAX_REVOCATION_KEY:
        raise MalformedMessage(f"revocation_key is longer than {_MAX_REVOCATION_KEY} characters")
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError) as error:
        raise MalformedMessage("revocation_key is not an unencrypted PEM private key") from error
    if not isinstance(key, RSAPrivateKey):
        raise MalformedMessage("revocation_key is not an RSA key")
    return pem


def _runtime_policy(
    agent_id: AgentId,
    request: AddAgentRequest,
    rules: EnrolmentRules,
    policies: dict[PolicyKey, str],
    compiled: dict[TextHash, RuntimePolicy],
) -> str:
    """The name of the agent's runtime policy; a policy that came along is checked and kept for storing."""
    given = policy_name(request.runtime_policy_name, "runtime_policy_name")
    if not request.runtime_policy:
        if given:
            return given
        policies[RUNTIME, agent_id] = EMPTY_POLICY
        return agent_id
    name = given or agent_id
    received = accept_runtime_policy(
        request.runtime_policy,
        request.runtime_policy_key,
        signature_required=rules.require_policy_signatures,
    )
    policies[RUNTIME, name] = received.text
    compiled[hash_of_text(received.text)] = received.compiled
    return name


def _runtime_parts(request: AddAgentRequest) -> tuple[PolicyPart, ...]:
    """Several runtime policies; none where there is only one."""
    if isinstance(request.runtime_policies, UnsetType) or not request.runtime_policies:
        return ()
    field = "runtime_policies"
    if request.runtime_policy:
        raise MalformedMessage(f"{field} name policies that are stored: leave runtime_policy out")
    given = request.runtime_policies
    parts = tuple(PolicyPart(policy_name(one.name, field) or "", one.until) for one in given)
    if len(parts) > MAX_PARTS:
        raise MalformedMessage(f"{field}: {len(parts)} policies, at most {MAX_PARTS} hold together")
    if len({part.name for part in parts}) < len(parts) or any(not part.name for part in parts):
        raise MalformedMessage(f"{field}: expected different names")
    for part in parts:
        if part.until is not None and not 0 < part.until <= _LAST_SECOND:
            raise MalformedMessage(f"{field}: the end of {part.name!r} is not a time in epoch seconds")
    lasting = [part.name for part in parts if part.until is None]
    if request.runtime_policy_name not in lasting:
        raise MalformedMessage(
            f"{field}: runtime_policy_name must be one of them that does not end, so that there is always one"
        )
    return parts if len(parts) > 1 else ()


def _boot_policy(
    agent_id: AgentId, request: AddAgentRequest, rules: EnrolmentRules, policies: dict[PolicyKey, str]
) -> str | None:
    """The name of the agent's reference state, None when measured boot is off (T6)."""
    given = policy_name(request.mb_policy_name, "mb_policy_name")
    if not request.mb_policy:
        return given
    try:
        policy = rules.compile_boot_policy(request.mb_policy)
    except PolicyError as error:
        raise PolicyError(f"mb_policy: {error}") from error
    if policy is None:
        return None
    name = given or agent_id
    policies[MEASURED_BOOT, name] = request.mb_policy
    return name


def policy_name(text: str | None, field: str) -> str | None:
    """`text` as the name of a policy, None when it is empty. Raises MalformedMessage, which names `field`."""
    # Dots alone are what clients cut out of a path before they send it.
    if text and (not _POLICY_NAME.fullmatch(text) or text in (".", "..")):
        raise MalformedMessage(f"{field} is not a name: expected 1 to 255 printable characters without /")
    return text or None
