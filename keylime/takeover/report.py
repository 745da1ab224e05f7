"""What came of taking over an existing installation: one item for each thing that was found there."""

import enum
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

_SHOWN = 200  # characters of a name that nobody could have given


class ItemKind(enum.Enum):
    """What an item is about."""

    REGISTRATION = "registration"
    AGENT = "agent"
    RUNTIME_POLICY = "runtime policy"
    BOOT_POLICY = "measured boot policy"


class Fate(enum.Enum):
    """What became of it. PRESENT: there it was already, and stays as it is."""

    TAKEN = "taken"
    CHANGED = "taken with a change"
    NOT_TAKEN = "not taken"
    PRESENT = "already here"


@dataclass(frozen=True, slots=True)
class Item:
    """One thing; `remarks` say what was changed, or why it was not taken and what to do."""

    kind: ItemKind
    name: str
    fate: Fate
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(cls, kind: ItemKind, name: str, remarks: Iterable[str] = ()) -> "Item":
        """Something that is taken, with a change if there are remarks."""
        said = tuple(remarks)
        return cls(kind, name, Fate.CHANGED if said else Fate.TAKEN, said)

    def __str__(self) -> str:
        said = f": {'; '.join(self.remarks)}" if self.remarks else ""
        return f"{self.kind.value} {printable(self.name)}: {self.fate.value}{said}"


def second_of(item: Item) -> Item:
    """What is said about a row whose id another row had before."""
    return Item(item.kind, item.name, Fate.NOT_TAKEN, ("another row has the same id",))


@dataclass(frozen=True, slots=True)
class TakeoverReport:
    """All items; `source` is the old database without a password, `release` what made it."""

    source: str
    release: str
    items: tuple[Item, ...]
    is_dry: bool = False

    @property
    def is_done_before(self) -> bool:
        """Whether all that can be taken had been taken before."""
        return all(item.fate in (Fate.PRESENT, Fate.NOT_TAKEN) for item in self.items)

    @property
    def noteworthy(self) -> tuple[Item, ...]:
        """The items that an operator reads one by one."""
        return tuple(item for item in self.items if item.remarks)

    def dry(self) -> "TakeoverReport":
        """The same, of a rehearsal."""
        return replace(self, is_dry=True)

    def summary(self) -> str:
        """All in one line."""
        counts = Counter((item.kind, item.fate) for item in self.items)
        parts = []
        for kind in ItemKind:
            said = [f"{counts[kind, fate]} {fate.value}" for fate in Fate if counts[kind, fate]]
            if said:
                parts.append(f"{kind.value}s: {', '.join(said)}".replace("policys", "policies"))
        verb = "would be taken over" if self.is_dry else "taken over"
        if self.is_done_before and any(item.fate is Fate.PRESENT for item in self.items):
            verb = "was taken over before, nothing new"
        found = "; ".join(parts) or "nothing there"
        return f"{self.source} ({self.release}) {verb}: {found}"

    def text(self) -> str:
        """A line for each item that is worth one, and the summary."""
        return "\n".join((*map(str, self.noteworthy), self.summary()))

    def to_json(self) -> str:
        """Every item, for programs."""
        items = [
            {
                "kind": item.kind.value,
                "name": printable(item.name),
                "fate": item.fate.value,
                "remarks": item.remarks,
            }
            for item in self.items
        ]
        counts = Counter(item.fate for item in self.items)
        document = {
            "source": self.source,
            "release": self.release,
            "dry_run": self.is_dry,
            "counts": {fate.value: counts[fate] for fate in Fate},
            "items": items,
        }
        return json.dumps(document, indent=2)


def printable(name: str) -> str:
    """A name as it stands in a line, whatever is in it."""
    shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
    return shown if shown.isprintable() and shown.strip() == shown and shown else ascii(shown)
