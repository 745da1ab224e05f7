import os
from pathlib import Path

import pytest

from keylime.errors import ConfigError
from keylime_agent.privileges import find_account, unreadable_files


@pytest.mark.parametrize(
    ("run_as", "told"),
    [("no-such-user", "there is no user 'no-such-user': make it"), ("root:no-such-group", "no group")],
)
def test_a_user_or_group_that_is_not_there_is_named_with_the_remedy(run_as: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        find_account(run_as)


def test_files_that_the_user_may_not_read_are_found_before_they_are_needed(tmp_path: Path) -> None:
    readable, gone = Path(os.__file__), tmp_path / "gone"
    assert unreadable_files([readable, gone]) == (gone,)
    assert unreadable_files([readable]) == ()
