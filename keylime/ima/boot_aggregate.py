"""boot_aggregate: the first entry of every list, a hash of the boot PCRs that ties the list to its boot."""

import msgspec

from keylime.errors import MalformedEvidence
from keylime.ima.measurement_list import BOOT_AGGREGATE, Entry


class BootAggregates(msgspec.Struct, frozen=True):
    """What is known of the boot at hand: hex `digests` that its boot_aggregate may have.

    `algorithms` are the digest algorithms (as IMA names them) of which the right value must be among them;
    a boot_aggregate of another one may still be right. `after_kexec` are digests that a later one may have.
    """

    digests: frozenset[str] = frozenset()
    algorithms: frozenset[str] = frozenset()
    after_kexec: frozenset[str] = frozenset()

    def decide(self, entry: Entry) -> bool:
        """Whether the value of `entry` could be computed, so that another one is wrong."""
        return entry.digest_algorithm in self.algorithms

    def at(self, index: int) -> frozenset[str]:
        """The digests that a boot_aggregate may have that is entry `index` of the list."""
        return self.digests | self.after_kexec if index else self.digests


def is_boot_aggregate(entry: Entry | MalformedEvidence) -> bool:
    """Whether `entry` is what the kernel measures before anything else; a violation or a buffer is not."""
    return (
        isinstance(entry, Entry)
        and entry.name == BOOT_AGGREGATE
        and entry.buffer is None
        and not entry.is_violation
    )
