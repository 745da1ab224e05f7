"""The attack catalogue, docs/attacks.md: its rows, and the tests that bear their ids.

`python -m tests.attacks.catalogue` writes the tests into the last column of the page.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent.parent
PAGE = TESTS.parent / "docs" / "attacks.md"


@dataclass(frozen=True, slots=True)
class NamedTest:
    """A test, by its file below `tests/` and its name."""

    file: str
    name: str


# Tests that do not bear the id of a row that they prove, by what is attacked.
ELSEWHERE: Mapping[str, Sequence[NamedTest]] = {
    "R2": (NamedTest("unit/tenant/test_ek_check.py", "test_a_certificate_of_an_unknown_maker_is_refused"),),
    "R3": (NamedTest("unit/pki/test_ek.py", "test_an_unfit_authority_is_refused"),),
    "R5": (NamedTest("unit/pki/test_ek.py", "test_the_mark_of_factorable_keys_is_found"),),
    "R18": (
        NamedTest(
            "unit/tenant/test_enrolment.py",
            "test_the_verifier_gets_the_key_that_was_checked_and_the_documented_blanks",
        ),
    ),
    "R19": (
        NamedTest(
            "unit/tenant/test_enrolment.py", "test_a_quote_by_another_key_than_the_registered_one_is_refused"
        ),
    ),
    "Y1": (
        NamedTest("integration/test_agent.py", "test_nobody_talks_to_an_agent_without_a_trusted_certificate"),
    ),
    "Y2": (
        NamedTest(
            "attacks/test_payload_attacks.py",
            "test_a_second_delivery_of_the_same_shares_never_runs_again",
        ),
    ),
    "Y3": (
        NamedTest(
            "attacks/test_payload_attacks.py",
            "test_shares_that_do_not_fit_derive_nothing_and_do_not_block_the_right_ones",
        ),
    ),
    "Y4": (
        NamedTest("attacks/test_payload_attacks.py", "test_the_auth_tag_of_another_agent_derives_nothing"),
    ),
    "Y5": (NamedTest("unit/tenant/test_enrolment.py", "test_the_verifier_gets_v_and_never_k_or_u"),),
    "Y6": (NamedTest("attacks/test_payload_attacks.py", "test_an_altered_ciphertext_writes_nothing"),),
    "Y10": (NamedTest("unit/test_secure_mount.py", "test_what_others_could_have_made_is_refused"),),
    "Y12": (
        NamedTest(
            "unit/tenant/test_enrolment.py",
            "test_a_payload_key_that_was_swapped_after_the_quote_is_refused",
        ),
    ),
    "Y13": (NamedTest("unit/test_secure_mount.py", "test_emptying_deletes_everything_and_follows_no_link"),),
    "N4": (
        NamedTest("integration/test_tls_contexts.py", "test_a_client_refuses_a_server_of_another_authority"),
    ),
    "S3": (
        NamedTest("integration/test_verifier_faults.py", "test_promises_hold_on_postgresql"),
        NamedTest("integration/test_verifier_faults.py", "test_promises_hold_under_random_faults"),
    ),
    "S4": (
        NamedTest(
            "integration/test_verifiers_share.py",
            "test_the_late_pass_of_a_verifier_that_was_stopped_is_refused_and_judged_again",
        ),
    ),
    "S10": (
        NamedTest(
            "integration/test_verifier_attestation.py",
            "test_stop_ends_the_polling_and_reactivate_begins_it_again",
        ),
    ),
    "V6": (
        NamedTest(
            "integration/test_revocation_delivery.py",
            "test_a_receiver_with_a_certificate_of_another_authority_learns_nothing",
        ),
    ),
    "L3": (
        NamedTest(
            "integration/test_verifiers_share.py",
            "test_a_policy_that_is_replaced_at_one_verifier_binds_the_agents_of_the_other",
        ),
    ),
    "H2": (
        NamedTest(
            "unit/pki/test_files.py", "test_writing_replaces_a_symbolic_link_and_leaves_its_target_alone"
        ),
    ),
    "H4": (
        NamedTest(
            "integration/test_tls_contexts.py", "test_an_unusable_trust_file_stops_with_option_and_path"
        ),
    ),
    "P6": (
        NamedTest("unit/verifier/test_lifecycle.py", "test_silence_does_not_hide_a_failure"),
        NamedTest("unit/verifier/test_lifecycle.py", "test_defects_and_rejections_never_add_up_to_silence"),
    ),
    "P12": (
        NamedTest("integration/test_verifier_faults.py", "test_promises_hold_on_postgresql"),
        NamedTest("integration/test_verifier_faults.py", "test_promises_hold_under_random_faults"),
    ),
    "P13": (
        NamedTest(
            "unit/keylime_policy/test_offline.py", "test_a_tampered_machine_gets_the_findings_of_a_verifier"
        ),
    ),
}

_ROW = re.compile(r"\| ([A-Z]\d+) \|.*\|")
_BEARER = re.compile(r"^[ \t]*(?:async )?def test_((?:[a-z]\d+_)+)", re.MULTILINE)


def ids_of_rows(page: str) -> list[str]:
    """The ids of all rows, in their order."""
    return [row[1] for line in page.splitlines() if (row := _ROW.fullmatch(line))]


def bearers() -> dict[str, set[str]]:
    """By id, the files below `tests/` with tests that bear it: test_r8_r9_... bears R8 and R9."""
    files: defaultdict[str, set[str]] = defaultdict(set)
    for path in TESTS.rglob("test_*.py"):
        for borne in _BEARER.findall(path.read_text("utf-8")):
            for name in borne.strip("_").split("_"):
                files[name.upper()].add(path.relative_to(TESTS).as_posix())
    return files


def filled(page: str) -> str:
    """The page with the files of its tests in the last column of each row."""
    files = bearers()
    for row_id, named in ELSEWHERE.items():
        files[row_id] = files.get(row_id, set()) | {test.file for test in named}
    return "".join(_filled_line(line, files) for line in page.splitlines(keepends=True))


def _filled_line(line: str, files: Mapping[str, Iterable[str]]) -> str:
    row = _ROW.fullmatch(line.rstrip("\n"))
    if row is None:
        return line
    *cells, _ = line.rstrip("\n").removesuffix("|").split(" | ")
    tests = ", ".join(f"`{file}`" for file in sorted(files.get(row[1], ())))
    return " | ".join([*cells, tests]).rstrip() + " |\n"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text("utf-8")), "utf-8")
