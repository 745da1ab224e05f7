"""Fuzz targets for what comes from kernels and firmware: measurement lists, event logs, and whole answers."""

import base64
import json
from collections.abc import Iterator

import msgspec

from keylime.appraisal.appraise import appraise
from keylime.appraisal.checkpoint import Checkpoint, decode_checkpoint, encode_checkpoint
from keylime.appraisal.verdict import Rejected
from keylime.errors import MalformedEvidence, MalformedMessage, UnsuitableKey
from keylime.hashes import HashAlgorithm
from keylime.ima.checkpoint import ImaCheckpoint
from keylime.ima.device_mapper import EVENT_NAMES, parse_event
from keylime.ima.device_mapper_policy import DeviceMapperState, parse_device_mapper_policy
from keylime.ima.keyrings import ImaKey, keyring_of, recognise_key
from keylime.ima.measurement_list import parse_binary_list, parse_line, parse_line_by_fields, split_lines
from keylime.ima.replay import replay
from keylime.ima.signatures import check_signature, parse_file_signature
from keylime.measured_boot.appraisal import appraise_boot_log
from keylime.measured_boot.binding import data_binding
from keylime.measured_boot.document import event_log_document
from keylime.measured_boot.event_log import parse_event_log
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.events import decode_event_data
from keylime.measured_boot.learning import learn_components, to_json
from keylime.measured_boot.os_measurements import OsMeasurements
from keylime.measured_boot.reference_state import create_reference_state
from keylime.measured_boot.replay import parse_boot_log, replay_event_log
from keylime.measured_boot.user_space_log import parse_user_space_log, whole_records
from keylime.messages.agent import QuoteReply
from keylime.messages.envelope import parse_body
from tests.captures import IMA_KEYS_DIRECTORY, capture, captures, stages
from tests.evidence import boot_policy, captured_challenge, captured_reply, policy_of, reference
from tests.fakes.measured_boot import grub_pcrs, policy, reference_state
from tests.fuzz.target import Target, Targets, of_unknown_version, together
from tests.ima_rounds import Verifier, is_spelling, values_of
from tests.os_logs import UNIFIED, firmware_log, held, os_log, os_record, put_together

SHA256 = HashAlgorithm.SHA256
_STAGE = capture("seabios-no-uefi").stage("s1-clean")
_LINES = split_lines(_STAGE.ascii_list)[:12]
_LIST = b"\n".join(_LINES) + b"\n"
_QUOTED = values_of(_LIST, SHA256)[-1]
_IMA_POLICY = policy_of([_LIST])
_BOOT_POLICY = policy(reference_state())
_KEYS = keyring_of([(IMA_KEYS_DIRECTORY / f"ima-{kind}.crt.der").read_bytes() for kind in ("rsa", "ec")])
_SIGNED = next(
    entry
    for stage in stages()
    for entry in map(parse_line, filter(None, split_lines(stage.ascii_list)))
    if entry.signature and entry.name.endswith("signed-rsa.sh")
)
_DM_POLICY = parse_device_mapper_policy({"version": 1, "match_on": "name", "rules": {"any": {}}})
_DM_EVENTS = sorted(EVENT_NAMES)
_EVENT_TYPES = sorted(EventType)
_UNIFIED = parse_boot_log(firmware_log("sdboot-uki"))
_EXPLAIN_ALL = policy({"explained_pcrs": "all"}, "accept-all")
_REPLY = captured_reply(_STAGE, "ecdsa", "sha256")
_KNOWN = reference(
    capture(_STAGE.capture).ak_public("ecdsa"), measured_boot=boot_policy(), runtime_policy=_IMA_POLICY
)


def _line(data: bytes) -> None:
    entry = parse_line(data)
    assert entry == parse_line_by_fields(data), "the quick way and the long one read the same"
    assert parse_line(entry.to_line()) == entry
    assert is_spelling(data, entry)
    replay([entry], SHA256)


def _list(data: bytes) -> None:
    result = Verifier(_IMA_POLICY, ignore_tomtou=True).at_first_contact().appraise(data, _QUOTED, stated=0)
    stored = msgspec.json.decode(msgspec.json.encode(result.checkpoint), type=ImaCheckpoint)
    assert stored == result.checkpoint
    if result.pcr_matched:
        # Nothing else hashes to it: the covered lines are the true ones, in their order.
        covered = [line for line in split_lines(data)[: result.entries] if line]
        assert covered == _LINES or result.findings


def _binary_list(data: bytes) -> None:
    entries = parse_binary_list(data)
    assert b"".join(entry.to_record() for entry in entries) == data
    replay(entries, SHA256)


def _file_signature(data: bytes) -> None:
    signature = parse_file_signature(data)
    found = check_signature(msgspec.structs.replace(_SIGNED, signature=data), [_KEYS])
    # The header is not signed: only the template hash keeps it.
    assert not isinstance(found, ImaKey) or data[9:] == (_SIGNED.signature or b"")[9:]
    if signature is not None:
        assert signature.value == data[9:]


def _key(data: bytes) -> None:
    key = recognise_key(data)
    if key is not None:
        assert key.key_id < 1 << 32
        assert recognise_key(key.spki) is not None


def _device_mapper(data: bytes) -> None:
    kind = _DM_EVENTS[data[0] % len(_DM_EVENTS)] if data else _DM_EVENTS[0]
    event = parse_event(kind, data[1:])
    state, _ = _DM_POLICY.evaluate(DeviceMapperState(), event, "sha256:" + "00" * 32)
    assert msgspec.json.decode(msgspec.json.encode(state), type=DeviceMapperState) == state


def _event_log(data: bytes) -> None:
    log = parse_event_log(data)
    for event in log.events:
        data_binding(event)
    for bank, pcrs in replay_event_log(log).items():
        assert len(pcrs) == 24
        appraise_boot_log(data, bank=bank, quoted=pcrs, policy=_BOOT_POLICY, evaluate_content=True)
    json.dumps(event_log_document(log))
    create_reference_state(log)
    learned = json.dumps(to_json(learn_components(log)))
    boot_policy(learned, "components")


def _boot_appraisal(data: bytes) -> None:
    result = appraise_boot_log(
        data, bank=SHA256, quoted=grub_pcrs(), policy=_BOOT_POLICY, evaluate_content=True
    )
    for finding in result.findings:
        assert finding.context_json
        assert finding.explanation.isprintable()


def _os_log(data: bytes) -> None:
    log = parse_user_space_log(data)
    assert parse_user_space_log(whole_records(data)).records == log.records
    result = appraise_boot_log(
        _UNIFIED,
        bank=SHA256,
        quoted=held("sdboot-uki"),
        policy=_EXPLAIN_ALL,
        evaluate_content=True,
        measurements=OsMeasurements(log),
    )
    true = parse_user_space_log(os_log("sdboot-uki") or b"")
    for finding in result.findings:
        assert finding.context_json
        assert finding.explanation.isprintable()
    if not result.findings:
        for index in (*range(10), *range(11, 16)):  # nothing else hashes to it
            extended = [record.digests for record in true.of_pcr(index, SHA256)]
            shown = [record.digests for record in log.of_pcr(index, SHA256)]
            assert [one[SHA256] for one in shown[: len(extended)]] == [one[SHA256] for one in extended]


def _event_data(data: bytes) -> None:
    kind = _EVENT_TYPES[data[0] % len(_EVENT_TYPES)] if data else EventType.NO_ACTION
    decode_event_data(kind, data[1:])


def _reply(data: bytes) -> None:
    reply = parse_body(data, QuoteReply)
    verdict = appraise(reply, captured_challenge(_STAGE, _KNOWN), _KNOWN, Checkpoint.fresh())
    assert decode_checkpoint(encode_checkpoint(verdict.checkpoint)) == verdict.checkpoint
    if isinstance(verdict, Rejected):
        assert verdict.findings
        assert all(finding.context_json and finding.explanation for finding in verdict.findings)


def _line_seeds() -> Iterator[bytes]:
    seen = set()
    for stage in stages():
        for line in filter(None, split_lines(stage.ascii_list)):
            entry = parse_line(line)
            kind = (entry.template, entry.digest_algorithm, bool(entry.signature), entry.is_violation)
            if kind not in seen:
                seen.add(kind)
                yield line


def _binary_seeds() -> Iterator[bytes]:
    for stage in stages():
        entries = parse_binary_list(stage.binary_list)
        yield b"".join(entry.to_record() for entry in entries[:3])
        yield b"".join(entry.to_record() for entry in entries[-2:])


def _signature_seeds() -> Iterator[bytes]:
    for stage in stages():
        for line in filter(None, split_lines(stage.ascii_list)):
            entry = parse_line(line)
            if entry.signature:
                yield entry.signature


def _key_seeds() -> Iterator[bytes]:
    for path in sorted(IMA_KEYS_DIRECTORY.iterdir()):
        yield path.read_bytes()
        yield of_unknown_version(path.read_bytes())


def _device_mapper_seeds() -> Iterator[bytes]:
    for stage in stages():
        for line in filter(None, split_lines(stage.ascii_list)):
            entry = parse_line(line)
            if entry.buffer and entry.name in _DM_EVENTS:
                yield bytes([_DM_EVENTS.index(entry.name)]) + entry.buffer


def _event_data_seeds() -> Iterator[bytes]:
    for one in captures():
        if one.boot_log:
            for event in parse_event_log(one.boot_log).events:
                if event.type_code in _EVENT_TYPES and len(event.data) < 2000:
                    yield bytes([_EVENT_TYPES.index(EventType(event.type_code))]) + event.data


def _boot_logs() -> Iterator[bytes]:
    for one in captures():
        log = one.boot_log
        if log:
            yield log
            yield log[:2000]


def _reply_seeds() -> Iterator[bytes]:
    short = {"ima_measurement_list": _LIST.decode(), "mb_measurement_list": None}
    yield msgspec.json.encode(msgspec.structs.replace(_REPLY, **short))
    yield msgspec.json.encode(msgspec.structs.replace(_REPLY, ima_measurement_list=None, pubkey="key"))
    log = base64.b64encode(capture("seabios-no-uefi").boot_log[:600]).decode()
    yield msgspec.json.encode(
        msgspec.structs.replace(_REPLY, ima_measurement_list="", mb_measurement_list=log)
    )


def _os_logs() -> Iterator[bytes]:
    for boot in UNIFIED:
        yield os_log(boot) or b""
    log = os_log("sdboot-uki") or b""
    yield log[:700]
    yield put_together([os_record(11, "a\\\\303", "phase"), os_record(15, "x", "volume-key")])


TARGETS: Targets = {
    "ima-line": Target(_line, (MalformedEvidence,), _line_seeds),
    "ima-list": Target(_list, (), lambda: (_LIST, _LIST[:-1], b"\n".join(_LINES[:3]))),
    "ima-binary-list": Target(_binary_list, (MalformedEvidence,), _binary_seeds),
    "file-signature": Target(_file_signature, (), _signature_seeds),
    "ima-key": Target(_key, (UnsuitableKey,), _key_seeds),
    "device-mapper": Target(_device_mapper, (MalformedEvidence,), _device_mapper_seeds),
    "event-log": together(
        Target(_event_log, (MalformedEvidence,), _boot_logs), Target(_boot_appraisal, (), _boot_logs)
    ),
    "os-log": Target(_os_log, (MalformedEvidence,), _os_logs),
    "event-data": Target(_event_data, (), _event_data_seeds),
    "quote-reply": Target(_reply, (MalformedMessage,), _reply_seeds),
}
