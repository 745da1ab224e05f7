"""Compiled runtime policies that are kept: the last ones, within bounds, and all that somebody uses."""

import weakref
from collections import OrderedDict
from collections.abc import Callable

from keylime.ima.runtime_policy import RuntimePolicy
from keylime_verifier.agents.policy_categories import TextHash

MOST_BYTES = 96 << 20
"""Of the last ones together: a policy with 100,000 paths takes about 40 MB."""
_NAME = 320  # bytes that a name takes with its first digest, measured on 64-bit Linux
_DIGEST = 90  # bytes that a further digest takes


class KeptPolicies:
    """By the hashes of their texts. What is not kept any more is found as long as an agent is held to it.

    A fleet that is added machine by machine would compile its policy for each of them, were it kept only by
    the agents.
    """

    def __init__(
        self, most_bytes: int = MOST_BYTES, measure: Callable[[RuntimePolicy], int] | None = None
    ) -> None:
        self._most_bytes = most_bytes
        self._measure = measure or size_of
        self._used: weakref.WeakValueDictionary[TextHash, RuntimePolicy] = weakref.WeakValueDictionary()
        # Where more are in use than are kept, each look may keep another one.
        self._sizes: weakref.WeakKeyDictionary[RuntimePolicy, int] = weakref.WeakKeyDictionary()
        self._last: OrderedDict[TextHash, RuntimePolicy] = OrderedDict()
        self._bytes = 0

    def get(self, key: TextHash) -> RuntimePolicy | None:
        """The policy under `key`, if it is still there."""
        policy = self._used.get(key)
        if key in self._last:
            self._last.move_to_end(key)
        elif policy is not None:
            self.keep(key, policy)
        return policy

    def keep(self, key: TextHash, policy: RuntimePolicy) -> None:
        """Keeps a policy, and as many of those before it as there is room for."""
        self._used[key] = policy
        if policy not in self._sizes:
            self._sizes[policy] = self._measure(policy)
        before = self._last.pop(key, None)
        self._bytes += self._sizes[policy] - (0 if before is None else self._sizes[before])
        self._last[key] = policy
        while self._bytes > self._most_bytes and len(self._last) > 1:
            self._bytes -= self._sizes[self._last.popitem(last=False)[1]]


def size_of(policy: RuntimePolicy) -> int:
    """About how many bytes a compiled policy takes."""
    maps = (policy.digests, policy.keyrings, policy.ima_buf)
    names = sum(map(len, maps))
    digests = sum(sum(map(len, one.values())) for one in maps)
    return _NAME * names + _DIGEST * (digests - names)
