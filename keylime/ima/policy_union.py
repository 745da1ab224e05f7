"""Several runtime policies that hold together: an entry is accepted if one of them accepts it.

With one reservation, which makes a union sound (docs/adr/0026-runtime-policies-in-parts.md): to exclude a
name, or to ignore a keyring, is not to judge it. Where one part does so and another one judges, the other
one's word counts. A part *judges* a name that it lists and does not exclude, and a keyring that it lists and
does not ignore.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from keylime.errors import PolicyError
from keylime.ima.digest_maps import DigestMap, united
from keylime.ima.excludes import Excludes
from keylime.ima.keyrings import Keyring
from keylime.ima.measurement_list import BOOT_AGGREGATE
from keylime.ima.runtime_policy import PolicyHash, RuntimePolicy

MAX_PARTS = 8


@dataclass(frozen=True, slots=True)
class _UnitedExcludes(Excludes):
    """Excludes what some part excludes and no part judges."""

    parts: tuple[RuntimePolicy, ...]

    def match(self, name: str) -> bool:
        is_excluded = False
        for part in self.parts:
            if part.excludes.match(name):
                is_excluded = True
            elif name in part.digests or name in part.keyrings or name in part.ima_buf:
                return False
        return is_excluded


def unite(parts: Sequence[RuntimePolicy]) -> RuntimePolicy:
    """The policy that `parts` are together; a single one stays itself.

    Raises PolicyError where they cannot hold together, or where one of them judges nothing.
    """
    if len(parts) == 1:
        return parts[0]
    if not 1 < len(parts) <= MAX_PARTS:
        raise PolicyError(f"{len(parts)} runtime policies cannot hold together: expected 1 to {MAX_PARTS}")
    for number, part in enumerate(parts, 1):
        if not part.demands_ima:
            raise PolicyError(f"runtime policy {number} of {len(parts)} judges nothing: leave it out")
    algorithms = {part.log_hash_alg.label for part in parts}
    if len(algorithms) > 1:
        raise PolicyError(f"ima.log_hash_alg: {' and '.join(sorted(algorithms))} cannot hold together")
    device_mappers = [part.dm_policy for part in parts if part.dm_policy is not None]
    if any(one.document != device_mappers[0].document for one in device_mappers):
        raise PolicyError("ima.dm_policy: two different device-mapper policies cannot hold together")
    keys = {key.fingerprint: key for part in parts for key in part.verification_keys.keys}
    sources = tuple(sorted({source for part in parts for source in part.excludes.sources}))
    keyrings = [_judged_keyrings(part) for part in parts]
    return RuntimePolicy(
        meta=max((part.meta for part in parts), key=lambda meta: (meta.generator, meta.version)),
        release=max(part.release for part in parts),
        digests=_union(part.digests for part in parts),
        excludes=_UnitedExcludes(sources, (), (), (), tuple(parts)),
        keyrings=_union(keyrings),
        ignored_keyrings=tuple(sorted({name for part in parts for name in part.ignored_keyrings})),
        log_hash_alg=parts[0].log_hash_alg,
        dm_policy=device_mappers[0] if device_mappers else None,
        ima_buf=_union(part.ima_buf for part in parts),
        verification_keys=Keyring(tuple(keys[fingerprint] for fingerprint in sorted(keys))),
        warnings=(),
        content_hash=PolicyHash("+".join(part.content_hash for part in parts)),
        judged_keyrings=frozenset(name for some in keyrings for name in some),
    )


def covers(new: RuntimePolicy, old: RuntimePolicy) -> bool:
    """Whether `new` accepts whatever `old` does, so that nothing has to be judged again."""
    return (
        new.demands_ima >= old.demands_ima
        and keeps_learned(new, old)
        and _has_all(new.digests, old.digests)
        and _has_all(new.ima_buf, old.ima_buf)
        # Of a value that is listed no other is right, whatever is excluded.
        and (BOOT_AGGREGATE in new.digests) == (BOOT_AGGREGATE in old.digests)
        and set(new.ignored_keyrings) == set(old.ignored_keyrings)
        and set(new.excludes.sources) >= set(old.excludes.sources)
        and set(new.verification_keys.keys) >= set(old.verification_keys.keys)
    )


def keeps_learned(new: RuntimePolicy, old: RuntimePolicy) -> bool:
    """Whether what a list taught under `old` holds under `new`: the keys that it vouched for, the devices."""
    return (
        new.log_hash_alg is old.log_hash_alg
        and (None if new.dm_policy is None else new.dm_policy.document)
        == (None if old.dm_policy is None else old.dm_policy.document)
        and _has_all(_judged_keyrings(new), _judged_keyrings(old))
    )


def overlaps(parts: Sequence[tuple[str, RuntimePolicy]]) -> list[str]:
    """What the excludes of one named part mean for the lists of another, where they touch it."""
    remarks = []
    for name, part in parts:
        for other, listed in parts:
            if other == name or not part.excludes.sources:
                continue
            count = sum(
                part.excludes.match(path) and not listed.excludes.match(path) for path in listed.digests
            )
            if count:
                remarks.append(
                    f"the excludes of {name!r} match {count} of {len(listed.digests)} names that {other!r} "
                    f"lists: these are judged by {other!r}, but what else they match there is not judged"
                )
    return remarks


def _judged_keyrings(part: RuntimePolicy) -> DigestMap:
    return {name: allowed for name, allowed in part.keyrings.items() if not part.ignores_keyring(name)}


def _union(maps: Iterable[DigestMap]) -> DigestMap:
    first, *others = maps
    for other in others:
        first = united(first, other)
    return first


def _has_all(new: DigestMap, old: DigestMap) -> bool:
    return all(name in new and set(new[name]) >= set(allowed) for name, allowed in old.items())
