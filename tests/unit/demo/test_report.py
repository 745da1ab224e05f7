import io

import pytest
from rich.console import Console

from tests.demo.report import Report, Seen, conclusion


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ((Seen.ALL, Seen.ALL), "[green]Every step was seen.[/green]"),
        ((Seen.ALL, Seen.LATE), "[yellow]Every step was seen, some of them late.[/yellow]"),
        (
            (Seen.ALL, None),
            "[yellow]Every step was seen of the first part; the second was left out.[/yellow]",
        ),
        ((Seen.PARTLY, Seen.ALL), "[red]Not every step was seen.[/red]"),
        ((Seen.PARTLY, None), "[red]Not every step was seen.[/red]"),
    ],
)
def test_the_last_line_says_what_was_seen(parts: tuple[Seen | None, ...], sentence: str) -> None:
    assert conclusion(*parts) == sentence


def test_an_interrupted_step_is_no_failed_one() -> None:
    said = io.StringIO()
    report = Report(Console(file=said))

    def interrupted() -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report.step("waits", interrupted)

    assert said.getvalue() == " 1. waits\n"
    assert report.seen == []
