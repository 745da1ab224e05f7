"""Device-mapper events in the measurement list: their grammar (kernel: dm-ima.c and each target's `status`).

What a policy says about the events is in `keylime.ima.device_mapper_policy`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from keylime.errors import MalformedEvidence

TABLE_LOAD = "dm_table_load"
DEVICE_RESUME = "dm_device_resume"
DEVICE_REMOVE = "dm_device_remove"
TABLE_CLEAR = "dm_table_clear"
DEVICE_RENAME = "dm_device_rename"
TARGET_UPDATE = "dm_target_update"
EVENT_NAMES = frozenset({TABLE_LOAD, DEVICE_RESUME, DEVICE_REMOVE, TABLE_CLEAR, DEVICE_RENAME, TARGET_UPDATE})

_STRING = re.compile(r"[A-Za-z0-9\-:_.+@#]+")
_NUMBER = re.compile(r"[0-9]{1,20}")
_VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")
_MAX_TARGETS = 4096
_MAX_MIRRORS = 64


@dataclass(frozen=True, slots=True)
class Device:
    """A device's metadata; `minor` and the other numbers are as printed."""

    name: str
    uuid: str
    major: int
    minor: int
    minor_count: int
    num_targets: int


@dataclass(frozen=True, slots=True)
class Target:
    """One line of a device's table: its place in sectors, its kind, and what the kind adds."""

    index: int
    begin: int
    length: int
    kind: str
    version: str
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMapperEvent:
    """One event; which optional parts it has depends on `kind`, `name` and `uuid` always say which device.

    `active_table` and `inactive_table` are digests as printed, with their algorithm ("sha256:...").
    """

    kind: str
    name: str
    uuid: str
    device: Device | None = None
    inactive_device: Device | None = None
    targets: tuple[Target, ...] = ()
    active_table: str | None = None
    inactive_table: str | None = None
    new_name: str | None = None
    new_uuid: str | None = None
    no_data: bool = False


# Attributes of each kind of target, in the order in which the kernel prints them; "?" marks what may be
# missing.
_ATTRIBUTES = {
    "verity": (
        "hash_failed verity_version data_device_name hash_device_name verity_algorithm root_digest salt "
        "ignore_zero_blocks check_at_most_once root_hash_sig_key_desc? verity_mode?"
    ),
    "crypt": (
        "allow_discards same_cpu_crypt submit_from_crypt_cpus no_read_workqueue no_write_workqueue "
        "iv_large_sectors integrity_tag_size? cipher_auth? sector_size? cipher_string? key_size key_parts "
        "key_extra_size key_mac_size"
    ),
    "integrity": (
        "dev_name start tag_size mode meta_device? block_size? recalculate allow_discards fix_padding "
        "fix_hmac legacy_recalculate journal_sectors interleave_sectors buffer_sectors"
    ),
    "cache": (
        "metadata_mode cache_metadata_device cache_device cache_origin_device writethrough writeback "
        "passthrough metadata2 no_discard_passdown"
    ),
    "linear": "device_name start",
    "snapshot": "snap_origin_name snap_cow_name snap_valid snap_merge_failed snapshot_overflowed",
}


def parse_event(kind: str, buffer: bytes) -> DeviceMapperEvent:
    """The event in the buffer of an `ima-buf` entry named `kind`. Raises MalformedEvidence (where)."""
    reader = _Reader(_text(buffer))
    reader.expect("dm_version=")
    reader.take(_VERSION)
    reader.expect(";")
    event = _PARSERS[kind](reader)
    reader.end()
    return event


def _text(buffer: bytes) -> str:
    try:
        return buffer.rstrip(b"\0").decode()
    except UnicodeDecodeError as error:
        raise MalformedEvidence("device-mapper event is not UTF-8") from error


class _Reader:
    """A cursor over one event."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    @property
    def at_end(self) -> bool:
        return self._at == len(self._text)

    def accept(self, literal: str) -> bool:
        if not self._text.startswith(literal, self._at):
            return False
        self._at += len(literal)
        return True

    def expect(self, literal: str) -> None:
        if not self.accept(literal):
            raise self._error(repr(literal))

    def take(self, kind: re.Pattern[str]) -> str:
        match = kind.match(self._text, self._at)
        if match is None:
            raise self._error(kind.pattern)
        self._at = match.end()
        return match[0]

    def field(self, name: str, kind: re.Pattern[str] = _STRING) -> str:
        self.expect(f"{name}=")
        return self.take(kind)

    def number(self, name: str) -> int:
        return int(self.field(name, _NUMBER))

    def optional_string(self, name: str) -> str:
        """The value of a field that is there but may be empty."""
        self.expect(f"{name}=")
        match = _STRING.match(self._text, self._at)
        return self.take(_STRING) if match else ""

    def end(self) -> None:
        if not self.at_end:
            raise self._error("the end")

    def _error(self, expected: str) -> MalformedEvidence:
        return MalformedEvidence(f"device-mapper event: expected {expected} at character {self._at}")


def _identity(reader: _Reader) -> tuple[str, str]:
    name = reader.field("name")
    reader.expect(",")
    return name, reader.optional_string("uuid")


def _device(reader: _Reader) -> Device:
    name, uuid = _identity(reader)
    return _device_numbers(reader, name, uuid)


def _device_numbers(reader: _Reader, name: str, uuid: str) -> Device:
    numbers = []
    for key in ("major", "minor", "minor_count", "num_targets"):
        reader.expect(",")
        numbers.append(reader.number(key))
    return Device(name, uuid, *numbers)


def _capacity(reader: _Reader) -> None:
    reader.number("current_device_capacity")
    reader.expect(";")


def _target(reader: _Reader) -> Target:
    index = reader.number("target_index")
    reader.expect(",")
    begin = reader.number("target_begin")
    reader.expect(",")
    length = reader.number("target_len")
    reader.expect(",")
    kind = reader.field("target_name")
    reader.expect(",")
    version = reader.field("target_version", _VERSION)
    reader.expect(",")
    if kind == "mirror":
        attributes = _mirror(reader)
    elif kind in _ATTRIBUTES:
        attributes = _attributes(reader, _ATTRIBUTES[kind].split())
    else:
        raise MalformedEvidence(f"device-mapper target {kind!r} is not supported")
    reader.expect(";")
    return Target(index, begin, length, kind, version, attributes)


def _attributes(reader: _Reader, keys: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for key in keys:
        name = key.removesuffix("?")
        label = f",{name}=" if found else f"{name}="
        if not key.endswith("?"):
            reader.expect(label)
        elif not reader.accept(label):
            continue
        found[name] = reader.take(_STRING)
    return found


def _mirror(reader: _Reader) -> dict[str, str]:
    count = reader.number("nr_mirrors")
    if count > _MAX_MIRRORS:
        raise MalformedEvidence(f"device-mapper mirror with {count} devices: at most {_MAX_MIRRORS}")
    found = {"nr_mirrors": str(count)}
    keys = [f"mirror_device_{index}{suffix}" for index in range(count) for suffix in ("", "_status")]
    for key in [*keys, "handle_errors", "keep_log", "log_type_status"]:
        reader.expect(",")
        found[key] = reader.optional_string(key)
    return found


def _table_load(reader: _Reader) -> DeviceMapperEvent:
    device = _device(reader)
    reader.expect(";")
    targets = [_target(reader)]
    while not reader.at_end:
        targets.append(_target(reader))
        if len(targets) > _MAX_TARGETS:
            raise MalformedEvidence(f"device-mapper table with more than {_MAX_TARGETS} targets")
    return DeviceMapperEvent(
        kind=TABLE_LOAD, name=device.name, uuid=device.uuid, device=device, targets=tuple(targets)
    )


def _device_resume(reader: _Reader) -> DeviceMapperEvent:
    name, uuid = _identity(reader)
    device = None
    if not reader.accept(";device_resume=no_data"):
        device = _device_numbers(reader, name, uuid)
        reader.expect(";")
        table = None if reader.accept("device_resume=no_data") else reader.field("active_table_hash")
    else:
        table = None
    reader.expect(";")
    _capacity(reader)
    return DeviceMapperEvent(
        kind=DEVICE_RESUME, name=name, uuid=uuid, device=device, active_table=table, no_data=table is None
    )


def _device_remove(reader: _Reader) -> DeviceMapperEvent:
    active = inactive = None
    active_table = inactive_table = None
    name = uuid = ""
    no_data = False
    if reader.accept("device_active_metadata="):
        active = _device(reader)
        reader.expect(";")
    if reader.accept("device_inactive_metadata="):
        inactive = _device(reader)
        reader.expect(";")
    known = active or inactive
    if known is not None:
        name, uuid = known.name, known.uuid
        if reader.accept("active_table_hash="):
            active_table = reader.take(_STRING)
            reader.expect(",")
        if reader.accept("inactive_table_hash="):
            inactive_table = reader.take(_STRING)
            reader.expect(",")
    else:
        no_data = True
        name, uuid = _identity(reader)
        reader.expect(";device_remove=no_data;")
    reader.field("remove_all")
    reader.expect(";")
    _capacity(reader)
    return DeviceMapperEvent(
        kind=DEVICE_REMOVE,
        name=name,
        uuid=uuid,
        device=active,
        inactive_device=inactive,
        active_table=active_table,
        inactive_table=inactive_table,
        no_data=no_data,
    )


def _table_clear(reader: _Reader) -> DeviceMapperEvent:
    name, uuid = _identity(reader)
    device = table = None
    if not reader.accept(";table_clear=no_data"):
        device = _device_numbers(reader, name, uuid)
        reader.expect(";")
        table = reader.field("inactive_table_hash")
    reader.expect(";")
    _capacity(reader)
    return DeviceMapperEvent(
        kind=TABLE_CLEAR, name=name, uuid=uuid, device=device, inactive_table=table, no_data=table is None
    )


def _device_rename(reader: _Reader) -> DeviceMapperEvent:
    device = _device(reader)
    reader.expect(";")
    new_name = reader.field("new_name")
    reader.expect(",")
    new_uuid = reader.optional_string("new_uuid")
    reader.expect(";")
    _capacity(reader)
    return DeviceMapperEvent(
        kind=DEVICE_RENAME,
        name=device.name,
        uuid=device.uuid,
        device=device,
        new_name=new_name,
        new_uuid=new_uuid,
    )


def _target_update(reader: _Reader) -> DeviceMapperEvent:
    device = _device(reader)
    reader.expect(";")
    target = _target(reader)
    return DeviceMapperEvent(
        kind=TARGET_UPDATE, name=device.name, uuid=device.uuid, device=device, targets=(target,)
    )


_PARSERS = {
    TABLE_LOAD: _table_load,
    DEVICE_RESUME: _device_resume,
    DEVICE_REMOVE: _device_remove,
    TABLE_CLEAR: _table_clear,
    DEVICE_RENAME: _device_rename,
    TARGET_UPDATE: _target_update,
}
