"""Logs of what an operating system measured: captured, taken apart, changed and put together again."""

import functools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from keylime.hashes import HashAlgorithm
from tests.captures import DATA

SYSTEMD_262 = DATA / "boot-logs" / "systemd-262"
BOOTS = (
    "sdboot-type1",
    "sdboot-uki",
    "uki-direct",
    "uki-direct-machine2-boot1",
    "uki-direct-machine2-boot2",
    "uki-sb",
)
UNIFIED = tuple(name for name in BOOTS if name != "sdboot-type1")  # the other one has no log
BOOT_ID = "b628c4662b1941e9b487941f9f638b81"  # of sdboot-uki
SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256

Record = dict[str, Any]


def firmware_log(name: str) -> bytes:
    """The firmware's log of a captured boot."""
    return (SYSTEMD_262 / f"{name}.bin").read_bytes()


def os_log(name: str) -> bytes | None:
    """The operating system's log of the same boot, None for the one without."""
    path = SYSTEMD_262 / f"{name}.os.log"
    return path.read_bytes() if path.exists() else None


@functools.cache
def held(name: str, bank: HashAlgorithm = SHA256) -> Mapping[int, bytes]:
    """What the TPM held, as `tpm2_pcrread` showed it."""
    values = json.loads((SYSTEMD_262 / "pcrs.json").read_text())[name][bank.label]
    return {int(index): bytes.fromhex(value) for index, value in values.items()}


def take_apart(log: bytes) -> list[Record]:
    """The records of a log."""
    return [json.loads(piece) for piece in log.split(b"\x1e")[1:]]


def put_together(records: Iterable[Record]) -> bytes:
    """A log of these records, as systemd writes it."""
    return b"".join(
        b"\x1e" + json.dumps(record, separators=(",", ":")).encode() + b"\n" for record in records
    )


def os_record(pcr: int, word: str, kind: str, *, extended: bytes | None = None) -> Record:
    """The record of an extend with `word`, or with other bytes than it says."""
    data = word.encode() if extended is None else extended
    return {
        "pcr": pcr,
        "digests": [{"hashAlg": bank.label, "digest": bank.digest(data).hex()} for bank in (SHA1, SHA256)],
        "content_type": "systemd",
        "content": {"string": word, "bootId": BOOT_ID, "timestamp": 1, "eventType": kind},
    }
