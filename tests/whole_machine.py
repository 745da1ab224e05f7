"""One machine that measures all kinds of things, policies that speak of them, and the ways to a verdict."""

import base64
import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from keylime.appraisal.memo import AppraisalMemo
from keylime.appraisal.reference import Reference
from keylime.appraisal.verdict import Accepted
from keylime.hashes import HashAlgorithm
from keylime.ima.device_mapper import EVENT_NAMES
from keylime.ima.keyrings import keyring_of
from keylime.ima.measurement_list import parse_line, split_lines
from keylime.ima.runtime_policy import EMPTY_POLICY, parse_runtime_policy
from keylime.measured_boot.boot_policy import (
    MeasuredBootPolicy,
    built_in_policies,
    compile_measured_boot_policy,
)
from keylime.messages.verification import TpmEvidence
from keylime.tpm.keys import SignatureScheme, parse_attestation_key
from keylime.tpm.pcr import PcrValues
from keylime.tpm.quote import parse_quote
from keylime.tpm.tpm_policy import TpmPolicy
from keylime_policy.offline import Approval, Conclusion, StoredEvidence, judge
from keylime_policy.stored_quote import StoredQuote
from keylime_verifier.verification.evidence_check import EvidenceJudgement, EvidenceRules, judge_evidence
from tests.appraisal_rounds import Watch
from tests.captures import IMA_KEYS_DIRECTORY, VM_DEBIAN12, capture
from tests.evidence import SoftwareMachine, reference
from tests.fakes.event_logs import Record, build_log
from tests.fakes.measured_boot import grub_records, pcrs_after, reference_state
from tests.fakes.software_ak import SoftwareAk
from tests.ima_rounds import Kernel, file_digest, line_of

AK = SoftwareAk.generate("ecc256", SignatureScheme.ECDSA)
EK = base64.b64encode((VM_DEBIAN12 / "direct-ima-ng" / "ek_rsa.tpm2b_public").read_bytes()).decode()
SHA256 = HashAlgorithm.SHA256
PIN_OF_23 = b"\x17" * 32
PINNED = (4, 10, 23)
NONCE = "the nonce of one-shot verification"
MEMO = AppraisalMemo()  # it only makes the rounds faster (P5)


def signed_line(name: str) -> bytes:
    lines = split_lines(capture("grub-secureboot").stage("s1-clean").ascii_list)
    return next(line for line in lines if f"/{name} ".encode() in line)


def device_lines() -> list[bytes]:
    lines = split_lines(capture("direct-critical-data-4banks").stage("s4-device-mapper").ascii_list)
    first = {parse_line(line).name: line for line in reversed(lines) if parse_line(line).name in EVENT_NAMES}
    return [first["dm_table_load"], first["dm_device_resume"]]


def buffer_line(name: str, buffer: bytes) -> bytes:
    return line_of("ima-buf", f"sha256:{hashlib.sha256(buffer).hexdigest()} {name} {buffer.hex()}")


def aggregate_line(pcrs: Mapping[int, bytes]) -> bytes:
    digest = SHA256.digest(b"".join(pcrs[index] for index in range(10))).hex()
    return line_of("ima-ng", f"sha256:{digest} boot_aggregate")


KEY = (IMA_KEYS_DIRECTORY / "ima-ec.crt.der").read_bytes()
FIRMWARE = tuple(grub_records())
MEASURED = (
    line_of("ima-ng", f"{file_digest('1')} /usr/bin/a"),
    buffer_line(".ima", KEY),
    signed_line("signed-ec.sh"),  # by the key that the list has just taught
    signed_line("signed-rsa.sh"),  # by a key of the policy
    buffer_line("selinux-state", b"enforcing"),
    *device_lines(),
    line_of("ima-ng", f"{file_digest('2')} /usr/bin/b"),
)
DEVICES = {
    "version": 1,
    "match_on": "name",
    "rules": {
        "lab": {
            "required": True,
            "device_resume_required": True,
            "table_load": {"name": "lablin", "targets": [{"target_name": "linear"}]},
        }
    },
}


def _runtime_document() -> str:
    document = json.loads(EMPTY_POLICY)
    document["meta"]["generator"] = 3
    aggregate = parse_line(aggregate_line(_boot_pcrs(FIRMWARE))).digest.hex()
    document["digests"] = {f"/usr/bin/{name}": [file_digest(content)[7:]] for name, content in ("a1", "b2")}
    document["digests"]["boot_aggregate"] = [aggregate]
    document["keyrings"] = {".ima": [hashlib.sha256(KEY).hexdigest()]}
    document["ima-buf"] = {"selinux-state": [hashlib.sha256(b"enforcing").hexdigest()]}
    document["ima"]["dm_policy"] = DEVICES
    rsa = (IMA_KEYS_DIRECTORY / "ima-rsa.crt.der").read_bytes()
    document["verification-keys"] = keyring_of([rsa]).to_json()
    return json.dumps(document)


@functools.cache
def _boot_pcrs(records: tuple[Record, ...]) -> Mapping[int, bytes]:
    return pcrs_after(records)


AS_IT_IS = "as it is"


@dataclass(frozen=True, slots=True)
class Machine:
    """What a machine really did, and what it shows: `records` and `lines` are in its PCRs."""

    records: tuple[Record, ...] = FIRMWARE
    lines: tuple[bytes, ...] = MEASURED  # after boot_aggregate
    has_aggregate: bool = True
    pcr_23: bytes = PIN_OF_23
    shown_log: bytes | str | None = AS_IT_IS
    shown_list: str | None = AS_IT_IS
    unquoted: frozenset[int] = frozenset()

    def measured(self) -> tuple[bytes, ...]:
        """Its IMA list."""
        first = (aggregate_line(_boot_pcrs(self.records)),) if self.has_aggregate else ()
        return (*first, *self.lines)

    def software(self) -> SoftwareMachine:
        """The machine with its TPM."""
        kernel = Kernel()
        for line in self.measured():
            kernel.add(line)
        pcrs = {**_boot_pcrs(self.records), 10: kernel.pcr, 23: self.pcr_23}
        log = build_log(self.records) if isinstance(self.shown_log, str) else self.shown_log
        return SoftwareMachine(ak=AK, pcrs=pcrs, ima_list=kernel.text(), boot_log=log)

    def lies(self) -> dict[str, Any]:
        """About the list, when it is shown otherwise than it is."""
        if self.shown_list == AS_IT_IS:
            return {}
        return {"ima_measurement_list": self.shown_list, "ima_measurement_list_entry": 0}


HONEST = Machine()


@dataclass(frozen=True, slots=True)
class Policies:
    """The texts that an operator gives; None for what nobody demands."""

    runtime: str | None = None
    refstate: str | None = None
    boot_name: str = "example"
    tpm: str | None = None

    def boot(self) -> MeasuredBootPolicy | None:
        """The compiled reference state."""
        return compile_measured_boot_policy(
            self.refstate, policy_name=self.boot_name, registry=built_in_policies()
        )

    def known(self) -> Reference:
        """What a verifier knows good of the machine."""
        return _known(self)


@functools.cache
def _known(policies: Policies) -> Reference:
    return reference(
        AK.tpm2b_public,
        runtime_policy=parse_runtime_policy(policies.runtime or EMPTY_POLICY),
        measured_boot=policies.boot(),
        tpm_policy=TpmPolicy.from_client(policies.tpm or "{}"),
    )


def _pins() -> str:
    values = HONEST.software().pcrs
    return json.dumps({str(index): [values[index].hex()] for index in PINNED})


KINDS: Mapping[str, dict[str, Any]] = {
    "runtime": {"runtime": _runtime_document()},
    "{}": {"refstate": "{}"},
    "accept-all": {"refstate": '{"a": 1}', "boot_name": "accept-all"},
    "example": {"refstate": json.dumps(reference_state())},
    "tpm": {"tpm": _pins()},
}


def policies_of(kinds: Sequence[str]) -> Policies:
    """Some of `KINDS` together."""
    fields: dict[str, Any] = {}
    for kind in kinds:
        fields |= KINDS[kind]
    return Policies(**fields)


# -- the ways to a verdict


def polled(machine: Machine, policies: Policies) -> bool:
    """Whether a verifier that knows nothing of the machine accepts it, sooner or later."""
    return _accepts(Watch(machine.software(), policies.known(), memo=MEMO), machine)


def polled_after_reboot(machine: Machine, policies: Policies) -> bool:
    """Whether one that has accepted the honest machine accepts this one after a reboot."""
    return _accepts(_rebooted(machine, policies), machine)


def polled_as_if_nothing_were_new(machine: Machine, policies: Policies) -> bool:
    """As before; the machine first says that its list goes on from the boot that is over."""
    watch = _rebooted(machine, policies)
    asked = watch.challenge().ima_entry
    verdict = watch.round(ima_measurement_list="", ima_measurement_list_entry=asked)
    return (isinstance(verdict, Accepted) and bool(asked)) or _accepts(watch, machine)


def _rebooted(machine: Machine, policies: Policies) -> Watch:
    watch = Watch(HONEST.software(), policies.known(), memo=MEMO)
    watch.accept()
    before, watch.machine = watch.machine, machine.software()
    watch.machine.reset_count, watch.machine.clock = before.reset_count + 1, before.clock
    return watch


def _accepts(watch: Watch, machine: Machine) -> bool:
    for _ in range(3):
        if machine.unquoted & watch.challenge().pcrs:
            return False  # the quote is refused for its selection (T1)
        if isinstance(watch.round(**machine.lies()), Accepted):
            return True
    return False


def one_shot(machine: Machine, policies: Policies) -> bool:
    """`POST /verify/evidence`."""
    software = machine.software()
    rules = EvidenceRules(
        functools.partial(
            compile_measured_boot_policy, policy_name=policies.boot_name, registry=built_in_policies()
        )
    )
    evidence = TpmEvidence(
        quote=_quote(software, machine),
        nonce=NONCE,
        hash_alg="sha256",
        tpm_ek=EK,
        tpm_ak=base64.b64encode(AK.tpm2b_public).decode(),
        tpm_policy=policies.tpm,
        runtime_policy=policies.runtime,
        mb_policy=policies.refstate,
        ima_measurement_list=_list_text(software, machine),
        mb_log=None if software.boot_log is None else base64.b64encode(software.boot_log).decode(),
    )
    steps = judge_evidence(evidence, rules)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            judgement: EvidenceJudgement = end.value
            return not judgement.findings


def offline(machine: Machine, policies: Policies) -> bool:
    """`keylime-policy check` with a quote."""
    software = machine.software()
    text = _quote(software, machine)
    shown = _list_text(software, machine)
    evidence = StoredEvidence(
        ima_list=None if shown is None else shown.encode(),
        boot_log=software.boot_log,
        quote=StoredQuote(
            text=text,
            content=parse_quote(text),
            key=parse_attestation_key(AK.tpm2b_public),
            has_attributes=True,
            nonce=NONCE,
        ),
    )
    approval = Approval(
        runtime_policy=None if policies.runtime is None else parse_runtime_policy(policies.runtime),
        measured_boot=policies.boot(),
        tpm_policy=None if policies.tpm is None else TpmPolicy.from_client(policies.tpm),
    )
    return judge(evidence, approval).outcome is Conclusion.ACCEPTED


def _quote(software: SoftwareMachine, machine: Machine) -> str:
    zero = bytes(32)
    quoted = {*range(16), 23} - machine.unquoted
    values = PcrValues(SHA256, {index: software.pcrs.get(index, zero) for index in sorted(quoted)})
    return AK.quote(NONCE.encode(), values, clock=1, reset_count=1, restart_count=0)


def _list_text(software: SoftwareMachine, machine: Machine) -> str | None:
    return software.ima_list.decode() if machine.shown_list == AS_IT_IS else machine.shown_list


Route: TypeAlias = Callable[[Machine, Policies], bool]
ROUTES: Mapping[str, Route] = {
    "first contact": polled,
    "after a reboot": polled_after_reboot,
    "as if nothing were new": polled_as_if_nothing_were_new,
    "one-shot": one_shot,
    "offline": offline,
}
