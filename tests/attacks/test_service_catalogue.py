"""Every attack of the catalogue on registration, network and the verifier's state has a test."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent

# Attack catalogue, tables Registration, Network and State.
CATALOGUE = (
    *(f"r{number}" for number in range(1, 24)),
    *(f"n{number}" for number in range(1, 26)),
    *(f"s{number}" for number in range(1, 15)),
)
# Rows whose tests do not bear their id, by what is attacked.
ELSEWHERE = {
    "r3": ("unit/pki/test_ek.py", "test_an_unfit_authority_is_refused"),
    "r5": ("unit/pki/test_ek.py", "test_the_mark_of_factorable_keys_is_found"),
    "r18": (
        "unit/tenant/test_enrolment.py",
        "test_the_verifier_gets_the_key_that_was_checked_and_the_documented_blanks",
    ),
    "r19": (
        "unit/tenant/test_enrolment.py",
        "test_a_quote_by_another_key_than_the_registered_one_is_refused",
    ),
    "n4": ("integration/test_tls_contexts.py", "test_a_client_refuses_a_server_of_another_authority"),
    "s3": (
        "integration/test_verifier_nemesis.py",
        "test_no_verdict_is_lost_or_counted_twice_whatever_happens_to_verifiers_and_database",
    ),
    "s4": (
        "integration/test_verifiers_share.py",
        "test_the_late_verdict_of_a_verifier_that_was_stopped_is_refused",
    ),
    "s10": (
        "integration/test_verifier_attestation.py",
        "test_stop_ends_the_polling_and_reactivate_begins_it_again",
    ),
}
# Tokens and sessions exist only where agents report by themselves, which this release does not do.
NOT_OFFERED = {"n14", "n16"}


def named_ids() -> set[str]:
    """The ids in the names of tests: test_r8_r9_... covers r8 and r9."""
    ids: set[str] = set()
    for path in TESTS.rglob("test_*.py"):
        for name in re.findall(
            r"^(?:async )?def test_((?:[a-z]\d+_)+)", path.read_text("utf-8"), re.MULTILINE
        ):
            ids.update(name.strip("_").split("_"))
    return ids


@pytest.mark.parametrize("attack", CATALOGUE)
def test_each_attack_has_a_test(attack: str) -> None:
    assert attack in named_ids() | ELSEWHERE.keys() | NOT_OFFERED


def test_what_is_tested_elsewhere_is_there() -> None:
    for file, name in ELSEWHERE.values():
        assert f"def {name}(" in (TESTS / file).read_text("utf-8"), name
