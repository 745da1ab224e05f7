import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from keylime.hashes import HashAlgorithm
from keylime.measured_boot.document import event_log_document
from keylime.measured_boot.event_log import parse_event_log
from keylime.measured_boot.event_types import EventType
from tests.captures import Capture, capture, captures
from tests.fakes.event_logs import build_log, record, variable

TOOL = shutil.which("tpm2_eventlog")
ESCAPES = {"\\0": "\0", "\\'": "'", "\\\\": "\\"}


def document(log: bytes) -> Any:
    return event_log_document(parse_event_log(log))


def event(kind: EventType, data: bytes, pcr: int = 7) -> Any:
    return document(build_log([record(pcr, kind, data)]))["events"][1]["Event"]


def unescaped(text: str) -> str:
    """A text as firmware wrote it, from the tool's quoted lines; without the terminating NUL."""
    lines = [line.removeprefix('"').removesuffix('"') for line in text.split("\n")]
    plain = re.sub(r"\\[0'\\]", lambda found: ESCAPES[found.group()], "\n".join(lines))
    return plain.removesuffix("\0")


def differences(theirs: object, ours: object, path: str = "") -> Iterator[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for key in {**theirs, **ours}:
            if key in theirs and key in ours:
                yield from differences(theirs[key], ours[key], f"{path}/{key}")
            else:
                yield f"{path}/{key} is in one only"
    elif isinstance(theirs, list) and isinstance(ours, list):
        if len(theirs) != len(ours):
            yield f"{path} has {len(ours)} elements"
        for position, (their, our) in enumerate(zip(theirs, ours, strict=False)):
            yield from differences(their, our, f"{path}/{position}")
    elif theirs != ours and not (
        isinstance(theirs, str) and isinstance(ours, str) and unescaped(theirs) == ours.removesuffix("\n")
    ):
        yield f"{path}: {theirs!r} != {ours!r}"


@pytest.mark.parametrize("captured", captures(), ids=lambda captured: captured.name)
def test_numbers_types_digests_and_pcrs_are_those_of_the_captured_print(captured: Capture) -> None:
    # Captured with the first version of the tool's format, which leaves most data as hex.
    printed = yaml.safe_load(captured.read("tpm2_eventlog.yaml"))
    ours = document(captured.boot_log)

    def frame(item: Mapping[str, object]) -> dict[str, object]:
        return {key: value for key, value in item.items() if key != "Event"}

    assert [frame(item) for item in ours["events"]] == [frame(item) for item in printed["events"]]
    assert ours["pcrs"] == {
        bank: {str(index): value for index, value in values.items()}
        for bank, values in printed["pcrs"].items()
    }


@pytest.mark.skipif(TOOL is None, reason="tpm2_eventlog is not installed")
@pytest.mark.parametrize("captured", captures(), ids=lambda captured: captured.name)
def test_the_document_is_that_of_the_tool_but_for_device_paths_and_aggregates(
    captured: Capture, tmp_path: Path
) -> None:
    file = tmp_path / "log"
    file.write_bytes(captured.boot_log)
    command = [str(TOOL), "--eventlog-version=2", str(file)]
    printed = subprocess.run(command, capture_output=True, check=True).stdout  # noqa: S603  a fixed command
    theirs, ours = yaml.safe_load(printed), document(captured.boot_log)
    theirs["pcrs"] = {
        bank: {str(index): value for index, value in pcrs.items()} for bank, pcrs in theirs["pcrs"].items()
    }
    unexpected = [
        line
        for line in differences(theirs, ours)
        if "/boot_aggregates" not in line and not re.fullmatch(r"/events/\d+/Event/DevicePath: .*", line)
    ]
    assert unexpected == []


def test_device_paths_are_text() -> None:
    paths = [
        item["Event"]["DevicePath"]
        for item in document(capture("direct-efistub").boot_log)["events"]
        if item["EventType"] == "EV_EFI_BOOT_SERVICES_APPLICATION"
    ]
    assert paths == ["VenMedia(1428f772-b64a-441e-b8c3-9ebdd7f893c7)/File(kernel)"]


def test_both_boot_aggregates_of_every_bank_are_listed() -> None:
    aggregates = document(capture("grub-secureboot").boot_log)["boot_aggregates"]
    measured = capture("grub-secureboot").stage("s1-clean").expected["boot_aggregate"]
    assert list(aggregates) == ["sha1", "sha256"]
    assert all(len(candidates) == 2 for candidates in aggregates.values())
    assert aggregates["sha256"][1] == measured["digest"]


def test_only_the_banks_asked_for_are_shown() -> None:
    log = parse_event_log(capture("direct-critical-data-4banks").boot_log)
    shown: Any = event_log_document(log, banks=[HashAlgorithm.SHA384])
    assert list(shown["pcrs"]) == list(shown["boot_aggregates"]) == ["sha384"]
    assert {digest["AlgorithmId"] for item in shown["events"][1:] for digest in item["Digests"]} == {"sha384"}
    assert all(item["DigestCount"] == 1 for item in shown["events"][1:])


def test_events_of_a_sha1_log_have_no_numbers() -> None:
    item = record(0, EventType.SEPARATOR, bytes(4))
    (shown,) = document(item.encode_sha1())["events"]
    assert "EventNum" not in shown
    assert shown["Event"] == "00000000"


@pytest.mark.parametrize(
    ("kind", "name", "value", "shown"),
    [
        (EventType.EFI_VARIABLE_DRIVER_CONFIG, "SecureBoot", b"", {"Enabled": "No"}),
        (EventType.EFI_VARIABLE_DRIVER_CONFIG, "SecureBoot", b"\2", {"Enabled": "Yes"}),
        (EventType.EFI_VARIABLE_DRIVER_CONFIG, "PK", b"", None),
        (EventType.EFI_VARIABLE_DRIVER_CONFIG, "PK", b"\1\2", "0102"),
        (EventType.EFI_VARIABLE_DRIVER_CONFIG, "SetupMode", b"\1", "01"),
        (EventType.EFI_VARIABLE_AUTHORITY, "MokListTrusted", b"\1", {"Enabled": "Yes"}),
        (EventType.EFI_VARIABLE_AUTHORITY, "SbatLevel", b"sbat,1\n\0", {"String": "sbat,1\n"}),
        (EventType.EFI_VARIABLE_AUTHORITY, "MokListRT", b"\x0a", "0a"),
        (EventType.EFI_VARIABLE_AUTHORITY, "vendor_db", b"\x0a", "0a"),
        (
            EventType.EFI_VARIABLE_AUTHORITY,
            "Shim",
            bytes(16) + b"\xab",
            [{"SignatureOwner": "00000000-0000-0000-0000-000000000000", "SignatureData": "ab"}],
        ),
        (EventType.EFI_VARIABLE_BOOT2, "BootOrder", b"\1\0\x0a\0", ["Boot0001", "Boot000a"]),
        (EventType.EFI_VARIABLE_BOOT, "BootNext", b"\1\0", "0100"),
    ],
)
def test_variables_are_shown_by_name(kind: EventType, name: str, value: bytes, shown: object) -> None:
    assert event(kind, variable(bytes(16), name, value))["VariableData"] == shown


def test_an_empty_variable_without_a_form_of_its_own_has_no_data() -> None:
    shown = event(EventType.EFI_VARIABLE_DRIVER_CONFIG, variable(bytes(16), "dbt", b""))
    assert "VariableData" not in shown
    assert shown["VariableDataLength"] == 0


def test_data_that_cannot_be_read_are_hex() -> None:
    assert event(EventType.EFI_PLATFORM_FIRMWARE_BLOB, b"\xab") == "ab"
    assert event(EventType.NO_ACTION, b"\xab", pcr=0) == "ab"
    assert event(EventType.NO_ACTION, b"StartupLocality\0\3", pcr=0) == {"StartupLocality": 3}


def test_a_type_without_a_name_is_shown_as_unknown() -> None:
    log = build_log([record(5, 0x77, b"x")])
    assert document(log)["events"][1]["EventType"] == "Unknown event type"
