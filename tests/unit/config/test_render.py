import sys
from pathlib import Path

import pytest

from keylime.config.loader import load_settings
from keylime.config.model import ComponentTable
from keylime.config.options import TABLES
from keylime.config.packaged import main
from keylime.config.render import render

_PACKAGED = Path(__file__).parents[3] / "config"
_TABLES = pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.component)


@_TABLES
def test_the_packaged_file_is_what_the_table_says(table: ComponentTable) -> None:
    assert (_PACKAGED / f"{table.component}.conf").read_text() == render(table)


@_TABLES
def test_the_packaged_file_sets_every_option_to_its_default(table: ComponentTable, tmp_path: Path) -> None:
    path = tmp_path / f"{table.component}.conf"
    path.write_text(render(table))
    settings = load_settings(table.component, environ={}, etc=tmp_path, usr_etc=tmp_path)
    defaults = load_settings(table.component, environ={}, etc=tmp_path / "none", usr_etc=tmp_path / "none")
    assert settings.warnings == ()
    for option in table.options:
        default = defaults._values[option.key].value if option.packaged is None else option.packaged
        assert settings._values[option.key].value == default
        assert (settings.source(option.name, option.section) == "default") == option.ignored


def test_packaged_daemons_listen_where_others_reach_them_and_the_default_does_not() -> None:
    listening = {
        (table.component, option.name): (option.default, option.packaged)
        for table in TABLES.values()
        for option in table.options
        if option.packaged is not None
    }
    everywhere = ("127.0.0.1", "0.0.0.0")  # noqa: S104 - compared with, not bound to
    assert listening == {
        ("agent", "ip"): everywhere,
        ("registrar", "ip"): everywhere,
        ("verifier", "ip"): everywhere,
        ("verifier", "zmq_ip"): everywhere,
    }


def test_check_tells_a_stale_file_from_a_fresh_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["render", str(tmp_path)])
    main()
    monkeypatch.setattr(sys, "argv", ["render", "--check", str(tmp_path)])
    main()
    (tmp_path / "ca.conf").write_text("stale")
    with pytest.raises(SystemExit, match=r"differ from the tables: ca\.conf"):
        main()
