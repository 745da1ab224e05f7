"""Whole rounds of appraisal for tests: a verifier watching a software machine, and quotes made to order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from keylime.appraisal.appraise import appraise
from keylime.appraisal.challenge import Challenge, make_challenge
from keylime.appraisal.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from keylime.appraisal.memo import AppraisalMemo
from keylime.appraisal.reference import Reference
from keylime.appraisal.verdict import Accepted, Incomplete, Rejected, Verdict
from keylime.hashes import HashAlgorithm
from keylime.messages.agent import QuoteReply
from keylime.nonce import new_nonce
from keylime.tpm.pcr import DATA_PCR, PcrValues, data_pcr_value, encode_pcr_blob
from keylime.tpm.quote import encode_quote
from tests.evidence import SoftwareMachine
from tests.fakes.software_ak import SoftwareAk, pcr_selection, quote_attest

QUOTE = "qoute_validation.quote_validation"  # spelled so on the wire
NOT_LISTED = "ima.validation.ima-ng.not_in_allowlist"
WRONG_DIGEST = "ima.validation.ima-ng.runtime_policy_hash"
MISMATCH = "ima.pcr_mismatch"


def events(verdict: Verdict) -> list[str]:
    """The event ids of a rejection."""
    assert isinstance(verdict, Rejected), verdict
    return [finding.event_id for finding in verdict.findings]


def quoted_values(machine: SoftwareMachine, challenge: Challenge) -> PcrValues:
    """What the TPM of `machine` holds in the PCRs that `challenge` asks for."""
    values = {**machine.pcrs, DATA_PCR: data_pcr_value(machine.bank, machine.public_key)}
    zero = bytes(machine.bank.size)
    return PcrValues(machine.bank, {index: values.get(index, zero) for index in sorted(challenge.pcrs)})


def forged_quote(
    machine: SoftwareMachine,
    challenge: Challenge,
    *,
    nonce: bytes | None = None,
    attested: PcrValues | None = None,
    shown: PcrValues | None = None,
    selections: Sequence[bytes] | None = None,
    digest_hash: HashAlgorithm = HashAlgorithm.SHA256,
    ak: SoftwareAk | None = None,
    tails: tuple[bytes, bytes, bytes] = (b"", b"", b""),
    **attest_fields: int,
) -> str:
    """A quote with a right signature whatever it says: honest but for the arguments.

    `attested` are the values that the TPM signed, `shown` those in the blob; `tails` are bytes after the
    attestation (signed with it), the signature and the blob.
    """
    truth = quoted_values(machine, challenge)
    signed = truth if attested is None else attested
    fields: Mapping[str, int] = {
        "clock": machine.clock,
        "reset_count": machine.reset_count,
        "restart_count": machine.restart_count,
        **attest_fields,
    }
    attest = (
        quote_attest(
            nonce=challenge.nonce.encode() if nonce is None else nonce,
            selections=[pcr_selection(signed.bank, signed.selection.indices)]
            if selections is None
            else selections,
            digest=signed.digest(digest_hash),
            **fields,  # type: ignore[arg-type]  # all keywords left over are numbers
        )
        + tails[0]
    )
    blob = encode_pcr_blob(signed if shown is None else shown)
    return encode_quote(attest, (ak or machine.ak).sign(attest) + tails[1], blob + tails[2])


@dataclass(slots=True)
class Watch:
    """A verifier that watches one machine: asks, judges, and keeps the checkpoint as a store would."""

    machine: SoftwareMachine
    known: Reference
    checkpoint: Checkpoint = field(default_factory=Checkpoint.fresh)
    memo: AppraisalMemo = field(default_factory=AppraisalMemo)

    def challenge(self) -> Challenge:
        """The next challenge."""
        return make_challenge(self.known, self.checkpoint, new_nonce(), renew_key=False)

    def judge(self, reply: QuoteReply, challenge: Challenge) -> Verdict:
        """The verdict on `reply`; the checkpoint goes through its JSON form, as in a store."""
        verdict = appraise(reply, challenge, self.known, self.checkpoint, self.memo)
        self.checkpoint = decode_checkpoint(encode_checkpoint(verdict.checkpoint))
        assert self.checkpoint == verdict.checkpoint
        return verdict

    def round(self, **lies: Any) -> Verdict:
        """One round, honest but for `lies` about the fields of the answer."""
        challenge = self.challenge()
        return self.judge(self.machine.answer(challenge, **lies), challenge)

    def forge(self, **quote_fields: Any) -> Verdict:
        """One round whose quote is made by `forged_quote` with these arguments."""
        challenge = self.challenge()
        self.machine.clock += 1_000
        quote = forged_quote(self.machine, challenge, **quote_fields)
        return self.judge(self.machine.answer(challenge, quote=quote), challenge)

    def accept(self) -> Accepted:
        """One honest round that must be accepted."""
        verdict = self.round()
        assert isinstance(verdict, Accepted), verdict
        return verdict

    def incomplete(self, **lies: Any) -> Incomplete:
        """One round that must end without a verdict."""
        verdict = self.round(**lies)
        assert isinstance(verdict, Incomplete), verdict
        return verdict
