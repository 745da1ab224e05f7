"""Evidence for whole appraisals: captured as it is, or signed by a software AK where a test must choose."""

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from keylime.appraisal.challenge import Challenge, stored_evidence_challenge
from keylime.appraisal.reference import AcceptedAlgorithms, Reference
from keylime.hashes import HashAlgorithm
from keylime.ima.measurement_list import parse_line, split_lines
from keylime.ima.runtime_policy import EMPTY_POLICY, RuntimePolicy, parse_runtime_policy
from keylime.measured_boot.boot_policy import (
    MeasuredBootPolicy,
    built_in_policies,
    compile_measured_boot_policy,
)
from keylime.messages.agent import QuoteReply
from keylime.tpm.keys import SignatureScheme, parse_attestation_key
from keylime.tpm.pcr import DATA_PCR, PcrValues, data_pcr_value
from keylime.tpm.tpm_policy import TpmPolicy
from tests.captures import Stage, capture
from tests.fakes.software_ak import SoftwareAk

EVERYTHING = AcceptedAlgorithms(
    hashes=frozenset({"sha1", "sha256", "sha384", "sha512"}),
    encryption=frozenset({"rsa2048", "ecc256"}),
    signing=frozenset({"rsassa", "rsapss", "ecdsa"}),
)
PUBLIC_KEY = (
    "-----BEGIN PUBLIC KEY-----\nnot looked at by the appraisal, only hashed\n-----END PUBLIC KEY-----\n"
)


def policy_of(lists: Iterable[bytes], *, excludes: Iterable[str] = ()) -> RuntimePolicy:
    """A runtime policy that allows exactly what stands in some IMA lists, violations left out."""
    digests: dict[str, set[str]] = {}
    buffers: dict[str, set[str]] = {}
    for entry in (parse_line(line) for text in lists for line in split_lines(text) if line):
        if not entry.is_violation:
            where = digests if entry.buffer is None else buffers
            where.setdefault(entry.name, set()).add(entry.digest.hex())
    document = json.loads(EMPTY_POLICY)
    document["meta"]["generator"] = 3
    document["digests"] = {name: sorted(values) for name, values in digests.items()}
    document["ima-buf"] = {name: sorted(values) for name, values in buffers.items()}
    document["excludes"] = list(excludes)
    return parse_runtime_policy(json.dumps(document))


def boot_policy(refstate: str = "{}", name: str = "accept-all") -> MeasuredBootPolicy | None:
    """A compiled reference state."""
    return compile_measured_boot_policy(refstate, policy_name=name, registry=built_in_policies())


def reference(ak_public: bytes, **changes: object) -> Reference:
    """What is known good of a machine with this AK; everything but `changes` is permissive."""
    plain = Reference(
        attestation_key=parse_attestation_key(ak_public),
        accepted=EVERYTHING,
        tpm_policy=TpmPolicy.from_wire("{}"),
        runtime_policy=parse_runtime_policy(EMPTY_POLICY),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def captured_reply(stage: Stage, ak: str, bank: str) -> QuoteReply:
    """A stage's evidence as an agent would have sent it; its quotes cover PCR 0-15."""
    quote = stage.quote(ak, bank)
    return QuoteReply(
        quote=quote.text,
        hash_alg=bank,
        enc_alg="ecc256" if ak == "ecdsa" else "rsa2048",
        sign_alg=ak,
        ima_measurement_list=stage.ascii_list.decode(),
        mb_measurement_list=base64.b64encode(capture(stage.capture).boot_log).decode(),
    )


def captured_challenge(stage: Stage, known: Reference) -> Challenge:
    """The challenge that the stage's quotes answer."""
    return stored_evidence_challenge(known, frozenset(range(16)), stage.nonce)


@dataclass(slots=True)
class SoftwareMachine:
    """A machine whose quotes a software AK signs: PCRs and logs are what a test says they are."""

    ak: SoftwareAk = field(default_factory=lambda: SoftwareAk.generate("ecc256", SignatureScheme.ECDSA))
    bank: HashAlgorithm = HashAlgorithm.SHA256
    pcrs: dict[int, bytes] = field(default_factory=dict)
    ima_list: bytes = b""
    boot_log: bytes | None = None
    os_log: bytes | None = None
    public_key: str = PUBLIC_KEY
    clock: int = 1_000
    reset_count: int = 1
    restart_count: int = 0
    boottime: int = 0

    @classmethod
    def of_stage(cls, stage: Stage, bank: str = "sha256") -> "SoftwareMachine":
        """The captured machine as it was in `stage`."""
        algorithm = HashAlgorithm.from_label(bank)
        log = capture(stage.capture).boot_log
        return cls(bank=algorithm, pcrs=dict(stage.pcrs(bank)), ima_list=stage.ascii_list, boot_log=log)

    def answer(self, challenge: Challenge, **lies: object) -> QuoteReply:
        """An honest answer, but for `lies` about its fields."""
        self.clock += 1_000
        values = {**self.pcrs, DATA_PCR: data_pcr_value(self.bank, self.public_key)}
        zero = bytes(self.bank.size)
        quoted = PcrValues(self.bank, {index: values.get(index, zero) for index in sorted(challenge.pcrs)})
        lines = split_lines(self.ima_list)
        entry = challenge.ima_entry if challenge.ima_entry <= len(lines) else 0
        honest = QuoteReply(
            quote=self.ak.quote(
                challenge.nonce.encode(),
                quoted,
                clock=self.clock,
                reset_count=self.reset_count,
                restart_count=self.restart_count,
            ),
            hash_alg=self.bank.label,
            enc_alg="ecc256",
            sign_alg="ecdsa",
            pubkey=self.public_key if challenge.wants_public_key else None,
            boottime=self.boottime,
            ima_measurement_list=b"".join(line + b"\n" for line in lines[entry:]).decode(),
            ima_measurement_list_entry=entry,
            mb_measurement_list=None if self.boot_log is None else base64.b64encode(self.boot_log).decode(),
            os_measurement_list=None if self.os_log is None else base64.b64encode(self.os_log).decode(),
        )
        fields: Mapping[str, object] = {name: getattr(honest, name) for name in honest.__struct_fields__}
        return QuoteReply(**{**fields, **lies})  # type: ignore[arg-type]
