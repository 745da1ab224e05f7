"""One policy for many machines, and which of them each of its rules would break if it held for all."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from keylime.measured_boot.components import BootVariant, ReferenceStateDocument
from keylime_policy.messages import Messages

_SHOWN_ROWS = 60
_SHOWN_MACHINES = 6


@dataclass(frozen=True, slots=True)
class DivergentRule:
    """A rule that does not hold for all machines, and those that it would break."""

    rule: str
    breaks: tuple[str, ...]


@dataclass(slots=True)
class Traits:
    """What a machine shows: `one_of` by kind, and what it needs `allowed`."""

    one_of: set[str] = field(default_factory=set)
    allowed: set[str] = field(default_factory=set)


def table(traits: Mapping[str, Traits]) -> tuple[list[DivergentRule], int]:
    """A row for each rule that would break a machine, and how many rules hold for all machines."""
    rows, shared = [], 0
    for rule in _in_order(each.one_of for each in traits.values()):
        breaks = tuple(machine for machine, each in traits.items() if rule not in each.one_of)
        if breaks:
            rows.append(DivergentRule(f"only {rule}", breaks))
        else:
            shared += 1
    for rule in _in_order(each.allowed for each in traits.values()):
        breaks = tuple(machine for machine, each in traits.items() if rule in each.allowed)
        if len(breaks) < len(traits):
            rows.append(DivergentRule(f"no {rule}", breaks))
        else:
            shared += 1
    return _grouped(rows), shared


def _grouped(rows: Iterable[DivergentRule]) -> list[DivergentRule]:
    """Rows of one kind that break the same machines, as one: dbx alone has hundreds of entries."""
    groups: dict[tuple[str, tuple[str, ...]], list[DivergentRule]] = {}
    for row in rows:
        groups.setdefault((" ".join(row.rule.split(" ")[:2]), row.breaks), []).append(row)
    return [
        DivergentRule(f"{group[0].rule} (and {len(group) - 1} more)", breaks) if len(group) > 1 else group[0]
        for (_, breaks), group in groups.items()
    ]


def boot_traits(documents: Mapping[str, ReferenceStateDocument]) -> Mapping[str, Traits]:
    """What the machines' own reference states say, in words that are equal for equal rules."""
    traits = {machine: _boot_traits(document) for machine, document in documents.items()}
    levels = {machine: document.secure_boot.sbat_level for machine, document in documents.items()}
    for least in {level for level in levels.values() if level is not None}:
        for machine, level in levels.items():
            if level is not None and int(level) >= int(least):
                traits[machine].one_of.add(f"SbatLevel of at least {least}")
    return traits


def _boot_traits(document: ReferenceStateDocument) -> Traits:
    parts, secure_boot = document.components, document.secure_boot
    traits = Traits({f"boot chain {document.chain}", f"Secure Boot {'on' if secure_boot.on else 'off'}"})
    for kind, variants in (("firmware", parts.firmware), ("boot loader", parts.boot_loader)):
        traits.one_of |= {f"{kind} {_fingerprint(variant)}" for variant in variants.values()}
    for name, boot in parts.boot.items():
        traits.one_of |= set(_boot_rules(name, boot))
    for kind in ("pk", "kek", "db", "vendor_db"):
        traits.allowed |= {f"key {_fingerprint(key)} in {kind}" for key in getattr(secure_boot, kind)}
    traits.one_of |= {f"dbx with {key.data}" for key in secure_boot.dbx}
    traits.allowed |= {f"driver {one}" for one in document.drivers}
    traits.allowed |= {f"firmware application {one}" for one in document.firmware_applications}
    traits.allowed |= {f"GRUB command {_text(one)}" for one in document.grub.commands}
    traits.allowed |= {f"GRUB file {one}" for one in document.grub.files}
    traits.allowed |= {
        f"event {one} in PCR {pcr}" for pcr, events in document.other_events.items() for one in events
    }
    return traits


def file_table(measured: Mapping[str, Mapping[str, Iterable[str]]]) -> tuple[list[DivergentRule], int]:
    """Rows for files that differ between machines which have them, and how many files do not."""
    rows, shared = [], 0
    for path in _in_order(set(digests) for digests in measured.values()):
        having = {machine: set(digests[path]) for machine, digests in measured.items() if path in digests}
        for digest in sorted(set().union(*having.values())):
            breaks = tuple(machine for machine, values in having.items() if values != {digest})
            if breaks:
                rows.append(DivergentRule(f"only {digest} as {_text(path)}", breaks))
            else:
                shared += 1
    return rows, shared


def show_table(rows: Sequence[DivergentRule], shared: int, machines: int, messages: Messages) -> None:
    """The table, on stderr: the policy is what goes to stdout."""
    if shared:
        messages.note(f"{shared} rules hold for all {machines} machines")
    if not rows:
        return
    messages.note("machines differ in what follows; as the only one of its kind, a rule would break these:")
    width = max(len(row.rule) for row in rows[:_SHOWN_ROWS])
    for row in rows[:_SHOWN_ROWS]:
        more = len(row.breaks) - _SHOWN_MACHINES
        named = ", ".join(row.breaks[:_SHOWN_MACHINES]) + (f" and {more} more" if more > 0 else "")
        messages.note(f"  {row.rule:<{width}}  {named}")
    if len(rows) > _SHOWN_ROWS:
        messages.note(f"  and {len(rows) - _SHOWN_ROWS} more rules")


def machine_names(paths: Sequence[str]) -> list[str]:
    """The paths without what all have in front and behind: machines are told apart by what differs."""
    split = [path.split("/") for path in paths]
    while len(split) > 1 and min(map(len, split)) > 1 and len({parts[0] for parts in split}) == 1:
        split = [parts[1:] for parts in split]
    while len(split) > 1 and min(map(len, split)) > 1 and len({parts[-1] for parts in split}) == 1:
        split = [parts[:-1] for parts in split]
    return ["/".join(parts) for parts in split]


def _boot_rules(name: str, boot: BootVariant) -> Iterable[str]:
    for kind, digests in (
        ("kernel image", boot.images),
        ("kernel file", boot.kernel_files),
        ("initrd", boot.initrd_files or boot.initrds),
        ("load options", boot.load_options),
        ("stub input", boot.inputs),
        ("extension", boot.extensions),
        ("section of the unified kernel", boot.sections),
    ):
        if digests:
            yield f"{kind} {' '.join(digests)} ({_text(name)})"
    if boot.command_line is not None:
        yield f"command line {_text(boot.command_line)}"


def _in_order(sets: Iterable[set[str]]) -> list[str]:
    return sorted(set().union(*sets))


def _text(text: str) -> str:
    return text if text.isprintable() else ascii(text)[1:-1]


def _fingerprint(value: object) -> str:
    return hashlib.sha256(msgspec.json.encode(value)).hexdigest()[:12]
