"""Whole rounds with a machine whose operating system measures: what stays from one to the next."""

import base64
import struct
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from keylime.appraisal.appraise import appraise
from keylime.appraisal.challenge import stored_evidence_challenge
from keylime.appraisal.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from keylime.appraisal.verdict import Accepted, Rejected
from keylime.errors import MalformedMessage
from keylime.ima.runtime_policy import RuntimePolicy
from keylime.measured_boot.boot_policy import MeasuredBootPolicy
from keylime.messages.agent import MAX_OS_LOG, QuoteReply, parse_quote_reply
from keylime.tpm.keys import SignatureScheme
from keylime.tpm.pcr import extend
from keylime.tpm.quote import encode_quote
from keylime.tpm.tpm_policy import TpmPolicy
from tests.appraisal_rounds import Watch, events
from tests.evidence import SoftwareMachine, boot_policy, policy_of, reference
from tests.fakes.software_ak import SoftwareAk
from tests.ima_rounds import Kernel, line_of
from tests.os_logs import (
    SHA256,
    SYSTEMD_262,
    Record,
    firmware_log,
    held,
    os_log,
    os_record,
    put_together,
    take_apart,
)

AK = SoftwareAk.generate("ecc256", SignatureScheme.ECDSA)
BOOT = "sdboot-uki"
LOG = os_log(BOOT) or b""
AGGREGATE = "9bb4406b2ab55671fe3a97c0dbe25334eafc5718967209525fd60c840c3acf5a"
QUOTED_AGGREGATE = SHA256.digest(b"".join(held(BOOT)[index] for index in range(10))).hex()
WRONG_DIGEST = "ima.validation.ima-ng.runtime_policy_hash"
NOT_LISTED = "ima.validation.ima-ng.not_in_allowlist"
EVERYTHING_QUOTED = TpmPolicy.from_wire('{"mask": "0xffff"}')


def watch(
    log: bytes | None = LOG,
    *,
    judged_by: MeasuredBootPolicy | None = None,
    pcrs: Mapping[int, bytes] | None = None,
    has_policy: bool = True,
    **known: Any,
) -> Watch:
    policy = (judged_by or boot_policy()) if has_policy else None
    machine = SoftwareMachine(ak=AK, pcrs=dict(pcrs or held(BOOT)), boot_log=firmware_log(BOOT), os_log=log)
    return Watch(machine, reference(AK.tpm2b_public, measured_boot=policy, **known))


def live(machine: SoftwareMachine, record: Record, *, is_logged: bool = True) -> None:
    """The machine's system extends a PCR, and writes that down."""
    digest = next(one["digest"] for one in record["digests"] if one["hashAlg"] == "sha256")
    machine.pcrs[record["pcr"]] = extend(SHA256, machine.pcrs[record["pcr"]], bytes.fromhex(digest))
    if is_logged:
        machine.os_log = (machine.os_log or b"") + put_together([record])


@pytest.mark.parametrize("explained", ["automatic", "all"])
def test_the_captured_quote_is_accepted_with_its_logs(explained: str) -> None:
    attest, signature, pcrs = (
        (SYSTEMD_262 / f"{BOOT}.quote.{name}").read_bytes() for name in ("msg", "sig", "pcrs")
    )
    reply = QuoteReply(
        quote=encode_quote(attest, _tpmt(signature), pcrs),
        hash_alg="sha256",
        enc_alg="ecc256",
        sign_alg="ecdsa",
        mb_measurement_list=base64.b64encode(firmware_log(BOOT)).decode(),
        os_measurement_list=base64.b64encode(LOG).decode(),
    )
    policy = boot_policy(f'{{"explained_pcrs": "{explained}"}}')
    known = reference(_tpm2b(f"{BOOT}.ak.pub"), measured_boot=policy)
    nonce = bytes.fromhex("0011223344556677")
    challenge = stored_evidence_challenge(known, frozenset(range(16)), nonce.decode("latin-1"))
    verdict = appraise(reply, challenge, known, Checkpoint.fresh())
    assert isinstance(verdict, Accepted), verdict
    without = msgspec.structs.replace(reply, os_measurement_list=None)
    verdict = appraise(without, challenge, known, Checkpoint.fresh())
    assert isinstance(verdict, Accepted if explained == "automatic" else Rejected)
    if isinstance(verdict, Rejected):
        assert all("Systemd does that" in finding.explanation for finding in verdict.findings)


def test_the_first_steps_of_the_readme_end_well_and_go_on_well() -> None:
    watched = watch()
    for _ in range(3):
        assert watched.accept().notes == ()
    assert watched.checkpoint.os_log_sent
    assert [value.name for value in watched.checkpoint.machine_values] == ["machine id", "file system at /"]


def test_what_is_measured_during_life_is_explained_as_it_comes() -> None:
    watched = watch()
    watched.accept()
    live(watched.machine, os_record(15, "cryptsetup:data:1", "volume-key", extended=b"key"))
    watched.accept()
    live(watched.machine, os_record(11, "shutdown", "phase"))
    watched.accept()
    assert len(watched.checkpoint.machine_values) == 3
    live(watched.machine, os_record(15, "a service", ""), is_logged=False)
    assert events(watched.round()) == ["measured_boot.invalid_pcr_15"]


def test_an_old_agent_is_good_and_an_update_of_it_changes_nothing() -> None:
    watched = watch(None)
    assert len(watched.accept().notes) == 3
    assert watched.accept().notes == ()  # said once
    watched.machine.os_log = LOG
    watched.accept()
    watched.machine.os_log = None
    assert events(watched.round()) == [f"measured_boot.invalid_pcr_{index}" for index in (9, 11, 15)]


def _tpmt(der: bytes) -> bytes:
    """TPMT_SIGNATURE of an ECDSA signature that tpm2-tools wrote plainly."""
    numbers = [number.to_bytes(32, "big") for number in decode_dss_signature(der)]
    return struct.pack(">HH", 0x0018, SHA256) + b"".join(struct.pack(">H", 32) + one for one in numbers)


def _tpm2b(name: str) -> bytes:
    public = (SYSTEMD_262 / name).read_bytes()
    return len(public).to_bytes(2, "big") + public


def test_a_boot_without_measuring_after_one_with_it_needs_no_log() -> None:
    watched = watch()
    watched.accept()
    machine = watched.machine
    machine.pcrs, machine.boot_log = dict(held("sdboot-type1")), firmware_log("sdboot-type1")
    machine.os_log = None
    machine.reset_count += 1
    watched.accept()


def test_another_machine_behind_the_same_key_is_told_apart() -> None:
    watched = watch()
    watched.accept()
    machine = watched.machine
    machine.reset_count += 1
    swapped = [
        os_record(15, "machine-id:" + "0" * 32, "machine-id") if one.get("pcr") == 15 else one
        for one in take_apart(LOG)
        if one["content"]["eventType"] != "filesystem"
    ]
    machine.os_log = put_together(swapped)
    machine.pcrs[15] = extend(SHA256, bytes(32), SHA256.digest(b"machine-id:" + b"0" * 32))
    assert events(watched.round()) == ["measured_boot.os.changed_value"]
    assert watched.checkpoint.machine_values[0].value.startswith("1111")


def test_a_checkpoint_of_the_release_before_goes_on() -> None:
    watched = watch()
    watched.accept()
    stored = msgspec.json.decode(encode_checkpoint(watched.checkpoint))
    del stored["os_log_sent"], stored["machine_values"]
    watched.checkpoint = decode_checkpoint(msgspec.json.encode(stored).decode())
    assert watched.checkpoint.boot is not None
    watched.accept()
    assert watched.checkpoint.machine_values


def test_a_verifier_of_before_reads_the_new_checkpoint() -> None:
    """Unknown members are passed over, so that a rolling update can go back."""
    stored = msgspec.json.decode(encode_checkpoint(watch().accept().checkpoint))
    stored["from_the_future"] = [1]
    assert decode_checkpoint(msgspec.json.encode(stored).decode()).boot is not None


@pytest.mark.parametrize("log", [None, b"", LOG, b"garbage", LOG[:-9]])
def test_without_a_policy_for_the_boot_nobody_looks_at_its_logs(log: bytes | None) -> None:
    watched = watch(log, has_policy=False)
    watched.accept()
    assert not watched.checkpoint.os_log_sent


def test_a_log_that_is_no_base64_is_named() -> None:
    assert events(watch().round(os_measurement_list="***")) == ["measured_boot.parser.log.base64decode"]


def test_a_log_that_cannot_be_read_is_a_finding() -> None:
    found = events(watch(b"no log").round())
    assert found[-1] == "measured_boot.parser.os_log.error"


@pytest.mark.parametrize(("size", "is_read"), [(MAX_OS_LOG - 2, True), (MAX_OS_LOG, False)])
def test_a_log_is_bounded_before_it_is_decoded(size: int, is_read: bool) -> None:
    body = b'{"quote":"","hash_alg":"","enc_alg":"","sign_alg":"","os_measurement_list":"%s"}' % (b"x" * size)
    if is_read:
        assert parse_quote_reply(msgspec.Raw(body))[0].os_measurement_list == "x" * size
    else:
        with pytest.raises(MalformedMessage, match="os_measurement_list"):
            parse_quote_reply(msgspec.Raw(body))


# -- boot_aggregate


def with_list(aggregate: str, log: bytes | None = LOG, **known: Any) -> list[str]:
    """Findings about a machine whose IMA list begins with this boot_aggregate."""
    kernel = Kernel()
    kernel.add(line_of("ima-ng", f"sha256:{aggregate} boot_aggregate"))
    kernel.run("/bin/true", "true")
    lines = kernel.text()
    policy: RuntimePolicy = policy_of([lines.split(b"\n", 1)[1]], excludes=["^boot_aggregate$"])
    watched = watch(log, pcrs={**held(BOOT), 10: kernel.pcr}, runtime_policy=policy, **known)
    watched.machine.ima_list = lines
    verdict = watched.round()
    return [] if isinstance(verdict, Accepted) else events(verdict)


def test_boot_aggregate_is_what_the_firmware_led_to_and_not_what_the_pcrs_hold_by_now() -> None:
    assert QUOTED_AGGREGATE.startswith("088d2edd")
    assert with_list(AGGREGATE) == []
    assert with_list(QUOTED_AGGREGATE) == [WRONG_DIGEST]
    assert with_list("ab" * 32) == [WRONG_DIGEST]


def test_boot_aggregate_is_judged_by_logs_that_no_policy_demands() -> None:
    quoted: dict[str, Any] = {"has_policy": False, "tpm_policy": EVERYTHING_QUOTED}
    assert with_list(AGGREGATE, **quoted) == []
    assert with_list(QUOTED_AGGREGATE, **quoted) == [WRONG_DIGEST]


def test_where_no_log_explains_the_quote_no_healthy_boot_aggregate_is_wrong() -> None:
    """An operating system may have extended the PCRs since; then an exclude may accept the value."""
    quoted: dict[str, Any] = {"has_policy": False, "tpm_policy": EVERYTHING_QUOTED}
    assert with_list(AGGREGATE, None, **quoted) == []
    assert with_list(QUOTED_AGGREGATE, None, **quoted) == []


def test_after_a_kexec_the_kernel_sees_what_the_pcrs_hold_by_then() -> None:
    kernel = Kernel()
    kernel.add(line_of("ima-ng", f"sha256:{AGGREGATE} boot_aggregate"))
    kernel.add(line_of("ima-buf", f"sha256:{SHA256.digest(b'ro').hex()} kexec-cmdline {b'ro'.hex()}"))
    kernel.add(line_of("ima-ng", f"sha256:{QUOTED_AGGREGATE} boot_aggregate"))
    policy = policy_of([kernel.text().split(b"\n")[1] + b"\n"])
    watched = watch(pcrs={**held(BOOT), 10: kernel.pcr}, runtime_policy=policy)
    watched.machine.ima_list = kernel.text()
    watched.accept()
