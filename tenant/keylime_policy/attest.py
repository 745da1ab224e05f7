"""`keylime_attest`: appraises evidence again that was kept of agents' attestations.

Evidence is a folder for each agent, by its id, with a folder for each attestation, by its time (ISO 8601);
in there are the files that `keylime-policy check` takes, by the names below.
"""

import argparse
import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from keylime.command_line import OneLineParser
from keylime.errors import ConfigError
from keylime.measured_boot.boot_policy import built_in_policies
from keylime.version import add_version
from keylime_policy.arguments import build_parser
from keylime_policy.check import judge_files
from keylime_policy.files import read_text
from keylime_policy.messages import Messages, run_program
from keylime_policy.offline import Conclusion

_PROGRAM = "keylime_attest"
_ALL = "all"
_FIRST = ("first", "none")
_LAST = ("last", "none")

# What a folder may hold: the flags of `check`, and the names of the file, the best first.
_FILES = (
    ("--ima-log", ("ascii_runtime_measurements", "binary_runtime_measurements")),
    ("--boot-log", ("binary_bios_measurements",)),
    ("--os-log", ("tpm2-measure.log",)),
    ("--ak", ("ak", "ak.tpm2b_public", "ak.pem")),
    ("--runtime-policy", ("runtime-policy.json",)),
    ("--runtime-policy-sig-key", ("runtime-policy.pub",)),
    ("--mb-policy", ("mb-policy.json",)),
)
_BOOT_RULES = "--mb-policy-name"
_TEXTS = (("--nonce", "nonce"), (_BOOT_RULES, "mb-policy-name"), ("--tpm-policy", "tpm-policy.json"))
_POLICIES = ("runtime-policy.json", "mb-policy.json", "tpm-policy.json")
_DEMANDED = ("--quote", "--ak", "--nonce")


@dataclass(frozen=True, slots=True)
class Record:
    """One attestation: whose, when, and the folder with its evidence."""

    agent: str
    time: datetime.datetime
    folder: Path


def main() -> NoReturn:
    """The console script. Exit status: 0 when everything was accepted, 1 when not, 2 for wrong flags."""
    parser = _parser()
    options = parser.parse_args()
    run_program(_PROGRAM, lambda: _attest(options, Messages(_PROGRAM)), failed=1)


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=_PROGRAM,
        description="Appraise again what was kept of agents' attestations, with the appraisal of the "
        "verifier. Exit status: 0 all accepted, 1 some not.",
    )
    add_version(parser)
    parser.add_argument("-u", "--uuid", default=_ALL, help="only this agent (default: all)")
    parser.add_argument(
        "-s",
        "--start",
        metavar="TIME",
        default=_FIRST[0],
        help="from this time on (default: first)",
    )
    parser.add_argument(
        "-e",
        "--end",
        metavar="TIME",
        default=_LAST[0],
        help="up to this time, such as 2026-02-03T04:05:06Z (default: last)",
    )
    parser.add_argument(
        "--evidence", metavar="DIR", help="where evidence was kept: a folder ID/TIME for each attestation"
    )
    return parser


def _attest(options: argparse.Namespace, messages: Messages) -> int:
    start, end = _time("--start", options.start, _FIRST), _time("--end", options.end, _LAST)
    if options.evidence is None:
        # Scripts rely on the status: verifiers and registrars keep no records of their own.
        messages.note(
            "nothing was looked at: no evidence is kept by itself; --evidence names a folder with some"
        )
        return 0
    records = [
        record
        for record in _records(Path(options.evidence), options.uuid)
        if (start is None or record.time >= start) and (end is None or record.time <= end)
    ]
    if not records:
        raise ConfigError(f"--evidence {options.evidence}: there is no attestation of {_whose(options)}")
    failed: dict[str, int] = {}
    for (record,) in messages.progress([(record,) for record in records], len(records), "Appraising"):
        reason = _judged(record, messages)
        when = record.time.isoformat()
        if reason is None:
            judged = any((record.folder / name).is_file() for name in _POLICIES)
            more = "" if judged else "; nothing judged: no policy was kept"
            print(f"Agent {record.agent} was in attested state at {when}{more}")
        else:
            failed[record.agent] = failed.get(record.agent, 0) + 1
            print(f"Agent {record.agent} was NOT in attested state at {when}: {reason}")
    if failed:
        names = ", ".join(f"{agent} ({count})" for agent, count in sorted(failed.items()))
        print(f"Agents that were not in attested state: {names}")
        return 1
    agents = len({record.agent for record in records})
    print(f"All agents were in attested state ({agents} agents, {len(records)} attestations)")
    return 0


def _whose(options: argparse.Namespace) -> str:
    agent = "any agent" if options.uuid == _ALL else f"agent {options.uuid}"
    return f"{agent} from {options.start} to {options.end}"


def _time(option: str, text: str, words: tuple[str, ...]) -> datetime.datetime | None:
    if text in words:
        return None
    found = _parsed_time(text)
    if found is None:
        raise ConfigError(f"{option} {text}: expected a time such as 2026-02-03T04:05:06Z, or {words[0]}")
    return found


def _parsed_time(text: str) -> datetime.datetime | None:
    """A time in ISO 8601; without a zone it is in UTC."""
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=datetime.UTC)


def _records(directory: Path, agent: str) -> Iterator[Record]:
    if not directory.is_dir():
        raise ConfigError(f"--evidence {directory}: no such directory")
    for home in sorted(path for path in directory.iterdir() if path.is_dir()):
        if agent not in (_ALL, home.name):
            continue
        for folder in sorted(path for path in home.iterdir() if path.is_dir()):
            time = _parsed_time(folder.name)
            if time is None:
                raise ConfigError(
                    f"--evidence {folder}: the name of the folder is no time such as 2026-02-03T04:05:06Z"
                )
            yield Record(home.name, time, folder)


def _judged(record: Record, messages: Messages) -> str | None:
    """Why the evidence is not accepted; None if it is. What cannot be read, or is missing, is not."""
    known = built_in_policies().get_policy_names()
    try:
        flags = dict(_arguments(record.folder))
        missing = [flag.removeprefix("--") for flag in _DEMANDED if flag not in flags]
        if missing:
            return f"its evidence has no {', no '.join(missing)}"
        if flags.get(_BOOT_RULES, known[0]) not in known:
            return f"its mb-policy-name is none of {', '.join(known)}"
        arguments = [f"{flag}={value}" for flag, value in flags.items()]
        judgement = judge_files(build_parser(known).parse_args(["check", *arguments]), _refuse, messages)
    except ConfigError as error:
        return str(error)
    if judgement.outcome is Conclusion.ACCEPTED:
        return None
    if judgement.reason is not None:
        return judgement.reason
    more = len(judgement.findings) + judgement.omitted - 1
    return judgement.findings[0].explanation + (f" (and {more} more findings)" if more else "")


def _arguments(folder: Path) -> Iterator[tuple[str, str]]:
    for flag, names in _FILES:
        found = next((folder / name for name in names if (folder / name).is_file()), None)
        if found is not None:
            yield flag, str(found)
    if any((folder / name).is_file() for name in ("quote", "quote.msg")):
        yield "--quote", str(folder / "quote")
    for flag, name in _TEXTS:
        if (folder / name).is_file():
            yield flag, read_text(flag, folder / name).strip()


def _refuse(reason: str) -> NoReturn:
    raise ConfigError(reason)
