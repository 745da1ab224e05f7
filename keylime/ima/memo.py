"""Memory of list lines that were judged before: fleets run the same files, so most lines are known.

It holds only what would be computed again: the value that a line extends, for lines whose verdict depends on
nothing but the line itself, the policy and the tenant's keys.
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from keylime.hashes import HashAlgorithm
from keylime.ima.replay import ExtendMode

_MAX_VIEWS = 64
MAX_LINE_BYTES = 1024  # longer lines are computed again every time, so that they cannot fill the memory


@dataclass(frozen=True, slots=True)
class ViewKey:
    """What a verdict about a line depends on: policy content, tenant's keys, and what is extended how."""

    policy: str
    tenant_keys: bytes
    bank: HashAlgorithm
    mode: ExtendMode


@dataclass(frozen=True, slots=True)
class MemoView:
    """The lines known under one key, each with the value that it extends.

    `accepted` lines are allowed by digest or by a tenant's key. `excluded` ones only by an exclude
    expression, which is counted each time. `signed` ones are allowed while the key with the given
    fingerprint is known.
    """

    accepted: dict[bytes, bytes] = field(default_factory=dict)
    excluded: dict[bytes, bytes] = field(default_factory=dict)
    signed: dict[bytes, bytes] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.accepted) + len(self.excluded) + len(self.signed)

    def clear(self) -> None:
        """Forget everything; others who hold this view see it at once."""
        self.accepted.clear()
        self.excluded.clear()
        self.signed.clear()


class EntryMemo:
    """The lines that one process knows, at most `capacity`, which is 1 or more; shared by all appraisals."""

    def __init__(self, capacity: int = 1 << 17) -> None:
        self.capacity = capacity
        self._views: OrderedDict[ViewKey, MemoView] = OrderedDict()

    def __len__(self) -> int:
        return sum(len(view) for view in self._views.values())

    def view(self, key: ViewKey) -> MemoView:
        """The lines known under `key`; an empty view the first time."""
        view = self._views.get(key)
        if view is None:
            view = self._views[key] = MemoView()
        self._views.move_to_end(key)
        return view

    def trim(self) -> None:
        """Forget views that were not used for long, until there is room. Called after every appraisal."""
        while len(self._views) > _MAX_VIEWS or len(self) >= self.capacity:
            self._views.popitem(last=False)[1].clear()
