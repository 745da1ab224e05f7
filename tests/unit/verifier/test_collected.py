"""Evidence that was collected, as the appraisal gets it: a quote is parsed once, and judged as its text."""

from typing import Any

import msgspec
from msgspec.structs import replace

from keylime.appraisal.evidence import Evidence, parse_evidence
from keylime.findings.finding import Finding
from keylime.hashes import HashAlgorithm
from keylime.messages.push_evidence import ReceivedLog, ReceivedQuote
from keylime.tpm.pcr import PcrValues
from keylime_verifier.pushing.collected import Collected, answer_of, read_evidence
from tests.evidence import reference
from tests.fakes.attesting_agent import Machine
from tests.fakes.pushing_machine import b64
from tests.unit.verifier.test_negotiation import CHALLENGE, ECC, POLICY, chosen_of, offer_of

HELD_TO = reference(ECC.tpm2b_public, runtime_policy=POLICY)


def quote_data(**changes: str) -> dict[str, str]:
    values = PcrValues(HashAlgorithm.SHA256, {10: bytes(32), 16: bytes(32)})
    message, signature, subject_data = Machine(ECC).quote_of(CHALLENGE, values)[1:].split(":")
    return {"message": message, "signature": signature, "subject_data": subject_data, **changes}


def collected(data: dict[str, str]) -> Collected:
    items: list[dict[str, Any]] = []
    asked = chosen_of(offer_of(ECC, entries=0)).items
    for one in asked:
        match one:
            case ReceivedQuote():
                items.append({"evidence_class": "certification", "evidence_type": "tpm_quote", "data": data})
            case ReceivedLog():
                log = {"entry_count": 0, "entries": ""}
                items.append({"evidence_class": "log", "evidence_type": one.evidence_type, "data": log})
    return read_evidence({"evidence_collected": msgspec.Raw(msgspec.json.encode(items))}, asked)


def both_ways(evidence: Collected) -> tuple[Evidence | Finding, Evidence | Finding]:
    answer = answer_of(evidence, HELD_TO, 0)
    return parse_evidence(answer), parse_evidence(replace(answer, quote=None))


def test_a_quote_is_the_same_parsed_at_once_or_from_its_text() -> None:
    evidence = collected(quote_data())
    assert evidence.parsed_quote is not None
    once, again = both_ways(evidence)
    assert isinstance(once, Evidence)
    assert once == again


def test_what_is_no_quote_is_a_finding_of_the_appraisal() -> None:
    evidence = collected(quote_data(signature=b64(bytes(3000))))
    assert evidence.parsed_quote is None
    once, again = both_ways(evidence)
    assert isinstance(once, Finding)
    assert once == again
