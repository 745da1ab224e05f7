"""A line without axes, drawn as points of an SVG. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 240, 40
_MARGIN = 2


@dataclass(frozen=True, slots=True)
class Sparkline:
    """The points of a line in a picture of `WIDTH` by `HEIGHT`, and what it says in words."""

    points: str
    label: str
    width: int = WIDTH
    height: int = HEIGHT


def sparkline(values: Sequence[int], what: str) -> Sparkline:
    """`values` from left to right as steps; `what` names them for who cannot see it."""
    if not values:
        return Sparkline("", f"{what}: not known yet")
    most = max(*values, 1)
    step = (WIDTH - 2 * _MARGIN) / len(values)
    points = []
    for number, value in enumerate(values):
        height = _MARGIN + (HEIGHT - 2 * _MARGIN) * (1 - value / most)
        left = _MARGIN + number * step
        points += [f"{left:.1f},{height:.1f}", f"{left + step:.1f},{height:.1f}"]
    label = f"{what}: {values[-1]} now, at least {min(values)} and at most {max(values)} meanwhile"
    return Sparkline(" ".join(points), label)
