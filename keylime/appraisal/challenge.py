"""What to ask an agent in the next round: follows from the policies and from what is already proven."""

import msgspec

from keylime.appraisal.checkpoint import Checkpoint
from keylime.appraisal.reference import Reference
from keylime.tpm.pcr import DATA_PCR


class Challenge(msgspec.Struct, frozen=True):
    """One integrity challenge. `pcrs` is exactly what must be quoted, the data PCR included.

    The TPM signs the text of `nonce`; agents that attest by themselves are given bytes, the `raw_nonce`.
    """

    nonce: str
    pcrs: frozenset[int]
    ima_entry: int
    wants_public_key: bool
    binds_key: bool = True  # the data PCR must vouch for the agent's public key
    raw_nonce: bytes | None = None

    @property
    def qualifying_data(self) -> bytes:
        """What the TPM is to sign beside the PCRs."""
        return self.nonce.encode() if self.raw_nonce is None else self.raw_nonce

    @property
    def query(self) -> dict[str, str]:
        """The parameters of `GET /quotes/integrity`; agents add the data PCR to the mask by themselves."""
        mask = sum(1 << index for index in self.pcrs if index != DATA_PCR)
        return {
            "nonce": self.nonce,
            "mask": hex(mask),
            "partial": "0" if self.wants_public_key else "1",
            "ima_ml_entry": str(self.ima_entry),
        }


def make_challenge(reference: Reference, checkpoint: Checkpoint, nonce: str, *, renew_key: bool) -> Challenge:
    """The next challenge. `renew_key` asks for the payload key although one is known."""
    return Challenge(
        nonce=nonce,
        pcrs=reference.demanded_pcrs,
        ima_entry=checkpoint.ima.next_entry if reference.demands_ima else 0,
        wants_public_key=renew_key or checkpoint.public_key is None,
    )


def stored_evidence_challenge(reference: Reference, quoted: frozenset[int], nonce: str) -> Challenge:
    """The challenge that evidence at hand must have answered: its quote may cover more PCRs, but not fewer.

    `quoted` are the PCRs that the quote says it covers. No transport key is bound to such evidence.
    """
    demanded = reference.demanded_pcrs - {DATA_PCR}
    return Challenge(nonce, quoted | demanded, ima_entry=0, wants_public_key=False, binds_key=False)
