import pytest

from tests.demo.report import Seen, conclusion


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
