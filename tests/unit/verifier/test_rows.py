"""What of a checkpoint is written with each pass, and what only when it has changed."""

from dataclasses import dataclass

import pytest
from msgspec.structs import replace

from keylime.appraisal.checkpoint import BootSession, Checkpoint
from keylime.ima.checkpoint import ImaCheckpoint, LearnedKeyring
from keylime.ima.runtime_policy import PolicyHash
from keylime_verifier.polling.rows import has_learned, lasting

BOOT = BootSession(3, 0, 1000, 1_700_000_000)
LIST = ImaCheckpoint(next_entry=5, anchored=True, pcr=bytes(32), bank="sha256", matched=2, length=3)
BEFORE = Checkpoint(boot=BOOT, ima=LIST, public_key="a key", ima_policy=PolicyHash("1"))


@dataclass(frozen=True)
class Change:
    """A checkpoint after `BEFORE`."""

    name: str
    after: Checkpoint
    is_learned: bool


CHANGES = [
    Change("nothing", BEFORE, False),
    Change("a clock", replace(BEFORE, boot=replace(BOOT, clock=2000)), False),
    Change("a round without a verdict", replace(BEFORE, incomplete_rounds=1), False),
    Change(
        "a longer list",
        replace(BEFORE, ima=replace(LIST, next_entry=9, pcr=b"1" * 32, matched=4, length=4)),
        False,
    ),
    Change("a reboot", replace(BEFORE, boot=replace(BOOT, reset_count=4)), True),
    Change("a boot at another time", replace(BEFORE, boot=replace(BOOT, boottime=0)), True),
    Change("no boot", replace(BEFORE, boot=None), True),
    Change("another bank", replace(BEFORE, ima=replace(LIST, bank="sha1")), True),
    Change("a key", replace(BEFORE, ima=replace(LIST, keyrings=(LearnedKeyring(".ima", ()),))), True),
    Change("another payload key", replace(BEFORE, public_key="another"), True),
    Change("another policy", replace(BEFORE, ima_policy=PolicyHash("2")), True),
    Change("firmware", replace(BEFORE, firmware_version=1), True),
]


@pytest.mark.parametrize("change", CHANGES, ids=[change.name for change in CHANGES])
def test_what_lasts_has_changed_or_has_not(change: Change) -> None:
    assert has_learned(BEFORE, change.after) is change.is_learned
    assert (lasting(BEFORE) != lasting(change.after)) is change.is_learned
