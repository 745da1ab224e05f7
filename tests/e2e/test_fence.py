"""A hacked machine is fenced off: the demonstration, run as a test where root may make namespaces."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.demo.fence import STEPS, check_environment, perform
from tests.demo.fence_nodes import QUOTE_INTERVAL_S
from tests.demo.fence_stage import Response
from tests.lab.private_root import NotPermittedError

pytestmark = pytest.mark.xdist_group("e2e-fence")

_PLACES = ("/etc/keylime", "/var/lib/keylime", "/usr/etc/keylime", "/root/greets.sh", "/root/allowlist.txt")


def traces() -> dict[str, object]:
    """What the demonstration would leave on this machine if it did not keep to its own."""
    mounts = Path("/proc/self/mountinfo").read_text()
    return {
        "mounted by keylime": [line for line in mounts.splitlines() if "keylime" in line.split()[4]],
        "host name": Path("/proc/sys/kernel/hostname").read_text(),
        **{place: Path(place).exists() for place in _PLACES},
        **{place: contents(Path(place)) for place in ("/etc/ssh", "/root/.ssh", "/etc/shadow")},
    }


def contents(place: Path) -> list[tuple[str, int, int]]:
    """The files at `place`, with what changes when they are written."""
    files = [place] if place.is_file() else sorted(place.rglob("*"))
    return [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]


@dataclass(slots=True)
class Performance:
    """What there was to see."""

    before: dict[str, object]
    after: dict[str, object] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    responses: list[Response] = field(default_factory=list)

    def step(self, title: str, work: Callable[[], str]) -> None:
        work()
        self.titles.append(title)


@pytest.fixture(scope="module")
def performance(tmp_path_factory: pytest.TempPathFactory) -> Performance:
    seen = Performance(traces())
    try:
        check_environment()
        perform(tmp_path_factory.mktemp("fence"), seen.step, seen.responses, lambda _: None)
    except NotPermittedError as error:
        pytest.skip(f"no nodes with a network and files of their own: {error}")
    seen.after = traces()
    return seen


def test_every_step_is_seen(performance: Performance) -> None:
    assert len(performance.titles) == STEPS


def test_a_bad_entry_is_detected_in_the_next_round_and_both_machines_act(performance: Performance) -> None:
    assert [response.act for response in performance.responses] == ["shell script", "Python module"]
    for response in performance.responses:
        # Generous for a machine that runs other tests as well; by itself it is about one quote_interval.
        assert 0 < response.detected < QUOTE_INTERVAL_S + 5
        assert response.executed.keys() == {"node1", "node2"}
        assert all(
            response.detected < moment < response.detected + 10 for moment in response.executed.values()
        )


def test_nothing_is_left_on_the_machine_that_hosts_the_nodes(performance: Performance) -> None:
    assert performance.after == performance.before
