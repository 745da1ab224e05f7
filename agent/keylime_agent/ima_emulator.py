"""keylime_ima_emulator: extends PCR 10 of a software TPM by the IMA list, as the kernel does with a real one.

Two ways: follow a list and extend what is new in it, or measure given files oneself (`--append`).
"""

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from keylime.command_line import OneLineParser
from keylime.errors import KeylimeError, MalformedEvidence, TpmError
from keylime.hashes import HashAlgorithm
from keylime.ima.measurement_list import BOOT_AGGREGATE, Entry, ima_ng_line, parse_line, split_lines
from keylime.ima.replay import extend_value
from keylime.ima.templates import FileDigest
from keylime.interruption import end_interrupted
from keylime.tpm.device import Tpm, choose_tcti
from keylime.tpm.pcr import IMA_PCR, PcrSelection, extend
from keylime.version import add_version
from keylime_agent.evidence import IMA_LIST

_POLL_S = 0.2
_AGGREGATED = frozenset(range(10))  # the PCRs of boot_aggregate, except where it is SHA-1


def main() -> None:
    """The console script."""
    arguments = _parse_arguments(sys.argv[1:])
    os.environ.setdefault("TSS2_LOG", "all+NONE")
    try:
        _run(arguments, os.environ)
    except KeylimeError as error:
        print(f"keylime_ima_emulator: error: {error}", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        print(f"keylime_ima_emulator: error: {error.filename or ''}: {error.strerror}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        end_interrupted("keylime_ima_emulator")


def _parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(
        prog="keylime_ima_emulator", description="Extends PCR 10 of a software TPM as the kernel's IMA would."
    )
    add_version(parser)
    parser.add_argument(
        "-a",
        "--hash_algs",
        nargs="+",
        metavar="BANK",
        choices=[algorithm.label for algorithm in HashAlgorithm],
        help="PCR banks to extend (default: every bank of the TPM)",
    )
    parser.add_argument(
        "-i",
        "--ima-hash-alg",
        default="sha1",
        choices=["sha1", "sha256", "sha384", "sha512"],
        help="hash of the list's second column (default: sha1)",
    )
    parser.add_argument(
        "-f", "--ima-log", type=Path, default=IMA_LIST, help="the list (default: the kernel's)"
    )
    parser.add_argument(
        "--append",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="measure these files: add them to the list and extend, then end",
    )
    parser.add_argument("--once", action="store_true", help="extend what is in the list now, then end")
    parser.add_argument(
        "--force", action="store_true", help="work on a TPM that is not known as a software TPM"
    )
    return parser.parse_args(arguments)


def _run(arguments: argparse.Namespace, environ: Mapping[str, str]) -> None:
    with Tpm.open(choose_tcti(environ)) as tpm:
        if not tpm.properties().is_emulator and not arguments.force:
            raise TpmError(
                f"the TPM ({tpm.properties().vendor or 'unnamed'}) is no software TPM; on real machines the "
                "kernel extends PCR 10, and doing it twice makes every attestation fail"
            )
        banks = _banks(tpm, arguments.hash_algs)
        if arguments.append:
            measure_files(
                tpm,
                banks,
                arguments.ima_log,
                arguments.append,
                HashAlgorithm.from_label(arguments.ima_hash_alg),
            )
        else:
            _follow(tpm, banks, arguments.ima_log, once=arguments.once)


def _banks(tpm: Tpm, labels: Iterable[str] | None) -> frozenset[HashAlgorithm]:
    present = tpm.banks()
    if labels is None:
        return present
    wanted = frozenset(HashAlgorithm.from_label(label) for label in labels)
    if wanted - present:
        raise TpmError(
            f"the TPM has no PCR bank {', '.join(sorted(bank.label for bank in wanted - present))}"
        )
    return wanted


def measure_files(
    tpm: Tpm,
    banks: frozenset[HashAlgorithm],
    ima_log: Path,
    files: Iterable[Path],
    template_hash: HashAlgorithm = HashAlgorithm.SHA1,
) -> None:
    """Add an ima-ng entry (SHA-256) for each file to `ima_log` and extend PCR 10. Raises TpmError, OSError.

    A new list gets its boot_aggregate first. As in the kernel the line comes before the extension: a quote
    made in between covers the list's beginning, which verifiers accept.
    """
    lines = []
    if not ima_log.exists() or ima_log.stat().st_size == 0:
        lines.append(_boot_aggregate_line(tpm, template_hash))
    for path in files:
        digest = hashlib.sha256(path.read_bytes()).digest()
        lines.append(
            ima_ng_line(FileDigest("sha256", digest), str(path.absolute()), template_hash=template_hash)
        )
    for line in lines:
        with ima_log.open("ab") as file:
            file.write(line + b"\n")
        _extend(tpm, banks, parse_line(line))


def _boot_aggregate_line(tpm: Tpm, template_hash: HashAlgorithm) -> bytes:
    bank = HashAlgorithm.SHA256 if HashAlgorithm.SHA256 in tpm.banks() else HashAlgorithm.SHA1
    covered = _AGGREGATED if bank is HashAlgorithm.SHA256 else frozenset(range(8))
    aggregate = tpm.read_pcrs(PcrSelection(bank, covered)).digest(bank)
    return ima_ng_line(FileDigest(bank.label, aggregate), BOOT_AGGREGATE, template_hash=template_hash)


def _follow(tpm: Tpm, banks: frozenset[HashAlgorithm], ima_log: Path, *, once: bool) -> None:
    done = 0
    warned = False
    while True:
        entries = _entries(ima_log)
        if entries and entries[0].name != BOOT_AGGREGATE and not warned:
            warned = True
            print(
                f"keylime_ima_emulator: warning: {ima_log} does not begin with boot_aggregate, as a kernel's "
                "list does: verifiers refuse it under a runtime policy. --append writes one into a new list",
                file=sys.stderr,
            )
        if done == 0 or done > len(entries):
            done = extended_entries(entries, {bank: _pcr(tpm, bank) for bank in banks})
        for entry in entries[done:]:
            _extend(tpm, banks, entry)
        done = len(entries)
        if once:
            return
        time.sleep(_POLL_S)


def extended_entries(entries: Sequence[Entry], pcrs: Mapping[HashAlgorithm, bytes]) -> int:
    """How many entries of the list PCR 10 already holds, the same number in every bank.

    Raises MalformedEvidence when it holds something else than a beginning of this list.
    """
    values = {bank: bytes(bank.size) for bank in pcrs}
    for count in range(len(entries) + 1):
        if values == pcrs:
            return count
        if count < len(entries):
            values = {
                bank: extend(bank, value, extend_value(entries[count], bank))
                for bank, value in values.items()
            }
    raise MalformedEvidence(
        "PCR 10 does not hold a beginning of this list; reset the TPM (a reboot) to start anew"
    )


def _entries(ima_log: Path) -> list[Entry]:
    text = ima_log.read_bytes()
    return [parse_line(line) for line in split_lines(text[: text.rfind(b"\n") + 1])]


def _extend(tpm: Tpm, banks: frozenset[HashAlgorithm], entry: Entry) -> None:
    tpm.extend_pcr(IMA_PCR, {bank: extend_value(entry, bank) for bank in banks})


def _pcr(tpm: Tpm, bank: HashAlgorithm) -> bytes:
    return tpm.read_pcrs(PcrSelection(bank, frozenset({IMA_PCR}))).values[IMA_PCR]


if __name__ == "__main__":
    main()
