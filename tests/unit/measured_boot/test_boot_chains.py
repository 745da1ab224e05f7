"""A reference state accepts the boot it was made from, whatever its chain, and no other one."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from keylime.hashes import HashAlgorithm
from keylime.measured_boot.event_log import Event, EventLog, parse_event_log
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.reference_state import create_reference_state, missing_proofs
from keylime.measured_boot.replay import replay_event_log
from tests.captures import captures
from tests.fakes.measured_boot import policy

DATA = Path(__file__).parents[2] / "data"
SHA256 = HashAlgorithm.SHA256
LOGS = {
    **{path.stem: path.read_bytes() for path in sorted((DATA / "boot-logs").glob("*/*.bin"))},
    **{
        path.stem: path.read_bytes()
        for path in sorted((DATA / "evidence").glob("*.bin"))
        # The others hold no whole boot.
        if not any(word in path.stem for word in ("some-banks", "locality", "certificate"))
    },
    **{captured.name: captured.boot_log for captured in captures()},
}
PUBLIC = json.loads((DATA / "boot-logs/public/expected-replay.json").read_text("utf-8"))


def log_named(name: str) -> EventLog:
    return parse_event_log(LOGS[name])


def objections(log: EventLog, state: Mapping[str, object]) -> list[str]:
    return [str(finding.context["reason"]) for finding in policy(state).evaluate(log, SHA256)]


@pytest.mark.parametrize("name", LOGS)
def test_a_reference_state_accepts_its_own_source(name: str) -> None:
    log = log_named(name)
    assert objections(log, create_reference_state(log)) == []


def changed(log: EventLog, event: Event) -> EventLog:
    """The same boot, in which something else was measured there."""
    other = replace(event, digests={bank: bank.digest(b"other") for bank in event.digests})
    return replace(log, events=tuple(other if item is event else item for item in log.events))


def held(log: EventLog) -> list[Event]:
    """Code that was started or loaded: firmware, images, and initrds that the kernel measured."""
    code = {
        (0, EventType.EFI_PLATFORM_FIRMWARE_BLOB),
        (0, EventType.EFI_PLATFORM_FIRMWARE_BLOB2),
        (4, EventType.EFI_BOOT_SERVICES_APPLICATION),
    }
    return [event for event in log.events if (event.pcr, event.type_code) in code or _is_initrd(event)]


def _is_initrd(event: Event) -> bool:
    # GRUB's own files and its menu entries are not held to their digests.
    return event.pcr == 9 and b"initrd" in event.data and not re.search(b"/grub|/loader/", event.data)


@pytest.mark.parametrize("name", LOGS)
def test_other_code_than_the_one_it_was_made_from_is_rejected(name: str) -> None:
    log = log_named(name)
    state = create_reference_state(log)
    for event in held(log):
        assert objections(changed(log, event), state), f"event {event.number}"


@pytest.mark.parametrize("name", LOGS)
def test_a_further_image_is_rejected(name: str) -> None:
    log = log_named(name)
    state = create_reference_state(log)
    last = log.events[-1]
    image = replace(
        last,
        number=last.number + 1,
        pcr=4,
        type_code=EventType.EFI_BOOT_SERVICES_APPLICATION,
        digests={bank: bank.digest(b"evil") for bank in log.algorithms},
    )
    assert objections(replace(log, events=(*log.events, image)), state)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_logs_are_read_whole_and_replay_as_computed_elsewhere(name: str) -> None:
    expected = PUBLIC[name]
    log = parse_event_log((DATA / "boot-logs/public" / name).read_bytes())
    assert len(log.events) - (log.spec_id is not None) == expected["events"]
    replayed = replay_event_log(log)
    for bank, pcrs in expected["replayed_pcrs"].items():
        values = replayed[HashAlgorithm.from_label(bank)]
        assert {index: values[int(index)].hex() for index in pcrs} == pcrs


def test_padding_behind_the_locality_changes_nothing() -> None:
    padded, tight = (
        replay_event_log(parse_event_log(path.read_bytes()))
        for path in sorted((DATA / "evidence").glob("startup-locality-padded-*.bin"))
    )
    assert padded == tight
    assert padded[SHA256][0] != bytes(32)


def test_a_bank_that_no_event_has_takes_nothing_from_the_others() -> None:
    log = parse_event_log((DATA / "evidence/digests-of-some-banks-only-sha256-only.bin").read_bytes())
    assert log.algorithms == (SHA256,)
    assert log.spec_id is not None
    assert len(log.spec_id.digest_sizes) == 2
    assert set(replay_event_log(log)) == {SHA256}


@pytest.mark.parametrize(
    ("name", "gaps"),
    [
        ("grub-secureboot", ()),
        ("seabios-no-uefi", ("no initrd", "command line")),
        ("uki-direct", ()),
        ("ami-arch-systemd-boot-247-type1-pcr8", ("no initrd",)),
        ("gcp-rhel8-shim-grub-secureboot", ()),
    ],
)
def test_what_a_boot_leaves_unproven_is_named(name: str, gaps: tuple[str, ...]) -> None:
    named = missing_proofs(create_reference_state(log_named(name)))
    assert len(named) >= len(gaps)
    assert all(any(gap in text for text in named) for gap in gaps)
    assert bool(named) == bool(gaps), named
