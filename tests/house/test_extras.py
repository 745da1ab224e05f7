"""A program whose extra was not installed says so in one line."""

import pytest

from keylime.extras import extra_explained


def test_a_missing_package_is_named_with_the_extra_that_has_it() -> None:
    with pytest.raises(SystemExit) as end, extra_explained("keylime_verifier", "verifier"):
        raise ModuleNotFoundError(name="sqlalchemy.ext.asyncio")
    assert end.value.code == (
        "keylime_verifier: error: the Python package sqlalchemy is not installed; "
        'run: pip install "keylime[verifier]"'
    )


@pytest.mark.parametrize("name", ["keylime.gone", "keylime_verifier.gone", None])
def test_a_missing_module_of_ours_is_a_defect(name: str | None) -> None:
    with pytest.raises(ModuleNotFoundError), extra_explained("keylime_verifier", "verifier"):
        raise ModuleNotFoundError(name=name)
