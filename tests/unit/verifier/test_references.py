"""What agents are judged by: compiled once for a fleet that is added one by one, kept within bounds."""

import asyncio
import base64
import gc
import json
import weakref
from typing import cast

from msgspec.structs import replace

from keylime.ima.runtime_policy import EMPTY_POLICY, PolicyHash, RuntimePolicy, parse_runtime_policy
from keylime_verifier.agents.policy_categories import TextHash
from keylime_verifier.policies.kept import KeptPolicies, size_of
from keylime_verifier.policies.references import References
from keylime_verifier.policies.runtime import accept_runtime_policy, compile_stored_policy
from keylime_verifier.policies.store import PolicyStore
from tests.fakes.attesting_agent import attestation_key
from tests.unit.verifier.test_status import ENROLMENT

TEXT, ONE, TWO, THREE = (TextHash(name) for name in ("text", "1", "2", "3"))


def policy_text(name: str) -> str:
    """A policy that allows one file."""
    document = json.loads(EMPTY_POLICY)
    document["digests"] = {name: ["ab" * 32]}
    return json.dumps(document)


class CountingPolicies:
    """One text under every name; how often it was read."""

    def __init__(self) -> None:
        self.reads = 0

    async def text_hash(self, kind: str, name: str) -> TextHash | None:
        return TEXT

    async def text(self, text_hash: TextHash) -> str | None:
        self.reads += 1
        await asyncio.sleep(0)
        return policy_text("/bin/true")

    async def covered(self, name: str, text_hash: TextHash) -> frozenset[PolicyHash]:
        return frozenset()


def references_of(policies: CountingPolicies) -> References:
    return References(
        cast(PolicyStore, policies),
        lambda _text: None,
        ignore_tomtou=False,
        evaluate_boot_always=False,
        now=lambda: 0.0,
    )


def test_a_policy_that_came_with_an_agent_is_not_compiled_again() -> None:
    policies = CountingPolicies()
    references = references_of(policies)
    text = base64.b64encode(policy_text("/bin/true").encode()).decode()
    received = accept_runtime_policy(text, None, signature_required=False)

    async def act() -> None:
        references.know({TEXT: received.compiled})
        assert await references.demands_ima(TEXT)
        assert await references.compiled_parts(["a"]) == [("a", received.compiled)]

    asyncio.run(act())
    assert policies.reads == 0
    assert received.compiled.content_hash == compile_stored_policy(received.text).content_hash


def test_a_policy_is_compiled_once_for_agents_that_come_together_and_for_those_that_come_later() -> None:
    policies = CountingPolicies()
    references = references_of(policies)
    ak_tpm = base64.b64encode(attestation_key().tpm2b_public).decode()
    enrolment = replace(ENROLMENT, ak_tpm=ak_tpm, measured_boot_policy=None)

    async def act() -> None:
        assert await references.demands_ima(TEXT)
        await asyncio.gather(*(references.build(enrolment) for _ in range(3)))
        gc.collect()  # no agent has it now
        await references.build(enrolment)

    asyncio.run(act())
    assert policies.reads == 1


def test_the_last_policies_are_kept_within_bounds_and_others_while_they_are_used() -> None:
    first, second, third = (parse_runtime_policy(policy_text(name)) for name in ("/1", "/2", "/3"))
    kept = KeptPolicies(most_bytes=2 * size_of(first))
    kept.keep(ONE, first)
    kept.keep(TWO, second)
    assert kept.get(ONE) is first
    kept.keep(THREE, third)  # the second was asked for longest ago
    gone = weakref.ref(second)
    assert kept.get(TWO) is second, "somebody has it"
    del second
    kept.keep(ONE, first)
    kept.keep(THREE, third)
    gc.collect()
    assert gone() is None
    assert kept.get(TWO) is None
    assert (kept.get(ONE), kept.get(THREE)) == (first, third)


def test_what_a_policy_takes_is_found_out_once_however_often_it_is_kept() -> None:
    measured: list[RuntimePolicy] = []

    def measure(policy: RuntimePolicy) -> int:
        measured.append(policy)
        return 1

    kept = KeptPolicies(most_bytes=2, measure=measure)
    used = [parse_runtime_policy(policy_text(f"/{number}")) for number in range(3)]
    for key, policy in zip((ONE, TWO, THREE), used, strict=True):
        kept.keep(key, policy)
    for _ in range(3):
        for key, policy in zip((ONE, TWO, THREE), used, strict=True):
            assert kept.get(key) is policy, "each time the one that was asked for longest ago makes room"
    assert measured == used


def test_one_that_is_larger_than_the_bounds_is_kept_until_the_next_comes() -> None:
    kept = KeptPolicies(most_bytes=1)
    kept.keep(ONE, parse_runtime_policy(policy_text("/1")))
    assert kept.get(ONE) is not None
    kept.keep(TWO, parse_runtime_policy(policy_text("/2")))
    gc.collect()
    assert kept.get(ONE) is None
