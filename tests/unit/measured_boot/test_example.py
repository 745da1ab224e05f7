import struct
import uuid
from dataclasses import replace

import pytest

from keylime.errors import PolicyError
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.variables import (
    GLOBAL_VARIABLE,
    IMAGE_SECURITY,
    SHA256_SIGNATURES,
    SHIM_LOCK,
    X509_SIGNATURES,
)
from tests.fakes.event_logs import Record, record, variable
from tests.fakes.measured_boot import (
    Records,
    appraise,
    boot,
    edit,
    grub_pcrs,
    grub_records,
    policy,
    reference_state,
)
from tests.captures import capture

OTHER = {"sha256": "0x" + "ab" * 32}


def reasons(records: Records, refstate: object) -> str:
    return " ".join(str(finding.context["reason"]) for finding in boot(records, refstate))


def is_variable(name: str, kind: EventType = EventType.EFI_VARIABLE_DRIVER_CONFIG) -> "object":
    marker = struct.pack("<Q", len(name))
    encoded = name.encode("utf-16-le")

    def chosen(item: Record) -> bool:
        return (
            item.type_code == kind and item.data[16:24] == marker and item.data[32 : 32 + len(encoded)] == encoded
        )

    return chosen


def of(pcr: int, kind: EventType, text: bytes = b"") -> "object":
    return lambda item: item.pcr == pcr and item.type_code == kind and text in item.data


def with_variable(name: str, guid: uuid.UUID, value: bytes) -> list[Record]:
    return edit(
        grub_records(), is_variable(name), lambda item: item.with_data(variable(guid.bytes_le, name, value))
    )


def without(records: Records, chosen: object) -> list[Record]:
    kept = [item for item in records if not chosen(item)]
    assert len(kept) < len(records)
    return kept


def after(records: Records, chosen: object, added: Record) -> list[Record]:
    position = max(index for index, item in enumerate(records) if chosen(item))
    return [*records[: position + 1], added, *records[position + 1 :]]


def signature_list(kind: uuid.UUID, *data: bytes) -> bytes:
    size = 16 + len(data[0])
    body = b"".join(bytes(16) + item for item in data)
    return kind.bytes_le + struct.pack("<III", 28 + len(body), 0, size) + body


def test_a_boot_satisfies_the_reference_state_made_from_it() -> None:
    assert boot(grub_records(), reference_state()) == ()
    assert appraise(capture("grub-secureboot").boot_log, policy(reference_state()), grub_pcrs()).findings == ()
