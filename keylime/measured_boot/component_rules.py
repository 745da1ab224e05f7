"""Policy `components` and those named by a boot chain: a boot must be one blessed boot as a whole.

Events that any boot has are judged by `boot_events`; here it is what was started and loaded, and what the
kernel was told.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from keylime.errors import PolicyError
from keylime.findings.finding import JsonValue
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.binding import Binding, data_binding
from keylime.measured_boot.boot_chain import text_of
from keylime.measured_boot.boot_differences import Difference, differences_of, mixed_boots
from keylime.measured_boot.boot_events import BootEvents
from keylime.measured_boot.boot_reading import FILE_PCR, Chain, Reading, read_boot
from keylime.measured_boot.components import (
    WHAT,
    ComponentReference,
    GoodBoot,
    compile_components,
    parse_document,
)
from keylime.measured_boot.event_log import Event, EventLog
from keylime.measured_boot.event_types import EventType
from keylime.measured_boot.example import ExampleRules
from keylime.measured_boot.grub_commands import (
    GrubCommand,
    grub_command,
    is_unjudged_file,
    reads_unseen,
    same_words,
    without_place,
)
from keylime.measured_boot.policies import Judge, Objection
from keylime.measured_boot.variables import SHIM_LOCK, UefiVariable

# PCR 11 is left out: the system goes on extending it. The sections that the stub took of its image are judged
# as parts of the boot, and proven where the quote covers PCR 11 and the system's own log explains the rest.
RELEVANT_PCRS = frozenset({*range(10), 12, 13, 14})
SECTION_PCR = 11

_SHOWN = 200
_UNLISTED = "is not listed in grub.commands"
_LEVEL = re.compile(rb"sbat,\d{1,9},(\d{1,18})\s")


@dataclass(frozen=True, slots=True)
class ComponentRules:
    """The policy; with `chain`, for reference states of that chain only."""

    chain: Chain | None = None

    def get_relevant_pcrs(self) -> frozenset[int]:
        """PCR 0-9; 12 and 13 for what a unified kernel is given; 14, where shim measures its own keys."""
        return RELEVANT_PCRS

    def compile(self, refstate: JsonValue) -> Judge:
        """The judge for one reference state. Raises PolicyError, which names the member.

        A reference state of policy `example` is judged as that does, so that a verifier can change over.
        """
        if self.chain is None and isinstance(refstate, Mapping) and "kernels" in refstate:
            return ExampleRules().compile(refstate)
        reference = compile_components(parse_document(refstate))
        if self.chain is not None and self.chain is not reference.chain:
            raise PolicyError(
                f"{WHAT}: chain: is {reference.chain.value!r}, which policy `{self.chain.value}` does not "
                "judge; policy `components` judges all chains"
            )

        def judge(log: EventLog, bank: HashAlgorithm) -> tuple[Objection, ...]:
            return tuple(judge_boot(reference, log, bank).objections)

        return judge


def judge_boot(reference: ComponentReference, log: EventLog, bank: HashAlgorithm) -> BootEvents:
    """The boot in `log` after all its events were judged, with the objections and what was not listed."""
    own = reference.firmware_applications
    others = {**reference.common.other_events, 4: reference.common.other_events.get(4, frozenset()) | own}
    boot = BootEvents(replace(reference.common, other_events=others), bank)
    reading = read_boot(log.events, own)
    boot.judge_events(
        event
        for event in log.events
        if event.number not in reading.judged and not (event.is_extended and event.pcr == SECTION_PCR)
    )
    boot.judge_whole()
    if bank is not HashAlgorithm.SHA256:
        reason = f"boots are listed by SHA-256 digest, the quote covers the {bank.label} bank"
        boot.objections.append(Objection(reason))
        return boot
    _judge_drivers(boot, reference, log.events)
    _judge_tags(boot, reading, log.events)
    _judge_sbat_level(boot, reference, log.events)
    blessed = _judge_boot(boot, reference, reading)
    _judge_files(boot, reference, reading, blessed)
    _judge_commands(boot, reference, reading, blessed)
    return boot


def _judge_drivers(boot: BootEvents, reference: ComponentReference, events: Iterable[Event]) -> None:
    for event in events:
        is_driver = (event.pcr, event.type_code) == (2, EventType.EFI_BOOT_SERVICES_DRIVER)
        if is_driver and event.digests.get(boot.bank) not in reference.drivers:
            boot.unexpected(event, "driver (option ROM of a card) is not listed")


def _judge_tags(boot: BootEvents, reading: Reading, events: Iterable[Event]) -> None:
    """Nothing vouches for a tag: what was loaded could be logged under one that nobody looks at."""
    for event in events:
        is_tag = event.is_extended and (event.pcr, event.type_code) == (FILE_PCR, EventType.EVENT_TAG)
        if is_tag and boot.bank in event.digests and event.number not in reading.judged:
            boot.unexpected(event, "tag of no known kind")


def _judge_sbat_level(boot: BootEvents, reference: ComponentReference, events: Iterable[Event]) -> None:
    if reference.sbat_level is None:
        return
    levels = [(level, event) for event in events if (level := sbat_level(event)) is not None]
    if not levels:
        boot.objections.append(Objection("SbatLevel of shim is not measured"))
    for level, event in levels:
        if level < reference.sbat_level:
            boot.object(event, f"SbatLevel is {level}, at least {reference.sbat_level} is expected")


def sbat_level(event: Event) -> int | None:
    """The date in the SbatLevel that shim measured, if it is one."""
    variable = event.decoded
    if event.type_code != EventType.EFI_VARIABLE_AUTHORITY or not isinstance(variable, UefiVariable):
        return None
    if (variable.guid, variable.name) != (SHIM_LOCK, "SbatLevel") or data_binding(event) is not Binding.BOUND:
        return None
    found = _LEVEL.match(variable.value + b"\n")
    return int(found[1]) if found else None


def _judge_boot(boot: BootEvents, reference: ComponentReference, reading: Reading) -> GoodBoot | None:
    """The blessed boot that this is, or the closest one, if there is any."""
    found = [
        (differences_of(reading, reference.chain, images, good), good)
        for images in reference.loaders.values() or [()]
        for good in reference.boots
    ]
    if not found:
        boot.objections.append(Objection("no boot is blessed: the reference state has none"))
        return None
    differences, closest = min(found, key=lambda item: len(item[0]))
    if differences:
        mixed = mixed_boots(found)
        reason = mixed or f"closest is {closest.name!r}: {'; '.join(item.reason for item in differences)}"
        first: Difference = differences[0]
        boot.objections.append(
            Objection(f"no blessed boot ({reason})", first.event, first.observed, first.expected)
        )
    return closest


def _judge_files(
    boot: BootEvents, reference: ComponentReference, reading: Reading, blessed: GoodBoot | None
) -> None:
    """What GRUB read before the kernel."""
    last = len(blessed.files) if blessed is not None else 0
    has_grub = reference.chain is Chain.SHIM_GRUB or bool(reference.commands)
    for event in reading.files[: len(reading.files) - last]:
        name = text_of(event)
        is_unjudged = has_grub and is_unjudged_file(name)
        if not is_unjudged and event.digests[boot.bank] not in reference.files:
            boot.unexpected(event, f"file {name!r} is not listed in grub.files")


def _judge_commands(
    boot: BootEvents, reference: ComponentReference, reading: Reading, blessed: GoodBoot | None
) -> None:
    listed = {without_place(text) for text in reference.commands}
    initrds = len(blessed.initrd_files) if blessed is not None else 0
    unseen = frozenset(reads_unseen([text for text, _ in reading.commands], initrds))
    for at, (text, event) in enumerate(reading.commands):
        kind = grub_command(text)
        if reference.chain is not Chain.SHIM_GRUB and not reference.commands:
            boot.unexpected(event, "a GRUB ran, which is no part of this boot chain")
            return
        is_good = kind in {GrubCommand.HARMLESS, GrubCommand.INITRD}
        if kind is GrubCommand.KERNEL and blessed is not None:
            line = text.partition(" ")[2]
            is_good = (blessed.command_line is not None and same_words(line, blessed.command_line)) or (
                blessed.matches_line is not None and blessed.matches_line(line)
            )
        if (at in unseen or not is_good) and without_place(text) not in listed:
            what = (
                "starts another command line"
                if kind is GrubCommand.KERNEL
                else f"reads other files than the {initrds} initrds that are booted, and {_UNLISTED}"
                if kind is GrubCommand.INITRD
                else f"reads a file behind `linux`, and {_UNLISTED}"
                if is_good
                else _UNLISTED
            )
            boot.unexpected(event, f"command {text[:_SHOWN]!r} {what}")
