"""An agent in a verifier's database that nobody asks anything of."""

from keylime.identifiers import AgentId
from keylime_verifier.agents.records import Enrolment
from keylime_verifier.agents.shards import VerifierId


def plain_enrolment(agent_id: str, verifier_id: str) -> Enrolment:
    """Without policies, certificate and key."""
    return Enrolment(
        agent_id=AgentId(agent_id),
        ip="127.0.0.1",
        port=9002,
        mtls_cert=None,
        ak_tpm="",
        verifier_id=VerifierId(verifier_id),
        verifier_ip=None,
        verifier_port=None,
        has_v=False,
        meta_data="{}",
        tpm_policy="{}",
        runtime_policy="",
        measured_boot_policy=None,
        ima_sign_verification_keys="",
        accept_tpm_hash_algs=(),
        accept_tpm_encryption_algs=(),
        accept_tpm_signing_algs=(),
    )
