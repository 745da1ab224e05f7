"""Evidence that an agent has collected, beside what it was asked for; and as the answer to appraise. Pure.

Here is decided only whether evidence is there. Whether it is true, the appraisal says.
"""

import base64
from collections.abc import Mapping, Sequence

import msgspec
from msgspec.structs import replace

from keylime.appraisal.challenge import Challenge
from keylime.appraisal.evidence import AgentAnswer
from keylime.appraisal.reference import Reference
from keylime.errors import MalformedEvidence, MalformedMessage
from keylime.ima.list_text import ListText
from keylime.messages.agent import MAX_BOOT_LOG, QuoteReply
from keylime.messages.envelope import parse_body
from keylime.messages.push_document import decode_binary
from keylime.messages.push_evidence import (
    IMA_LOG,
    OS_LOG,
    UEFI_LOG,
    CollectedQuote,
    LogData,
    QuoteClock,
    QuoteData,
    QuoteMeta,
    Received,
    ReceivedLog,
    ReceivedQuote,
    UnreadLog,
    unread_items,
)
from keylime.tpm.pcr import DATA_PCR, PcrValues, parse_pcr_blob
from keylime.tpm.quote import MAX_TEXT, Quote, encode_quote
from keylime.tpm.signature import parse_signature
from keylime.tpm.structures import Attest, parse_attest
from keylime_verifier.pushing.negotiation import EVIDENCE
from keylime_verifier.pushing.problems import Problem, Unacceptable, malformed, problem

_MOST_PART = 4096  # characters of each part of a quote: twice what the largest takes


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """What came. `items` show it without the lines of the IMA list; `size` is that of the logs in bytes."""

    items: tuple[Received, ...]
    quote: str
    parsed_quote: Quote | None  # None of one that the appraisal will refuse
    bank: str
    challenge: bytes
    asked: frozenset[int]
    quoted: frozenset[int]
    boot_log: str | None
    os_log: str | None
    ima_list: ListText | None
    ima_entry: int
    size: int


def read_evidence(attributes: Mapping[str, msgspec.Raw], asked: Sequence[Received]) -> Collected:
    """The evidence in a request, all that was asked for. Raises Unacceptable."""
    items = _items_of(attributes.get("evidence_collected"), asked)
    shown: list[Received] = []
    quote, ima = None, None
    logs: dict[str, str] = {}
    for place, (item, wanted) in enumerate(zip(items, asked, strict=True)):
        path = f"{EVIDENCE}/{place}/data"
        match item, wanted:
            case CollectedQuote(), ReceivedQuote():
                quote = _read_quote(item.data, wanted, path)
                shown.append(replace(wanted, data=quote.data))
            case UnreadLog(), ReceivedLog() if wanted.evidence_type == IMA_LOG:
                ima = _read_ima_list(item, wanted, path)
                shown.append(replace(wanted, data=LogData(entry_count=ima.lines)))
            case UnreadLog(), ReceivedLog():
                log = logs[wanted.evidence_type] = _read_boot_log(item, path)
                shown.append(replace(wanted, data=LogData(entries=log)))
            case _:
                raise Unacceptable(_other_items())
    if quote is None:
        raise Unacceptable(_other_items())
    return Collected(
        items=tuple(shown),
        quote=quote.text,
        parsed_quote=quote.parsed,
        bank=quote.bank,
        challenge=quote.challenge,
        asked=quote.asked,
        quoted=quote.quoted,
        boot_log=logs.get(UEFI_LOG),
        os_log=logs.get(OS_LOG),
        ima_list=None if ima is None else ima.text,
        ima_entry=0 if ima is None else ima.entry,
        size=sum(map(len, logs.values())) + (0 if ima is None else ima.size),
    )


def _items_of(value: msgspec.Raw | None, asked: Sequence[Received]) -> list[CollectedQuote | UnreadLog]:
    if value is None:
        raise Unacceptable(problem(EVIDENCE, "is required"))
    try:
        raw = parse_body(value, list[msgspec.Raw])
    except MalformedMessage as error:
        raise Unacceptable(problem(EVIDENCE, "must be an array")) from error
    if len(raw) != len(asked):
        raise Unacceptable(_other_items())
    items: list[CollectedQuote | UnreadLog] = []
    problems = []
    for place, (item, wanted) in enumerate(zip(raw, asked, strict=True)):
        try:
            (read,) = unread_items([item])
            if read.evidence_type != wanted.evidence_type:
                problems.append(_other_items())
            items.append(read)
        except MalformedMessage as error:
            problems.append(malformed(f"{EVIDENCE}/{place}", error))
    if problems:
        raise Unacceptable(*dict.fromkeys(problems))
    return items


def _other_items() -> Problem:
    return problem(EVIDENCE, "must contain the items that were requested, in their order")


class _Quote(msgspec.Struct, frozen=True):
    text: str
    parsed: Quote | None
    bank: str
    challenge: bytes
    asked: frozenset[int]
    quoted: frozenset[int]
    data: QuoteData


def _read_quote(data: QuoteData, wanted: ReceivedQuote, path: str) -> _Quote:
    parts = {
        name: _binary(getattr(data, name), f"{path}/{name}")
        for name in ("message", "signature", "subject_data")
    }
    parameters = wanted.chosen_parameters
    asked = frozenset(parameters.selected_subjects[parameters.hash_algorithm] or ())
    try:
        values = parse_pcr_blob(parts["subject_data"])
    except MalformedEvidence as error:
        raise Unacceptable(problem(f"{path}/subject_data", f"cannot be used: {error}")) from error
    if not asked <= values.values.keys():
        raise Unacceptable(problem(f"{path}/subject_data", "must contain at least the PCRs requested"))
    try:
        attest = parse_attest(parts["message"])
    except MalformedEvidence as error:
        raise Unacceptable(problem(f"{path}/message", f"cannot be used: {error}")) from error
    text = encode_quote(parts["message"], parts["signature"], parts["subject_data"])
    return _Quote(
        text,
        _parsed(text, attest, values, parts),
        parameters.hash_algorithm,
        base64.b64decode(parameters.challenge),
        asked,
        frozenset(values.values),
        replace(data, meta=_meta(values, attest)),
    )


def _parsed(text: str, attest: Attest, values: PcrValues, parts: Mapping[str, bytes]) -> Quote | None:
    if len(text) > MAX_TEXT:
        return None
    try:
        signature = parse_signature(parts["signature"])
    except MalformedEvidence:
        return None
    return Quote(attest, parts["message"], signature, values)


def _binary(text: str, path: str) -> bytes:
    if not text:
        raise Unacceptable(problem(path, "is required"))
    if len(text) > _MOST_PART:
        raise Unacceptable(problem(path, f"must have at most {_MOST_PART} characters"))
    try:
        return decode_binary(text)
    except MalformedMessage as error:
        raise Unacceptable(problem(path, str(error))) from error


def _meta(values: PcrValues, attest: Attest) -> QuoteMeta:
    clock = attest.clock
    return QuoteMeta(
        {
            values.bank.label: {
                str(index): f"0x{value.hex()}" for index, value in sorted(values.values.items())
            }
        },
        QuoteClock(clock.clock, clock.reset_count, clock.restart_count, int(clock.safe)),
    )


def _text(item: UnreadLog, path: str) -> msgspec.Raw:
    if bytes(memoryview(item.data.entries)[:1]) != b'"':
        raise Unacceptable(problem(f"{path}/entries", "must be a string"))
    return item.data.entries


def _read_boot_log(item: UnreadLog, path: str) -> str:
    raw = _text(item, path)
    if len(memoryview(raw)) > MAX_BOOT_LOG:
        raise Unacceptable(problem(f"{path}/entries", f"must have at most {MAX_BOOT_LOG} characters"))
    text = parse_body(raw, str)
    try:
        return base64.b64encode(decode_binary(text)).decode()
    except MalformedMessage as error:
        raise Unacceptable(problem(f"{path}/entries", str(error))) from error


class _ImaList(msgspec.Struct, frozen=True):
    text: ListText
    entry: int
    lines: int
    size: int


def _read_ima_list(item: UnreadLog, wanted: ReceivedLog, path: str) -> _ImaList:
    raw = _text(item, path)
    text = ListText.of_json(raw)
    try:
        lines = sum(len(some) for some in text.slices())
    except MalformedEvidence as error:
        raise Unacceptable(problem(f"{path}/entries", f"cannot be used: {error}")) from error
    entry, announced = wanted.chosen_parameters.starting_offset, wanted.capabilities.entry_count
    entry = 0 if isinstance(entry, msgspec.UnsetType) else entry
    least = 0 if isinstance(announced, msgspec.UnsetType) else announced - entry
    if lines < least:
        based_on = "the total reported log length and chosen starting offset"
        what = f"must contain at least {least} entries based on {based_on}"
        raise Unacceptable(problem(f"{path}/entries", what))
    return _ImaList(text, entry, lines, len(memoryview(raw)))


def answer_of(collected: Collected, reference: Reference, boottime: int) -> AgentAnswer:
    """The evidence in the form in which agents that are asked give it. What the key is, its AK says."""
    key = reference.attestation_key
    reply = QuoteReply(
        quote=collected.quote,
        hash_alg=collected.bank,
        enc_alg=key.encryption_label,
        sign_alg=key.scheme.label,
        boottime=boottime,
        ima_measurement_list_entry=collected.ima_entry,
        mb_measurement_list=collected.boot_log,
        os_measurement_list=collected.os_log,
    )
    return AgentAnswer(reply, collected.ima_list, collected.parsed_quote)


def challenge_of(collected: Collected) -> Challenge:
    """What the evidence must have answered: the PCRs asked for, and PCR 16, which agents of the field add."""
    return Challenge(
        nonce="",
        pcrs=collected.asked | (collected.quoted & {DATA_PCR}),
        ima_entry=collected.ima_entry,
        wants_public_key=False,
        binds_key=False,
        raw_nonce=collected.challenge,
    )
