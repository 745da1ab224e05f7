"""The `example` policy: a PC that boots Linux through any chain that measures, held to one reference state.

The events of the boot are judged by `boot_events`. What the boot loaded (`boot_chain`) is compared with the
blessed kernels at the end.
"""

from dataclasses import dataclass

from keylime.findings.finding import JsonValue
from keylime.hashes import HashAlgorithm
from keylime.measured_boot.boot_chain import BootChain, boot_chain, text_of
from keylime.measured_boot.boot_events import BootEvents
from keylime.measured_boot.event_log import Event, EventLog
from keylime.measured_boot.example_reference import ExampleReference, GoodKernel, parse_example_reference
from keylime.measured_boot.policies import Judge, Objection

_RELEVANT_PCRS = frozenset({*range(10), 14})


@dataclass(frozen=True, slots=True)
class ExampleRules:
    """The `example` policy among the named ones."""

    def get_relevant_pcrs(self) -> frozenset[int]:
        """PCR 0-9, and PCR 14, where shim measures its own keys."""
        return _RELEVANT_PCRS

    def compile(self, refstate: JsonValue) -> Judge:
        """The judge for one reference state. Raises PolicyError, which names the member."""
        reference = parse_example_reference(refstate)

        def judge(log: EventLog, bank: HashAlgorithm) -> tuple[Objection, ...]:
            return tuple(_judge(reference, log, bank).objections)

        return judge


def _judge(reference: ExampleReference, log: EventLog, bank: HashAlgorithm) -> BootEvents:
    boot = BootEvents(reference, bank)
    boot.judge_events(log.events)
    chain = boot_chain(log.events, reference.other_events.get(4, ()))
    for event in chain.others:
        boot.unexpected(event, f"file {text_of(event)!r} is not expected")
    boot.judge_whole()
    _judge_kernel(boot, chain)
    return boot


def _judge_kernel(boot: BootEvents, chain: BootChain) -> None:
    if boot.bank is not HashAlgorithm.SHA256:
        reason = f"kernels are listed by SHA-256 digest, the quote covers the {boot.bank.label} bank"
        boot.objections.append(Objection(reason))
        return
    reasons = [_why_not_kernel(chain, good) for good in boot.reference.kernels]
    if all(reasons):
        alternatives = "; ".join(f"kernels[{position}]: {reason}" for position, reason in enumerate(reasons))
        boot.objections.append(Objection(f"no blessed kernel was booted ({alternatives or 'there is none'})"))


def _why_not_kernel(chain: BootChain, good: GoodKernel) -> str:
    if chain.applications != good.applications:
        return f"other images were started ({len(chain.applications)} of them)"
    if chain.initrds != good.initrds:
        if len(chain.initrds) == len(good.initrds):
            return "another initrd was loaded"
        return f"{len(chain.initrds)} initrds were loaded"
    files = 1 if good.kernel_file is None else len(good.kernel_file)
    if len(chain.kernel_files) != files:
        return f"{len(chain.kernel_files)} kernel files were loaded"
    if good.kernel_file is not None and chain.kernel_files != good.kernel_file:
        return "another kernel file was loaded"
    if not _is_command_line(chain.command_lines, good):
        return f"command line is {list(chain.command_lines)}, expected {good.command_line_text!r}"
    # Beside a text that is judged they say nothing new.
    if good.command_line is None and chain.load_options != good.load_options:
        return "the kernel was given other options"
    return ""


def _is_command_line(lines: tuple[str, ...], good: GoodKernel) -> bool:
    if good.command_line is None:
        return not lines
    pattern = good.command_line  # several lines: an attempt failed, and each must be a good one
    return bool(lines) and all(pattern.fullmatch(line) for line in lines)


@dataclass(frozen=True, slots=True)
class Observed:
    """What of a boot belongs into a reference state: firmware code, and events that no rule knows."""

    crtm_version: Event | None
    firmware_volumes: tuple[Event, ...]
    unlisted: tuple[Event, ...]


def observe(reference: ExampleReference, log: EventLog) -> Observed:
    """What `log` shows beside what `reference` lists in `other_events`, by SHA-256."""
    boot = _judge(reference, log, HashAlgorithm.SHA256)
    return Observed(boot.crtm_version, tuple(boot.firmware_volumes), tuple(boot.unlisted))
