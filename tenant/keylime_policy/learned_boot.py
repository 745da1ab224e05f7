"""Reference states that are learned by boot chain: of one machine, of a fleet, with the next boot added."""

from collections.abc import Sequence
from dataclasses import dataclass

from keylime.documents.strict_json import load_document
from keylime.errors import ConfigError, MalformedEvidence, PolicyError
from keylime.measured_boot.boot_reading import Chain
from keylime.measured_boot.component_changes import BootFiles, add_boot, drop_variants, merge
from keylime.measured_boot.components import ReferenceStateDocument, parse_document
from keylime.measured_boot.event_log import parse_event_log
from keylime.measured_boot.learning import learn_components, to_json
from keylime.measured_boot.reference_state import secure_boot_is_on
from keylime.measured_boot.unproven import not_expected, unproven
from keylime_policy.fleet import boot_traits, machine_names, show_table, table
from keylime_policy.messages import Messages
from keylime_policy.own_source import NOT_ITS_SOURCE, check_boot_log
from keylime_policy.sources import SourceFile

COMPONENTS = "components"
SECURE_BOOT_OFF = "Secure Boot is off in this boot log; --without-secureboot accepts that"
POLICIES = (COMPONENTS, *(chain.value for chain in Chain))


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What `update-reference` is asked for."""

    reference: SourceFile
    boot_log: SourceFile | None = None
    kernel: SourceFile | None = None
    initrds: tuple[SourceFile, ...] = ()
    command_line: str | None = None
    name: str | None = None
    dropped: tuple[str, ...] = ()


def learn_from_log(
    log: SourceFile, messages: Messages, *, policy: str, without_secure_boot: bool
) -> tuple[ReferenceStateDocument, int]:
    """The reference state of a boot and the exit status by its own log. Raises ConfigError."""
    document = _learn(log, policy=policy, without_secure_boot=without_secure_boot)
    tell(document, messages)
    return document, check_boot_log(to_json(document), log.content, messages, policy)


def learn_from_fleet(
    logs: Sequence[SourceFile], messages: Messages, *, policy: str, without_secure_boot: bool
) -> tuple[ReferenceStateDocument, int]:
    """One reference state for the machines whose logs these are, and the exit status. Raises ConfigError.

    Machines that cannot share it with most of the others are named, and left out.
    """
    machines = dict(zip(machine_names([log.path for log in logs]), logs, strict=True))
    learned: dict[str, ReferenceStateDocument] = {}
    status = 0
    for name, log in machines.items():
        try:
            learned[name] = _learn(log, policy=policy, without_secure_boot=without_secure_boot)
        except ConfigError as error:
            messages.warning(f"left out: {error}")
            status = NOT_ITS_SOURCE
    if not learned:
        raise ConfigError(f"--for-fleet: none of {len(logs)} boot logs can be used")
    kinds = [_kind(document) for document in learned.values()]
    kind = max(kinds, key=kinds.count)
    for name, document in learned.items():
        if _kind(document) != kind:
            messages.warning(f"left out: {name} boots by {_kind(document)}, most machines by {kind}")
            status = NOT_ITS_SOURCE
    kept = {name: document for name, document in learned.items() if _kind(document) == kind}
    merged = _merge_all(list(kept.values()))
    tell(merged, messages)
    for name in kept:
        status = max(
            status, check_boot_log(to_json(merged), machines[name].content, messages, policy, source=name)
        )
    show_table(*table(boot_traits(learned)), len(learned), messages)
    return merged, status


def update_reference(update: Update, messages: Messages) -> tuple[ReferenceStateDocument, int]:
    """The reference state with a boot more, or fewer, and the exit status. Raises ConfigError."""
    document = _read_reference(update.reference)
    before = document
    log = update.boot_log
    with update.reference.blamed():
        if log is not None:
            other = _learn(log, policy=document.chain, without_secure_boot=not document.secure_boot.on)
            if update.name in document.components.boot:
                raise PolicyError(f"boot {update.name!r} is in it already; give another --name")
            document = merge(document, other, new_name=update.name)
        if update.kernel is not None:
            added = update.name or _name_of(update.kernel.path)
            document = add_boot(document, _boot_files(update, update.kernel), added)
        if update.dropped:
            document = drop_variants(document, update.dropped)
    _show_change(before, document, messages)
    tell(document, messages)
    if log is None:
        return document, 0
    return document, check_boot_log(to_json(document), log.content, messages, COMPONENTS)


def tell(document: ReferenceStateDocument, messages: Messages) -> None:
    """What the reference state does not demand, and what it takes for absent."""
    messages.note(
        f"boot chain {document.chain}: for policy {COMPONENTS!r} or {document.chain!r} of the verifier"
    )
    messages.warnings(unproven(document))
    for text in not_expected(document):
        messages.note(text)
    others = sum(map(len, document.other_events.values()))
    if others:
        messages.note(
            f"{others} events that no rule knows are listed by digest in other_events, "
            f"of PCR {', '.join(document.other_events)}"
        )


def _learn(source: SourceFile, *, policy: str, without_secure_boot: bool) -> ReferenceStateDocument:
    with source.blamed():
        log = parse_event_log(source.content)
        if not without_secure_boot and not secure_boot_is_on(log):
            raise MalformedEvidence(SECURE_BOOT_OFF)
        document = learn_components(log)
        if policy not in {COMPONENTS, document.chain}:
            raise MalformedEvidence(f"boots by chain {document.chain}, not by {policy}")
    return document


def _kind(document: ReferenceStateDocument) -> str:
    return f"{document.chain} with Secure Boot {'on' if document.secure_boot.on else 'off'}"


def _merge_all(documents: Sequence[ReferenceStateDocument]) -> ReferenceStateDocument:
    merged = documents[0]
    for document in documents[1:]:
        merged = merge(merged, document)
    return merged


def _read_reference(source: SourceFile) -> ReferenceStateDocument:
    text = source.text
    with source.blamed():
        value = load_document(text, "reference state")
        if isinstance(value, dict) and "kernels" in value:
            raise PolicyError(
                "is of policy `example`, whose kernels are alternatives: add one by hand, or make one by "
                f"`create measured-boot --policy {COMPONENTS}`"
            )
        return parse_document(value)


def _boot_files(update: Update, kernel: SourceFile) -> BootFiles:
    return BootFiles(
        kernel=kernel.content,
        initrds=tuple(initrd.content for initrd in update.initrds),
        command_line=update.command_line,
    )


def _name_of(path: str) -> str:
    name = path.rpartition("/")[2]
    return name.removeprefix("vmlinuz-") or name


def _show_change(before: ReferenceStateDocument, after: ReferenceStateDocument, messages: Messages) -> None:
    for component in ("firmware", "boot_loader", "boot"):
        old, new = (getattr(document.components, component) for document in (before, after))
        signs = [
            *(f"-{name}" for name in old if name not in new),
            *(f"+{name}" if name not in old else name for name in new),
        ]
        messages.note(
            f"{component.replace('_', '-')}: {', '.join(old) or 'none'} -> {', '.join(signs) or 'none'}"
        )
    if before == after:
        messages.warning("nothing has changed: the boot was in the reference state already")
