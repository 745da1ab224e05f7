"""The decisions of `add`: who the agent is, whether its identity holds, and what the verifier is told."""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass

from keylime.addresses import means_own_host
from keylime.errors import MalformedEvidence, UnsuitableKey
from keylime.hashes import HashAlgorithm
from keylime.identifiers import AgentId
from keylime.messages.agent import QuoteReply
from keylime.messages.registrar import RegisteredAgent
from keylime.messages.verifier import AddAgentRequest
from keylime.pki.agent_certificate import DISABLED, AgentTls, read_agent_tls
from keylime.tpm.keys import AttestationKey, parse_attestation_key
from keylime.tpm.pcr import DATA_PCR, PcrSelection, data_pcr_value
from keylime.tpm.quote import QuoteRejected, parse_quote, verify_quote
from keylime_tenant.arguments import Arguments
from keylime_tenant.config import Address, AllowedAlgorithms
from keylime_tenant.errors import AgentRejected, CommandFailed
from keylime_tenant.payload import PayloadDelivery
from keylime_tenant.policies import AgentPolicies

# Two names for the same key type; which one an agent sends depends on its API version.
_SAME_ALGORITHM = {"rsa": "rsa2048", "ecc": "ecc256"}

# Host names and IP addresses: nothing that could become another part of a URL.
_NO_HOST = "0.0.0.0"  # noqa: S104 - of an agent that nobody calls; nothing listens there
_HOST = re.compile(r"[A-Za-z0-9:][A-Za-z0-9._:-]{0,254}")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A registered agent that shall be added. The AK in here is the one checked and the one handed on."""

    agent_id: AgentId
    ak: AttestationKey
    ak_tpm: str
    ek_tpm: str
    ek_certificate: str | None
    mtls_certificate: str  # PEM, or "disabled"
    contact: Address  # as we reach the agent
    verifier_contact: Address  # as the verifier reaches it

    @property
    def tls(self) -> AgentTls:
        """How the agent is spoken to. Raises CredentialError for a certificate that is none."""
        return read_agent_tls(self.mtls_certificate)

    @property
    def serves_tls(self) -> bool:
        """Whether the agent registered a certificate."""
        return self.mtls_certificate != DISABLED


def make_candidate(
    agent_id: AgentId,
    record: RegisteredAgent,
    arguments: Arguments,
    *,
    needs_address: bool = True,
    asked_at: Address | None = None,
) -> Candidate:
    """The candidate in a registrar's record, with the addresses of the command line.

    A verifier that has the agent already asks it at `asked_at`, which is better than an address that leads
    back to whoever uses it. Raises CommandFailed when an address or certificate is missing, AgentRejected
    when the AK is not suitable.
    """
    if record.agent_id != agent_id:
        raise AgentRejected(
            f"the registrar was asked for agent {agent_id} and answered about {record.agent_id!r}"
        )
    if not record.mtls_cert:
        raise CommandFailed(f"agent {agent_id} registered without a certificate: its API is older than 2.0")
    host = arguments.agent_ip or record.ip
    port = arguments.agent_port or record.port
    leads_back = not arguments.agent_ip and host is not None and means_own_host(host)
    if leads_back and asked_at is not None and not means_own_host(asked_at.host):
        host, port = asked_at.host, arguments.agent_port or asked_at.port
    if not needs_address:
        host, port = host or _NO_HOST, port or 1
    if not host or not port:
        raise CommandFailed(f"agent {agent_id} registered without an address: give -t and -tp")
    for name in (host, arguments.cv_targethost or host):
        if not _HOST.fullmatch(name) or not 0 < port < 65536:
            raise CommandFailed(f"{name!r} port {port} is no address of an agent: give -t and -tp")
    try:
        ak = parse_attestation_key(base64.b64decode(record.aik_tpm, validate=True))
    except (binascii.Error, ValueError, MalformedEvidence, UnsuitableKey) as error:
        raise AgentRejected(f"the registered AK of agent {agent_id} cannot be used: {error}") from error
    return Candidate(
        agent_id=agent_id,
        ak=ak,
        ak_tpm=record.aik_tpm,
        ek_tpm=record.ek_tpm,
        ek_certificate=record.ekcert,
        mtls_certificate=record.mtls_cert,
        contact=Address(host, port),
        verifier_contact=Address(arguments.cv_targethost or host, port),
    )


def contact_remark(candidate: Candidate) -> str | None:
    """What to tell about an address that leads to whoever uses it, here and at the verifier."""
    if not means_own_host(candidate.verifier_contact.host):
        return None
    return (
        f"agent {candidate.agent_id} is looked for at {candidate.verifier_contact}, where the verifier finds "
        "only agents of its own machine; if it is on another one, name its address with -t, or set [agent] "
        "contact_ip there and restart it"
    )


def check_identity(candidate: Candidate, reply: QuoteReply, nonce: str, accepted: AllowedAlgorithms) -> str:
    """The payload key (PEM) that the agent's TPM vouches for. Raises AgentRejected.

    The quote must be fresh (`nonce`), signed by the registered AK, its data PCR bound to that payload key.
    """
    who = f"agent {candidate.agent_id}"
    if reply.pubkey is None:
        raise AgentRejected(f"{who} sent an identity quote without its payload key")
    try:
        bank = HashAlgorithm.from_label(reply.hash_alg)
        quote = parse_quote(reply.quote)
        # Agents before Keylime 7 always quote PCR 0 as well. Whatever else is quoted is signed, and not used.
        selection = PcrSelection(bank, quote.pcrs.selection.indices | {DATA_PCR})
        verified = verify_quote(quote, candidate.ak, nonce.encode("ascii"), selection)
    except (MalformedEvidence, QuoteRejected, ValueError) as error:
        raise AgentRejected(f"the identity quote of {who} is not valid: {error}") from error
    _demand_accepted("hash", {reply.hash_alg, verified.signature_hash.label}, accepted.hashes, who)
    _demand_accepted("encryption", {reply.enc_alg, candidate.ak.encryption_label}, accepted.encryption, who)
    _demand_accepted("signing", {reply.sign_alg, candidate.ak.scheme.label}, accepted.signing, who)
    if verified.pcrs.values.get(DATA_PCR) != data_pcr_value(bank, reply.pubkey):
        raise AgentRejected(f"PCR {DATA_PCR} of {who} is not bound to the payload key that it sent")
    return reply.pubkey


def _demand_accepted(kind: str, used: set[str], accepted: Sequence[str], who: str) -> None:
    """Both what the agent claims and what the quote shows must be accepted."""
    known = {_SAME_ALGORITHM.get(name, name) for name in accepted}
    for name in sorted(used):
        if _SAME_ALGORITHM.get(name, name) not in known:
            option = {"hash": "hash", "encryption": "encryption", "signing": "signing"}[kind]
            raise AgentRejected(
                f"{who} uses unaccepted {kind} algorithm {name}: "
                f"[tenant] accept_tpm_{option}_algs has {', '.join(accepted)}"
            )


def add_request(
    candidate: Candidate,
    *,
    version: str,
    policies: AgentPolicies,
    delivery: PayloadDelivery,
    accepted: AllowedAlgorithms,
    verifier: Address,
) -> AddAgentRequest:
    """What the verifier is told about a candidate whose identity holds."""
    return AddAgentRequest(
        v=delivery.v_share,
        cloudagent_ip=candidate.verifier_contact.host,
        cloudagent_port=candidate.verifier_contact.port,
        verifier_ip=verifier.host,
        verifier_port=verifier.port,
        tpm_policy=policies.tpm_policy,
        runtime_policy=policies.runtime_policy,
        runtime_policy_name=policies.runtime_policy_name,
        runtime_policies=policies.runtime_policies,
        runtime_policy_key=policies.runtime_policy_key,
        mb_policy=policies.mb_policy,
        mb_policy_name=policies.mb_policy_name,
        ima_sign_verification_keys=policies.ima_keyring,
        metadata=delivery.metadata,
        revocation_key=delivery.revocation_key,
        accept_tpm_hash_algs=list(accepted.hashes),
        accept_tpm_encryption_algs=list(accepted.encryption),
        accept_tpm_signing_algs=list(accepted.signing),
        ak_tpm=candidate.ak_tpm,
        mtls_cert=candidate.mtls_certificate,
        supported_version=version,
    )
