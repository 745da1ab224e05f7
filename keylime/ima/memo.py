"""Memory of list lines that were judged before: fleets run the same files, so most lines are known.

It holds only what would be computed again: the value that a line extends, for lines whose verdict depends on
nothing but the line itself, the policy and the tenant's keys.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

import msgspec

from keylime.hashes import HashAlgorithm
from keylime.ima.replay import ExtendMode

_MAX_VIEWS = 64
MAX_LINE_BYTES = 1024  # longer lines are computed again every time, so that they cannot fill the memory
LINE_OVERHEAD = 200  # bytes that a remembered line costs beside its own


class ViewKey(msgspec.Struct, frozen=True):
    """What a verdict about a line depends on: policy content, tenant's keys, and what is extended how."""

    policy: str
    tenant_keys: bytes
    bank: HashAlgorithm
    mode: ExtendMode


@dataclass(slots=True)
class MemoView:
    """The lines known under one key, each with the value that it extends.

    `accepted` lines are allowed by digest or by a tenant's key. `excluded` ones only by an exclude
    expression, which is counted each time. `signed` ones are allowed while the key with the given
    fingerprint is known. `size` is what all of them cost, in bytes.
    """

    accepted: dict[bytes, bytes] = field(default_factory=dict)
    excluded: dict[bytes, bytes] = field(default_factory=dict)
    signed: dict[bytes, bytes] = field(default_factory=dict)
    size: int = 0

    def __len__(self) -> int:
        return len(self.accepted) + len(self.excluded) + len(self.signed)

    def clear(self) -> None:
        """Forget everything; others who hold this view see it at once."""
        self.accepted.clear()
        self.excluded.clear()
        self.signed.clear()
        self.size = 0


class EntryMemo:
    """The lines that one process knows, in `capacity` bytes; shared by all appraisals."""

    def __init__(self, capacity: int = 48 << 20) -> None:
        self.capacity = capacity
        self._views: OrderedDict[ViewKey, MemoView] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(view) for view in self._views.values())

    @property
    def size(self) -> int:
        """What all lines cost, in bytes."""
        return sum(view.size for view in self._views.values())

    def view(self, key: ViewKey) -> MemoView:
        """The lines known under `key`; an empty view the first time."""
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = MemoView()
        self._views.move_to_end(key)
        return view

    def remember(self, view: MemoView, lines: dict[bytes, bytes], line: bytes, value: bytes) -> None:
        """Adds a line to one of the three kinds of `view`, if it fits; for others `trim` makes room."""
        cost = 0 if line in lines else len(line) + LINE_OVERHEAD
        if view.size + cost <= self.capacity and len(line) <= MAX_LINE_BYTES:
            lines[line] = value
            view.size += cost

    def trim(self) -> None:
        """Forget views that were not used for long, until there is room. Called after every appraisal."""
        least = LINE_OVERHEAD + MAX_LINE_BYTES  # that is what every line finds
        while len(self._views) > _MAX_VIEWS or self.size > max(self.capacity - least, 0):
            self._views.popitem(last=False)[1].clear()
