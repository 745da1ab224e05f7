"""How the IMA lists of machines grow while somebody looks at the dashboard. Pure: time comes in.

The verifier tells how long a list is now, and keeps no past of it. Followed are the machines that were looked
at last.
"""

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence

from keylime_tenant.told_status import ToldStatus

MOST_MACHINES = 200
STEP_S = 600
_SAMPLES = 288  # two days


class Growth:
    """The lengths of some lists, at most one in ten minutes of each."""

    def __init__(self) -> None:
        self._lengths: OrderedDict[str, deque[tuple[float, int]]] = OrderedDict()

    def follow(self, agent_id: str) -> None:
        """From now on this machine's list is followed; the one that nobody has asked for longest is not."""
        self._lengths.setdefault(agent_id, deque(maxlen=_SAMPLES))
        self._lengths.move_to_end(agent_id)
        if len(self._lengths) > MOST_MACHINES:
            self._lengths.popitem(last=False)

    def take(self, statuses: Mapping[str, ToldStatus], now: float) -> None:
        """What the verifier says now of whichever machines."""
        for agent_id, lengths in self._lengths.items():
            status = statuses.get(agent_id)
            if status is None or not status.ima_entries:  # not told, or judged from the beginning again
                continue
            if lengths and now - lengths[-1][0] < STEP_S:
                lengths[-1] = lengths[-1][0], status.ima_entries
            else:
                lengths.append((now, status.ima_entries))

    def series(self, agent_id: str) -> tuple[float, Sequence[int]] | None:
        """Since when it was followed, and the lengths since then; None of what was seen but once."""
        lengths = self._lengths.get(agent_id)
        if lengths is None or len(lengths) < 2:
            return None
        return lengths[0][0], [length for _, length in lengths]
