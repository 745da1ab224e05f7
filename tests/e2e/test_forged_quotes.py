"""Lies of software that sits on the agent's machine and has its certificate, but not the TPM: all are found.

Each lie starts from an agent in good standing and must end in Invalid Quote with a revocation that names why.
"""

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from keylime.ima.measurement_list import BOOT_AGGREGATE
from keylime.messages.verifier import OperationalState
from tests.lab.installation import Machine
from tests.lab.interposer import Interposer, Lie, Results, Seen, changed, honest, interposed
from tests.lab.site import Site, errors_of, script
from tests.lab.waiting import await_value

QUOTE = "qoute_validation.quote_validation"


@dataclass(frozen=True)
class Victim:
    """An agent whose answers can be changed on their way."""

    site: Site
    machine: Machine
    interposer: Interposer

    def is_caught(self, lie: Lie, event_id: str, deed: Callable[[], None] = lambda: None) -> None:
        """The verdict on `lie`, once `deed` is done: Invalid Quote, with this event, told to the agents."""
        site, interposer = self.site, self.interposer
        since, log = len(interposer.revocations), site.control.verifier.mark()
        interposer.lie = lie
        deed()
        try:
            record = site.await_state(self.machine, OperationalState.INVALID_QUOTE)
        finally:
            interposer.lie = honest
        assert record["last_event_id"] == event_id, record["last_findings"]
        assert record["attestation_status"] == "FAIL"
        told = await_value(lambda: interposer.revocations[since:] or None, "a revocation")
        assert [message["event_id"] for message in told] == [event_id]
        assert told[0]["agent_id"] == self.machine.agent_id
        assert told[0]["type"] == "revocation"
        asked = len(interposer.quotes)
        assert errors_of(site.control.verifier.text(log)) == []
        assert asked == len(interposer.quotes), "a machine that failed for good is not asked any more"


@pytest.fixture(scope="module")
def standing(site: Site) -> Iterator[Victim]:
    machine = site.running_machine()
    tool = script(machine.node.disk / "root/tool.sh", "#!/bin/sh\n")
    machine.measure(tool)
    policy = site.runtime_policy(machine)
    with interposed(machine, site.control, site.node("front")) as interposer:
        site.add(machine, "--cv_targethost", interposer.node.ip, "--runtime-policy", policy)
        yield Victim(site, machine, interposer)


@pytest.fixture
def victim(standing: Victim) -> Victim:
    """In good standing, whatever the test before did."""
    record = standing.site.record(standing.machine)
    if record["operational_state"] == OperationalState.INVALID_QUOTE:
        standing.site.reactivate(standing.machine)
    standing.site.await_passes(standing.machine)
    return standing


def with_bit_flipped(part: int, position: int) -> Lie:
    """A lie: one bit of the quote's part (0: attestation, 1: signature, 2: PCRs), `position` from its end."""

    def lie(_seen: Seen, results: Results) -> Results:
        parts = results["quote"].removeprefix("r").split(":")
        data = bytearray(base64.b64decode(parts[part]))
        data[-position] ^= 1
        parts[part] = base64.b64encode(data).decode()
        return changed(results, quote="r" + ":".join(parts))

    return lie


@pytest.mark.parametrize("position", [1, 100, 256])
def test_a_flipped_bit_in_the_signature(victim: Victim, position: int) -> None:
    victim.is_caught(with_bit_flipped(1, position), QUOTE)


@pytest.mark.parametrize("position", [1, 32, 40])
def test_a_flipped_bit_in_the_signed_attestation(victim: Victim, position: int) -> None:
    victim.is_caught(with_bit_flipped(0, position), QUOTE)


def test_a_flipped_bit_in_the_pcr_values(victim: Victim) -> None:
    def lie(_seen: Seen, results: Results) -> Results:
        parts = results["quote"].removeprefix("r").split(":")
        data = bytearray(base64.b64decode(parts[2]))
        first_value = data.index(b"\x20\x00") + 2  # after a little-endian size of 32
        data[first_value] ^= 1
        parts[2] = base64.b64encode(data).decode()
        return changed(results, quote="r" + ":".join(parts))

    victim.is_caught(lie, QUOTE)


def test_an_answer_from_before(victim: Victim) -> None:
    kept: list[Results] = []

    def keep(_seen: Seen, results: Results) -> Results:
        kept.append(results)
        return results

    victim.interposer.lie = keep
    await_value(lambda: kept, "an answer to keep")
    victim.site.await_passes(victim.machine)
    victim.is_caught(lambda _seen, _results: kept[0], QUOTE)


def test_another_machine_s_answer_to_the_same_nonce(victim: Victim) -> None:
    other = victim.site.running_machine()
    other.ima_list.write_bytes(victim.machine.ima_list.read_bytes())
    api = other.api(victim.site.control.administrator)

    def relay(seen: Seen, _results: Results) -> Results:
        return api.request(seen.method, seen.target).results

    victim.is_caught(relay, QUOTE)


@pytest.mark.parametrize("lie_about", ["hash_alg", "enc_alg", "sign_alg"])
def test_a_false_name_of_an_algorithm(victim: Victim, lie_about: str) -> None:
    other = {"hash_alg": "sha1", "enc_alg": "ecc", "sign_alg": "ecdsa"}
    victim.is_caught(
        lambda _seen, results: changed(results, **{lie_about: other[lie_about]}),
        f"qoute_validation.invalid_{lie_about}",
    )


def test_another_payload_key_than_the_quoted_one(victim: Victim) -> None:
    """Who gets V is decided by PCR 16, not by the answer's text."""

    def lie(_seen: Seen, results: Results) -> Results:
        key = results.get("pubkey")
        return results if key is None else changed(results, pubkey=key.replace("A", "B", 1))

    victim.interposer.lie = lie
    victim.site.reactivate(victim.machine)  # asks for the key again
    record = victim.site.await_state(victim.machine, OperationalState.INVALID_QUOTE)
    victim.interposer.lie = honest
    assert record["last_event_id"].startswith(("pcr_validation.", "qoute_validation."))
    assert record["attestation_status"] == "FAIL"


def test_an_ima_entry_left_out(victim: Victim) -> None:
    victim.machine.measure(victim.machine.node.disk / "root/tool.sh")
    victim.site.await_passes(victim.machine)

    def lie(_seen: Seen, results: Results) -> Results:
        lines = results["ima_measurement_list"].splitlines(keepends=True)
        return changed(results, ima_measurement_list="".join(lines[1:]), ima_measurement_list_entry=0)

    victim.is_caught(lie, "ima.begins_in_the_middle")


def test_an_ima_entry_with_another_digest(victim: Victim) -> None:
    def lie(_seen: Seen, results: Results) -> Results:
        lines = [line.split() for line in whole_list(victim.machine)]
        lines[-1][3] = "sha256:" + "0" * 64
        text = "".join(" ".join(words) + "\n" for words in lines)
        return changed(results, ima_measurement_list=text, ima_measurement_list_entry=0)

    victim.is_caught(lie, "ima.validation.ima_hash")  # the entry contradicts itself, whatever PCR 10 is


def test_an_unknown_file_hidden_behind_a_known_name(victim: Victim) -> None:
    """The file was measured; the list shows boot_aggregate's line in its place. Nothing comes after this."""
    unknown = script(victim.machine.node.disk / "root/unknown.sh", "#!/bin/sh\n# not in the policy\n")

    def lie(_seen: Seen, results: Results) -> Results:
        lines = whole_list(victim.machine)
        first = next(line for line in lines if line.endswith(BOOT_AGGREGATE))
        shown = [first if line.endswith(str(unknown)) else line for line in lines]
        return changed(
            results, ima_measurement_list="".join(f"{line}\n" for line in shown), ima_measurement_list_entry=0
        )

    victim.is_caught(lie, "ima.pcr_mismatch", deed=lambda: victim.machine.measure(unknown))


def whole_list(machine: Machine) -> list[str]:
    return machine.ima_list.read_text().splitlines()
