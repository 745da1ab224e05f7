"""What accepted evidence proves, as `POST /verify/evidence` claims it. Pure."""

import hashlib

from keylime.appraisal.reference import Reference
from keylime.ima.measurement_list import split_lines
from keylime.messages.verification import TpmEvidence

MAX_REPEATED = 4096  # bytes of a document that is repeated as it came; of a longer one the digest is claimed


def proven_claims(evidence: TpmEvidence, reference: Reference, ima_entries: int) -> TpmEvidence:
    """The fields of accepted `evidence` that hold; what nobody looked at or nothing vouches for is left out.

    The EK never is among them: only the activation of a credential ties an AK to it. A policy is claimed
    when it made a demand, a boot log when a policy demanded it, and of the IMA list the first `ima_entries`
    lines, which PCR 10 covers. The system's log has records that no PCR covers, and is not claimed.
    """
    tpm_policy, boots = reference.tpm_policy, reference.measured_boot is not None
    return TpmEvidence(
        quote=evidence.quote,
        nonce=evidence.nonce,
        hash_alg=evidence.hash_alg,
        tpm_ak=evidence.tpm_ak,
        tpm_policy=_claimed(evidence.tpm_policy, tpm_policy.mask or tpm_policy.values),
        runtime_policy=_claimed(evidence.runtime_policy, reference.runtime_policy.demands_ima),
        mb_policy=_claimed(evidence.mb_policy, boots),
        ima_measurement_list=_claimed(_first_lines(evidence, ima_entries), reference.demands_ima),
        mb_log=_claimed(evidence.mb_log, boots),
    )


def _claimed(document: str | None, is_proven: object) -> str | None:
    """`document`, or "sha256:" and the digest of a long one, which is no text that the field could have."""
    if not document or not is_proven:
        return None
    content = document.encode()
    return document if len(content) <= MAX_REPEATED else f"sha256:{hashlib.sha256(content).hexdigest()}"


def _first_lines(evidence: TpmEvidence, count: int) -> str | None:
    text = evidence.ima_measurement_list
    if text is None:
        return None
    lines = split_lines(text.encode())
    return text if count >= len(lines) else b"".join(line + b"\n" for line in lines[:count]).decode()
