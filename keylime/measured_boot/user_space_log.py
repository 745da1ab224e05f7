"""Reads the operating system's own log of what it measured: `/run/log/systemd/tpm2-measure.log`.

systemd appends a record for each extend that it makes (docs/reference/policies-and-logs.md, section 9.5): a
JSON text sequence (RFC 7464) of objects in the manner of the TCG's canonical event log. Only digests are
vouched for, by the PCR; whether the log is *true* is decided by its replay (`os_measurements`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from keylime.documents.strict_json import load_document
from keylime.errors import MalformedEvidence, PolicyError
from keylime.hashes import HashAlgorithm
from keylime.tpm.pcr import PCR_COUNT

# A boot makes some 25 records in ten kilobytes.
MAX_LOG_SIZE = 1 << 20
MAX_RECORDS = 8192

_BEGIN = b"\x1e"
_END = b"\n"
_MAX_WORD = 1024  # bytes of a measured word that are logged; of a longer one "..." tells
_MAX_TEXT = 4 * _MAX_WORD + 3  # each byte may be escaped
_MAX_BANKS = 16
_MAX_FIELD = 255
_CUT = "..."
_BOOT_ID = re.compile(r"[0-9a-f]{32}")
_HEX = re.compile(r"(?:[0-9a-f]{2})+")
_PIECE = re.compile(r'([^\\]+)|\\(?:([abfnrtv\\"\'])|([0-3][0-7]{2})|x([0-9a-fA-F]{2}))')
_SIMPLE = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, '"': 34, "'": 39}
_ALGORITHMS = {algorithm.label: algorithm for algorithm in HashAlgorithm}


@dataclass(frozen=True, slots=True)
class UserSpaceRecord:
    """One extend, of a PCR or of an NV index (then `pcr` is None).

    `digests` are those of known algorithms. `event_type`, `text` and `boot_id` are what the log says, empty
    where it says nothing; `text` is as it is logged, `word` what was measured if the text tells all of it:
    None when it was cut, or is no escaped text.
    """

    number: int
    pcr: int | None
    digests: Mapping[HashAlgorithm, bytes]
    event_type: str = ""
    text: str = ""
    boot_id: str = ""
    word: bytes | None = b""


@dataclass(frozen=True, slots=True)
class UserSpaceLog:
    """All whole records in order; `is_cut` when the last one is not whole, because it was being written."""

    records: tuple[UserSpaceRecord, ...]
    is_cut: bool = False

    def of_pcr(self, index: int, bank: HashAlgorithm) -> tuple[UserSpaceRecord, ...]:
        """What was extended into one PCR of one bank. A bank that a record does not name was not extended."""
        return tuple(record for record in self.records if record.pcr == index and bank in record.digests)


@dataclass(frozen=True, slots=True)
class UnreadableUserSpaceLog:
    """Bytes that are no such log, and why not."""

    reason: str


def read_user_space_log(data: bytes) -> UserSpaceLog | UnreadableUserSpaceLog:
    """The log in `data`, or the reason why it cannot be read. Raises nothing."""
    try:
        return parse_user_space_log(data)
    except MalformedEvidence as error:
        return UnreadableUserSpaceLog(str(error))


def parse_user_space_log(data: bytes) -> UserSpaceLog:
    """The log in `data`. Raises MalformedEvidence, which names the record."""
    if len(data) > MAX_LOG_SIZE:
        raise MalformedEvidence(f"log of {len(data)} bytes, at most {MAX_LOG_SIZE} are read")
    before, *pieces = data.split(_BEGIN, MAX_RECORDS + 1)
    if before:
        raise MalformedEvidence("the log does not begin with a record separator (byte 1e)")
    if len(pieces) > MAX_RECORDS:
        raise MalformedEvidence(f"the log has more than {MAX_RECORDS} records")
    is_cut = bool(pieces) and not pieces[-1].endswith(_END)
    whole = pieces[:-1] if is_cut else pieces
    return UserSpaceLog(tuple(_record(number, piece) for number, piece in enumerate(whole)), is_cut)


def whole_records(data: bytes, limit: int = MAX_LOG_SIZE) -> bytes:
    """The part of `data` that ends with the last whole record within `limit` bytes."""
    end = data.rfind(_END + _BEGIN, 0, limit + 1) + 1
    return data[:limit] if len(data) <= limit and data.endswith(_END) else data[:end]


def measured_word(text: str) -> bytes | None:
    """The bytes of which `text` is the C-escaped form; None for one that is cut, or is none."""
    word = bytearray()
    at = 0
    while at < len(text):
        found = _PIECE.match(text, at)  # as much as has no escape: the text is an agent's, and may be long
        if found is None:
            return None
        plain, simple, octal, hexadecimal = found.groups()
        if plain is not None:
            word += plain.encode()
        else:
            word.append(_SIMPLE[simple] if simple else int(octal, 8) if octal else int(hexadecimal, 16))
        at = found.end()
    return None if len(word) >= _MAX_WORD and text.endswith(_CUT) else bytes(word)


def _record(number: int, piece: bytes) -> UserSpaceRecord:
    where = f"record {number}"
    if not piece.endswith(_END) or _END in piece[:-1] or b"\0" in piece:
        raise MalformedEvidence(f"{where} is not one line of text")
    try:
        document = load_document(piece, where)
    except PolicyError as error:
        raise MalformedEvidence(str(error)) from error
    if not isinstance(document, dict):
        raise MalformedEvidence(f"{where} is not a JSON object")
    if ("pcr" in document) == ("nv_index" in document):
        raise MalformedEvidence(f"{where}: expected either pcr or nv_index")
    pcr = _number(document, "pcr", PCR_COUNT - 1, where) if "pcr" in document else None
    if pcr is None:
        _number(document, "nv_index", (1 << 32) - 1, where)
    content = document.get("content", {})
    # Others may write contents of their own kind, in which nothing is known to us.
    ours = content if _text(document, "content_type", _MAX_FIELD, where) == "systemd" else {}
    if not isinstance(ours, dict):
        raise MalformedEvidence(f"{where}: content is not a JSON object")
    boot_id = _text(ours, "bootId", _MAX_FIELD, where)
    if boot_id and not _BOOT_ID.fullmatch(boot_id):
        raise MalformedEvidence(f"{where}: bootId is not 32 hex digits")
    text = _text(ours, "string", _MAX_TEXT, where)
    return UserSpaceRecord(
        number=number,
        pcr=pcr,
        digests=_digests(document.get("digests"), where),
        event_type=_text(ours, "eventType", _MAX_FIELD, where),
        text=text,
        boot_id=boot_id,
        word=measured_word(text),
    )


def _digests(found: object, where: str) -> Mapping[HashAlgorithm, bytes]:
    if not isinstance(found, list) or not 1 <= len(found) <= _MAX_BANKS:
        raise MalformedEvidence(f"{where}: expected 1 to {_MAX_BANKS} digests")
    named: set[str] = set()
    digests: dict[HashAlgorithm, bytes] = {}
    for item in found:
        if not isinstance(item, dict):
            raise MalformedEvidence(f"{where}: a digest is not a JSON object")
        name = _text(item, "hashAlg", _MAX_FIELD, where)
        digest = _text(item, "digest", _MAX_FIELD, where)
        if not name or name in named:
            raise MalformedEvidence(f"{where}: the algorithm of a digest is missing or repeated")
        named.add(name)
        if not _HEX.fullmatch(digest):
            raise MalformedEvidence(f"{where}: a digest is not lower-case hex")
        algorithm = _ALGORITHMS.get(name)
        if algorithm is None:
            continue
        if len(digest) != 2 * algorithm.size:
            raise MalformedEvidence(f"{where}: {name} digest of {len(digest) // 2} bytes")
        digests[algorithm] = bytes.fromhex(digest)
    return digests


def _number(document: dict[str, Any], key: str, most: int, where: str) -> int:
    value = document[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise MalformedEvidence(f"{where}: {key} is not a number from 0 to {most}")
    return value


def _text(document: dict[str, Any], key: str, most: int, where: str) -> str:
    value = document.get(key, "")
    if not isinstance(value, str) or len(value) > most or "\0" in value:
        raise MalformedEvidence(f"{where}: {key} is not a text of at most {most} characters")
    return value
