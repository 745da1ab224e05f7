"""In what a boot differs from a blessed one, part by part, in words that name the part."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from keylime.measured_boot.boot_reading import Chain, Reading, digests_of
from keylime.measured_boot.components import GoodBoot, Part
from keylime.measured_boot.event_log import Event
from keylime.measured_boot.grub_commands import without_place

_SHOWN_LINE = 1000
_SHOWN_LINES = 3


@dataclass(frozen=True, slots=True)
class Difference:
    """One part that is another than in a blessed boot."""

    part: Part
    reason: str
    event: int | None = None
    observed: str | None = None
    expected: tuple[str, ...] = ()


def differences_of(
    reading: Reading, chain: Chain, loaders: tuple[bytes, ...], good: GoodBoot
) -> list[Difference]:
    """Why the boot in `reading` is not the one that the images `loaders` and then `good` make."""
    started = reading.images
    before, after = started[: len(loaders)], started[len(loaders) :]
    names = _loader_names(chain, len(loaders))
    kernels = tuple("unified kernel image" if chain is Chain.UKI else "kernel image" for _ in good.images)
    files = reading.files[max(0, len(reading.files) - len(good.files)) :] if good.files else ()
    kernel_files, initrd_files = files[: len(good.kernel_files)], files[len(good.kernel_files) :]
    found = [
        *_compared(Part.LOADERS, before, loaders, names),
        *_compared(Part.IMAGES, after, good.images, kernels),
        *_compared(Part.KERNEL_FILES, kernel_files, good.kernel_files),
        *_compared(Part.INITRD_FILES, initrd_files, good.initrd_files),
        *_command_line(reading, good),
        *_compared(Part.INPUTS, reading.inputs, good.inputs),
        *_compared(Part.EXTENSIONS, reading.extensions, good.extensions),
    ]
    # What the kernel's stub measures of a unified kernel is in its image, or in PCR 12 and 13; its initrd
    # also holds what belongs to the machine alone.
    if chain is not Chain.UKI:
        has_line = good.command_line is not None or good.matches_line is not None
        if chain is not Chain.SHIM_GRUB or not has_line:  # else GRUB's text says the same
            found += _compared(Part.LOAD_OPTIONS, reading.options, good.load_options)
        if not good.initrd_files:
            found += _compared(Part.INITRDS, reading.initrds, good.initrds)
    elif good.sections:  # an image of several profiles holds more than one command line
        found += _compared(Part.SECTIONS, reading.sections, good.sections)
    return found


def mixed_boots(found: Sequence[tuple[list[Difference], GoodBoot]]) -> str:
    """Which blessed boots are mixed, if each part of the boot is that of one of them; else nothing."""
    by_part: dict[Part, list[str]] = {}
    for part in _TUPLE:
        names = [
            good.name
            for differences, good in found
            if not any(item.part is part for item in differences)
            and not any(item.part is Part.LOADERS for item in differences)
        ]
        if not names:
            return ""
        by_part[part] = list(dict.fromkeys(names))
    parts = ", ".join(
        f"{part.value} of {' or '.join(map(repr, names[:3]))}"
        for part, names in by_part.items()
        if len(names) < len({good.name for _, good in found})
    )
    return f"blessed boots are mixed: {parts}" if parts else ""


def _loader_names(chain: Chain, count: int) -> tuple[str, ...]:
    if chain in {Chain.SHIM_GRUB, Chain.UNMEASURED_LOADER} and count == len(("shim", "GRUB")):
        return ("shim", "GRUB")
    if chain is Chain.SHIM_GRUB and count == 1:
        return ("GRUB",)
    return ("boot loader",) * count


def _compared(
    part: Part, events: Sequence[Event], good: Sequence[bytes], names: Iterable[str] = ()
) -> list[Difference]:
    if len(events) != len(good):  # before anything that takes time with the events: there may be thousands
        event = events[-1] if len(events) > len(good) else None
        number, observed = (
            (event.number, digests_of([event])[0].hex()) if event is not None else (None, "none")
        )
        what = f"{part.value}: {len(events)} measured, {len(good)} expected"
        return [Difference(part, what, number, observed, tuple(digest.hex() for digest in good))]
    digests = digests_of(events)
    named = tuple(names) or (part.value,) * len(good)
    return [
        Difference(part, f"{name} is another", event.number, digest.hex(), (one.hex(),))
        for name, event, digest, one in zip(named, events, digests, good, strict=True)
        if digest != one
    ]


def _command_line(reading: Reading, good: GoodBoot) -> list[Difference]:
    lines = reading.command_lines
    if good.command_line is None and good.matches_line is None:
        is_good, expected = not lines, "none"
    elif good.matches_line is not None:
        is_good, expected = (
            bool(lines) and all(map(good.matches_line, lines)),
            "a match of the pattern",
        )
    else:
        wanted = without_place(good.command_line or "")
        is_good = len(lines) == 1 and without_place(lines[0]) == wanted
        expected = repr(good.command_line)
    if is_good:
        return []
    number = reading.lines[0][1].number if reading.lines else None
    shown = [line[:_SHOWN_LINE] for line in lines[:_SHOWN_LINES]]
    return [
        Difference(
            Part.COMMAND_LINE,
            f"command line is {shown if shown else 'not measured'}, expected {expected[:_SHOWN_LINE]}",
            number,
            " | ".join(shown) or "none",
            (expected[:_SHOWN_LINE],),
        )
    ]


_TUPLE = (
    Part.IMAGES,
    Part.KERNEL_FILES,
    Part.INITRD_FILES,
    Part.COMMAND_LINE,
    Part.LOAD_OPTIONS,
    Part.INITRDS,
    Part.INPUTS,
    Part.EXTENSIONS,
    Part.SECTIONS,
)
