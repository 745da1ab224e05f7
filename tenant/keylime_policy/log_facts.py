"""Numbers that logs show by themselves, whoever vouches for them: what a person compares and writes down."""

from collections.abc import Mapping
from dataclasses import dataclass

from keylime.errors import MalformedEvidence
from keylime.hashes import HashAlgorithm
from keylime.ima.measurement_list import Entry, parse_line, split_lines
from keylime.ima.replay import modes_of, replay
from keylime.ima.whole_entries import with_whole_entries
from keylime.measured_boot.os_measurements import replay_os
from keylime.measured_boot.replay import ParsedBootLog
from keylime.measured_boot.user_space_log import UnreadableUserSpaceLog, UserSpaceLog
from keylime.tpm.pcr import IMA_PCR, MEASURED_BOOT_PCRS, PcrValues

_SHOWN_BANKS = (HashAlgorithm.SHA1, HashAlgorithm.SHA256)


@dataclass(frozen=True, slots=True)
class ImaFacts:
    """Numbers of an IMA list: `pcr10` is where its replay ends, for each bank."""

    entries: int
    violations: int
    pcr10: Mapping[HashAlgorithm, bytes]


@dataclass(frozen=True, slots=True)
class BootFacts:
    """What the PCRs hold if the logs of a boot are true."""

    events: int
    pcrs: Mapping[HashAlgorithm, Mapping[int, bytes]]


def ima_facts(ima_list: bytes, asked: HashAlgorithm | None, quoted: PcrValues | None) -> ImaFacts:
    """The facts of an ASCII list; PCR 10 for SHA-1, SHA-256, and the banks asked for and quoted."""
    lines = [line for line in with_whole_entries(split_lines(ima_list)) if line]
    entries = []
    for line in lines:
        try:
            entries.append(parse_line(line))
        except MalformedEvidence:
            continue  # extends nothing that we could tell
    banks = dict.fromkeys((*_SHOWN_BANKS, *([asked] if asked else [])))
    ends = {bank: replay(entries, bank) for bank in banks}
    if quoted is not None:
        ends[quoted.bank] = _quoted_end(entries, quoted)
    return ImaFacts(entries=len(lines), violations=sum(entry.is_violation for entry in entries), pcr10=ends)


def boot_facts(log: ParsedBootLog, os_log: UserSpaceLog | UnreadableUserSpaceLog | None = None) -> BootFacts:
    """The facts of the logs of a boot: PCRs of measured boot, and others that the firmware's extends."""
    readable = os_log if isinstance(os_log, UserSpaceLog) else None
    used = MEASURED_BOOT_PCRS | {event.pcr for event in log.log.events if event.is_extended}
    pcrs = {
        bank: {index: value for index, value in replay_os(readable, bank, values).items() if index in used}
        for bank, values in log.pcrs.items()
    }
    return BootFacts(len(log.log.events), pcrs)


def _quoted_end(entries: list[Entry], quoted: PcrValues) -> bytes:
    """Where the replay ends if the kernel extends as the quote shows; natively where it shows nothing."""
    ends = [replay(entries, quoted.bank, mode=mode) for mode in modes_of(quoted.bank)]
    return next((end for end in ends if end == quoted.values.get(IMA_PCR)), ends[0])
