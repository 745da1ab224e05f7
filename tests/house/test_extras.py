"""A program whose extra was not installed says so in one line."""

import gc

import pytest

from keylime.extras import extra_explained
from keylime_tenant.program import main as tenant


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


def test_the_collector_rests_while_a_program_is_imported_and_leaves_what_was() -> None:
    before = gc.get_freeze_count()  # never undone: what is frozen already would be looked at by later tests
    with extra_explained("keylime_verifier", "verifier"):
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before


def test_who_does_without_the_collector_goes_on_without_it() -> None:
    gc.disable()
    try:
        with extra_explained("keylime_verifier", "verifier"):
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_wrong_usage_of_the_tenant_leaves_the_collector_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["keylime_tenant", "no-such-command"])
    with pytest.raises(SystemExit):
        tenant()
    assert gc.isenabled()


def test_the_collector_works_again_after_a_start_that_failed() -> None:
    with pytest.raises(SystemExit), extra_explained("keylime_verifier", "verifier"):
        raise ModuleNotFoundError(name="sqlalchemy")
    assert gc.isenabled()
