"""An operator's `POST /agents/{id}` turned into a checked enrolment. Everything is refused here or never."""

import base64
import binascii
import json
import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from keylime.errors import MalformedEvidence, MalformedMessage, PolicyError, UnsuitableKey
from keylime.identifiers import AgentId
from keylime.messages.verifier import AddAgentRequest
from keylime.messages.versions import CURRENT_VERSION, SUPPORTED_VERSIONS
from keylime.policy.runtime import EMPTY_POLICY
from keylime.policy.tpm_policy import TpmPolicy
from keylime_verifier.policy_store import MEASURED_BOOT, RUNTIME
from keylime_verifier.records import Enrolment, Secrets
from keylime_verifier.references import CompileBootPolicy, decode_attestation_key, tenant_keyring
from keylime_verifier.runtime_policies import accept_runtime_policy

_KEY_SIZES = (16, 32)
_MAX_REVOCATION_KEY = 2800
# Names, IPv4 and IPv6 addresses; nothing that would end the authority of a URL.
_HOST = re.compile(r"[0-9A-Za-z._:%\[\]-]{1,255}")
_POLICY_NAME = re.compile(r"[^\x00-\x1f\x7f/]{1,255}")


@dataclass(frozen=True, slots=True)
class EnrolmentRules:
    """What the verifier's configuration says about new agents."""

    verifier_id: str
    verifier_ip: str  # shown when the operator names no other
    verifier_port: int
    require_mtls: bool
    require_policy_signatures: bool
    compile_boot_policy: CompileBootPolicy


@dataclass(frozen=True, slots=True)
class NewAgent:
    """A checked request: what to store. `new_policies` maps (kind, name) to the text that came along."""

    enrolment: Enrolment
    secrets: Secrets
    version: str
    new_policies: dict[tuple[str, str], str]


def check_request(agent_id: AgentId, request: AddAgentRequest, rules: EnrolmentRules) -> NewAgent:
    """The enrolment that `request` asks for. Raises MalformedMessage or PolicyError, which name the field."""
    if rules.require_mtls and request.mtls_cert in (None, "", "disabled"):
        raise MalformedMessage("mTLS certificate for agent is required!")
    _check_certificate(request.mtls_cert)
    _check_attestation_key(request.ak_tpm)
    _check_texts(request)
    policies: dict[tuple[str, str], str] = {}
    enrolment = Enrolment(
        agent_id=agent_id,
        ip=_host(request.cloudagent_ip, "cloudagent_ip"),
        port=_port(request.cloudagent_port, "cloudagent_port"),
        mtls_cert=request.mtls_cert or None,
        ak_tpm=request.ak_tpm,
        verifier_id=rules.verifier_id,
        verifier_ip=_host(request.verifier_ip or rules.verifier_ip, "verifier_ip"),
        verifier_port=_port(request.verifier_port or rules.verifier_port, "verifier_port"),
        has_v=request.v is not None,
        meta_data=request.metadata,
        tpm_policy=request.tpm_policy,
        runtime_policy=_runtime_policy(agent_id, request, rules, policies),
        measured_boot_policy=_boot_policy(agent_id, request, rules, policies),
        ima_sign_verification_keys=request.ima_sign_verification_keys,
        accept_tpm_hash_algs=tuple(request.accept_tpm_hash_algs),
        accept_tpm_encryption_algs=tuple(request.accept_tpm_encryption_algs),
        accept_tpm_signing_algs=tuple(request.accept_tpm_signing_algs),
    )
    secrets = Secrets(_share(request.v), _revocation_key(request.revocation_key))
    return NewAgent(enrolment, secrets, _version(request.supported_version), policies)


def _check_texts(request: AddAgentRequest) -> None:
    TpmPolicy.from_wire(request.tpm_policy)
    try:
        json.loads(request.metadata)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"metadata is not JSON: {error}") from error
    try:
        tenant_keyring(request.ima_sign_verification_keys)
    except PolicyError as error:
        raise PolicyError(f"ima_sign_verification_keys: {error}") from error


def _check_attestation_key(ak_tpm: str) -> None:
    try:
        decode_attestation_key(ak_tpm)
    except (MalformedEvidence, UnsuitableKey) as error:
        raise MalformedMessage(f"ak_tpm cannot be used: {error}") from error


def _check_certificate(pem: str | None) -> None:
    if pem in (None, "", "disabled"):
        return
    try:
        x509.load_pem_x509_certificate((pem or "").encode())
    except (ValueError, x509.InvalidVersion) as error:
        raise MalformedMessage(f"mtls_cert is not a PEM certificate: {error}") from error


def _host(text: str, field: str) -> str:
    if not _HOST.fullmatch(text):
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
    agent_id: AgentId, request: AddAgentRequest, rules: EnrolmentRules, policies: dict[tuple[str, str], str]
) -> str:
    """The name of the agent's runtime policy; a policy that came along is checked and kept for storing."""
    given = policy_name(request.runtime_policy_name, "runtime_policy_name")
    if not request.runtime_policy:
        if given:
            return given
        policies[RUNTIME, agent_id] = EMPTY_POLICY
        return agent_id
    name = given or agent_id
    policies[RUNTIME, name] = accept_runtime_policy(
        request.runtime_policy,
        request.runtime_policy_key,
        signature_required=rules.require_policy_signatures,
    )
    return name


def _boot_policy(
    agent_id: AgentId, request: AddAgentRequest, rules: EnrolmentRules, policies: dict[tuple[str, str], str]
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
