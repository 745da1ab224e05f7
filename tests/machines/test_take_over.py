"""Packages on a machine that has the databases of an earlier Keylime: services start and know its agents."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.fakes.old_databases import DATA
from tests.machines.commands import README, TWO_MACHINES, blocks_of
from tests.machines.conftest import Boot

RELEASES = ("6.5.1-odd", "7.14.3-odd", "upgraded-6.4.3-to-7.14.3")


def rows(file: Path, question: str) -> set[str]:
    with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as database:
        return {str(row[0]) for row in database.execute(question)}


@pytest.mark.parametrize("release", RELEASES)
def test_an_earlier_installation_goes_on(boot: Boot, release: str) -> None:
    (control,) = boot("control")
    control.run(blocks_of(README, TWO_MACHINES)[0])
    for name in ("cv_data.sqlite", "reg_data.sqlite"):
        shutil.copyfile(DATA / release / name, control.path("/var/lib/keylime") / name)
    control.run("chown keylime: /var/lib/keylime/*.sqlite")
    control.run("systemctl enable --now keylime_verifier.service")
    control.run("systemctl enable --now keylime_registrar.service")

    known = json.loads(control.run("keylime_tenant --json -c cvlist").stdout)
    shown = json.dumps(known)
    before = rows(DATA / release / "cv_data.sqlite", "SELECT agent_id FROM verifiermain")
    taken = {agent_id for agent_id in before if json.dumps(agent_id) in shown}
    assert taken, shown
    left = before - taken
    said = control.journal("keylime_verifier")
    assert all(agent_id in said for agent_id in left), (left, said)

    registered = control.run("keylime_tenant --json -c reglist").stdout
    before = rows(DATA / release / "reg_data.sqlite", "SELECT agent_id FROM registrarmain")
    missing = {agent_id for agent_id in before if json.dumps(agent_id) not in registered}
    said = control.journal("keylime_registrar")
    assert before - missing
    assert all(agent_id in said for agent_id in missing), (missing, said)

    # A second start has nothing to take over.
    control.run("systemctl restart keylime_verifier keylime_registrar")
    assert json.loads(control.run("keylime_tenant --json -c cvlist").stdout) == known
