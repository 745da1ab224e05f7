"""Every attack of the catalogue that an appraisal decides has a test that bears its id."""

import re
from pathlib import Path

import pytest

# Attack catalogue, tables Quote, IMA log and Measured boot.
CATALOGUE = (
    *(f"q{number}" for number in range(1, 33)),
    *(f"i{number}" for number in range(1, 34)),
    *(f"m{number}" for number in range(1, 14)),
)
MODULES = ("test_appraisal_quote.py", "test_appraisal_ima.py", "test_appraisal_boot.py")


def covered_ids() -> set[str]:
    """The ids in the names of the tests that judge whole rounds: test_i2_i3_... covers i2 and i3."""
    ids: set[str] = set()
    for module in MODULES:
        text = (Path(__file__).parent / module).read_text("utf-8")
        for name in re.findall(r"^def test_((?:[qim]\d+_)+)", text, re.MULTILINE):
            ids.update(name.strip("_").split("_"))
    return ids


@pytest.mark.parametrize("attack", CATALOGUE)
def test_each_attack_has_a_test_of_its_name(attack: str) -> None:
    assert attack in covered_ids()


def test_no_test_bears_an_id_that_the_catalogue_does_not_have() -> None:
    assert covered_ids() == set(CATALOGUE)
