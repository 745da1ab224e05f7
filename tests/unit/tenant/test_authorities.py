from pathlib import Path

import pytest

from keylime.errors import ConfigError
from keylime_tenant.ca.authorities import authority_directory


@pytest.mark.parametrize("flag", [None, "default"])
def test_without_a_directory_the_ca_is_in_the_working_directory(flag: str | None) -> None:
    assert authority_directory(flag, {"KEYLIME_DIR": "/srv/keylime"}) == Path("/srv/keylime/ca")


@pytest.mark.parametrize("flag", ["defualt", "Default", "defaul", "deafult"])
def test_a_mistyped_default_makes_no_ca_somewhere_else(
    flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"no directory '{flag}'.*did you mean 'default'.*write ./{flag}"):
        authority_directory(flag, {})
    assert authority_directory(f"./{flag}", {}) == Path(flag)
    (tmp_path / flag).mkdir()
    assert authority_directory(flag, {}) == Path(flag)


@pytest.mark.parametrize("flag", ["ca", "fleet-ca", "/etc/keylime/default-ca"])
def test_another_name_is_a_directory(flag: str) -> None:
    assert authority_directory(flag, {}) == Path(flag)
