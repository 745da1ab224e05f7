"""Evidence files as the kernel, the firmware and tpm2-tools write them, in the form that appraisals take."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from keylime.documents.strict_json import BYTE_ORDER_MARK
from keylime.errors import ConfigError, MalformedEvidence, UnsuitableKey
from keylime.ima.keyrings import recognise_key
from keylime.ima.measurement_list import Entry, parse_binary_list, parse_line, split_lines
from keylime.ima.names import list_text
from keylime.ima.templates import UnsupportedTemplate
from keylime.ima.whole_entries import with_whole_entries
from keylime.tpm.pcr import IMA_PCR, PCR_COUNT

LIVE_LIST = "/sys/kernel/security/ima/ascii_runtime_measurements"
_BYTE_ORDER_MARK = BYTE_ORDER_MARK.encode()
_BLANKS = b" \t\r\n"
_AS_THE_KERNEL_SHOWS_IT = (
    "give ascii_runtime_measurements or binary_runtime_measurements as the kernel shows it, whole and "
    "unchanged"
)
_LEAST_DIGEST = 20  # bytes
_TEMPLATE_HASH_SIZES = (20, 32, 48, 64)


def ascii_list(content: bytes) -> bytes:
    """An IMA list in the ASCII form that agents send, whichever form `content` has.

    ASCII is taken as it is, right or wrong, but for what editors and web pages put around it. Raises
    MalformedEvidence for a binary list that is none.
    """
    text = _bare_lines(content)
    if _is_binary(content):
        text = b"".join(entry.to_line() + b"\n" for entry in _binary_entries(content))
    return list_text(text).encode()


def list_entries(content: bytes) -> list[Entry]:
    """The entries of an IMA list of either form. Raises MalformedEvidence, which names the line."""
    if _is_binary(content):
        return _binary_entries(content)
    entries = []
    lines = _bare_lines(content)
    skipped = content[: content.find(lines)].count(b"\n")
    for number, line in enumerate(with_whole_entries(split_lines(lines)), skipped + 1):
        if line:
            try:
                entries.append(parse_line(line))
            except MalformedEvidence as error:
                raise type(error)(f"line {number}: {error}") from error
    return entries


def _bare_lines(content: bytes) -> bytes:
    """The lines of an ASCII list, without a byte order mark and the blank lines around them."""
    text = content.removeprefix(_BYTE_ORDER_MARK)
    if not text.strip(_BLANKS):
        return b""
    begin = text.rfind(b"\n", 0, len(text) - len(text.lstrip(_BLANKS))) + 1
    end = text.find(b"\n", len(text.rstrip(_BLANKS)))
    return text[begin:] if end < 0 else text[begin : end + 1]


def _is_binary(content: bytes) -> bool:
    # A record begins with the number of its PCR in four bytes; a line begins with digits or a blank.
    return len(content) >= 4 and int.from_bytes(content[:4], "little") < PCR_COUNT


def _binary_entries(content: bytes) -> list[Entry]:
    # Lists that the kernel keeps per bank have its size of template hash, and nothing that says so.
    failure: MalformedEvidence | None = None
    for size in _TEMPLATE_HASH_SIZES:
        try:
            return parse_binary_list(content, size)
        except MalformedEvidence as error:
            failure = failure or error
    raise failure or MalformedEvidence("no template hash size fits")


@dataclass(slots=True)
class Measured:
    """What an IMA list shows, by section of a runtime policy; `left_out` tells what no policy can allow."""

    digests: dict[str, set[str]] = field(default_factory=dict)
    keyrings: dict[str, set[str]] = field(default_factory=dict)
    buffers: dict[str, set[str]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def measured_content(entries: Sequence[Entry], ignored_keyrings: frozenset[str]) -> Measured:
    """Files, keys and other buffers of a list, keys of ignored keyrings left out.

    Violations have no digest, and so nothing that a policy could list.
    """
    measured = Measured()
    violations = short = 0
    for entry in entries:
        if entry.pcr != IMA_PCR:
            measured.left_out.append(f"{entry.name}: measured into PCR {entry.pcr}, not {IMA_PCR}")
        elif entry.is_violation:
            violations += 1
        elif len(entry.digest) < _LEAST_DIGEST:
            short += 1
        elif entry.buffer is None:
            measured.digests.setdefault(entry.name, set()).add(entry.digest.hex())
        else:
            _add_buffer(measured, entry, entry.buffer, ignored_keyrings)
    if short:
        measured.left_out.append(
            f"{short} digests of MD5, which no policy lists: boot the machine with ima_hash=sha256, and give "
            "its list"
        )
    if violations:
        measured.left_out.append(
            f"{violations} violations: agents with them are accepted only with ignore_tomtou_errors"
        )
    return measured


def _add_buffer(measured: Measured, entry: Entry, buffer: bytes, ignored_keyrings: frozenset[str]) -> None:
    try:
        key = recognise_key(buffer)
    except UnsuitableKey as error:
        measured.left_out.append(f"keyring {entry.name}: {error}")
        return
    if key is None:
        measured.buffers.setdefault(entry.name, set()).add(entry.digest.hex())
    elif entry.name not in ignored_keyrings and "*" not in ignored_keyrings:
        measured.keyrings.setdefault(entry.name, set()).add(entry.digest.hex())


def demand_entries(option: str, path: str, content: bytes) -> list[Entry]:
    """The entries of the list that `option` names. Raises ConfigError."""
    try:
        return list_entries(content)
    except UnsupportedTemplate as error:
        raise ConfigError(f"{option} {path}: {error}") from error
    except MalformedEvidence as error:
        raise ConfigError(f"{option} {path}: {error}; {_AS_THE_KERNEL_SHOWS_IT}") from error
