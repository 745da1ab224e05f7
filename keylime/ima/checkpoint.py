"""What has been proven about one agent's measurement list: enough to go on from there in the next round."""

import msgspec

from keylime.hashes import HashAlgorithm
from keylime.ima.device_mapper_policy import DeviceMapperState


class LearnedKey(msgspec.Struct, frozen=True):
    """A signature key that the list put into a keyring; `spki` is DER (base64 in JSON)."""

    key_id: int
    spki: bytes


class LearnedKeyring(msgspec.Struct, frozen=True):
    """The keys learned for one keyring, in the order of the list."""

    name: str
    keys: tuple[LearnedKey, ...]


class ImaCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The state after the last accepted round of one boot.

    `next_entry` is the index to ask for; `pcr` is PCR 10 of `bank` before that entry, None before the first
    round. `anchored` is whether the list was seen to begin with boot_aggregate: nothing goes on from a
    checkpoint that does not say so. `extend_mode` is how this kernel extends the bank
    (`keylime.ima.replay.ExtendMode`), None while unknown. `matched` and `length` count the lines of the last
    round: those that the quote covered, and all. `kexec` is whether a kexec was measured since the last
    boot_aggregate.
    """

    next_entry: int = 0
    anchored: bool = False
    pcr: bytes | None = None
    bank: str = ""
    extend_mode: str | None = None
    matched: int = 0
    length: int = 0
    keyrings: tuple[LearnedKeyring, ...] = ()
    device_mapper: DeviceMapperState = DeviceMapperState()
    kexec: bool = False

    @classmethod
    def fresh(cls) -> "ImaCheckpoint":
        """The checkpoint before the first round: ask for entry 0."""
        return cls()

    @property
    def lag(self) -> int:
        """How many lines the last list was ahead of its quote."""
        return self.length - self.matched

    def continues(self, bank: HashAlgorithm) -> bool:
        """Whether a round in `bank` can go on from here instead of from entry 0."""
        return self.anchored and self.bank == bank.label
