"""Pictures of a search: the Pareto front, and goodput over the ratio of the pools.

In the terminal by plotext, as files by matplotlib; both come with the extra ``plot``. Does not
cover: which points there are (``chart_points``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner.search.chart_points import (
    Point,
    best_of_each_share,
    neighbours_of,
    pareto_front,
    points,
)
from tuner.search.tune import TuneResult
from tuner.simulate.plots import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Characters of a picture in the terminal, and the lines of it that points can be in.
_WIDTH, _HEIGHT = 76, 18
_ROWS = _HEIGHT - 4
# Of a picture in a file: above the highest point, for its number.
_HEADROOM = 1.12
# Points of a picture that are closer than these shares of its width and height are told together.
_CLOSE = (0.04, 0.07)
# Of the legend; a line of it is so many inches high.
_LEGEND_COLUMNS = 3
_LEGEND_LINE = 0.19


def terminal_text(result: TuneResult) -> str:
    """Both pictures for a terminal; says how to get them where plotext is missing."""
    try:
        import plotext
    except ImportError:
        return "(charts in the terminal need plotext: pip install 'crossdock[plot]')"
    found = points(result)
    drawn = []
    for picture in _PICTURES:
        shown = picture.of(found)
        if not shown[0]:
            continue
        plotext.clear_figure()
        plotext.theme("clear")
        plotext.plot_size(_WIDTH, _HEIGHT)
        kinds = 0
        for kind in _KINDS:
            x, y = picture.of(kind.among(found))
            if x:
                plotext.scatter(x, y, marker=kind.mark, label=kind.label)
                kinds += 1
        # The legend has a line for each kind, above the highest point.
        plotext.ylim(0, max(shown[1]) * _ROWS / (_ROWS - kinds - 1))
        plotext.xlabel(picture.x_label)
        plotext.ylabel(picture.y_label)
        drawn.append(str(plotext.uncolorize(plotext.build())))
    return "\n\n".join(drawn)


def draw(result: TuneResult, title: str, path: Path) -> None:
    """Both pictures into a .png, .svg or .html file. The winner and the points of the lines are
    numbered, the best first; the legend names them. Raises ``InvalidField`` if it can't be
    written."""
    figure = new_figure(1, 2, title)
    found = points(result)
    lines = (pareto_front(found), best_of_each_share(found))
    named = [p for p in found if p in found[:1] or any(p in line for line in lines)]
    for axes, picture, line in zip(figure.axes, _PICTURES, lines, strict=True):
        _draw_picture(axes, picture, found, line)
        _number(axes, picture, named)
    _add_legend(figure, found, named)
    save_figure(figure, title, path)


def _draw_picture(
    axes: Axes, picture: _Picture, found: Sequence[Point], line: Sequence[Point]
) -> None:
    for kind in _KINDS:
        axes.scatter(*picture.of(kind.among(found)), **kind.look)
    axes.plot(*picture.of(line), linewidth=1)
    axes.set_xlabel(picture.x_label)
    axes.set_ylabel(picture.y_label)
    axes.set_ylim(0, _HEADROOM * max(picture.of(found)[1], default=1.0))
    axes.margins(x=0.08)


def _number(axes: Axes, picture: _Picture, named: Sequence[Point]) -> None:
    """Writes the numbers of ``named``, counted from 1, beside those points that it shows."""
    shown = [(number, *picture.of([point])) for number, point in enumerate(named, 1)]
    places = {number: (x[0], y[0]) for number, x, y in shown if x}
    to_share = (axes.transData + axes.transAxes.inverted()).transform
    shares = {}
    for number, place in places.items():
        x_share, y_share = to_share(place)
        shares[number] = (float(x_share), float(y_share))
    for close in neighbours_of(shares, _CLOSE):
        text, place = ", ".join(map(str, close)), places[close[0]]
        axes.annotate(text, place, (4, 3), textcoords="offset points", fontsize=8)


def _add_legend(figure: Figure, found: Sequence[Point], named: Sequence[Point]) -> None:
    """Below the pictures, where it hides no point: what marks and numbers mean."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=k.label, **k.look) for k in _KINDS if k.among(found)]
    handles += [
        Line2D([], [], label=point.name, marker=f"${number}$", color="black", markeredgewidth=0)
        for number, point in enumerate(named, 1)
    ]
    for handle in handles:
        handle.set_linestyle("none")
    if handles:
        lines = -(-len(handles) // _LEGEND_COLUMNS)
        figure.set_figheight(figure.get_figheight() + _LEGEND_LINE * lines)
        figure.legend(
            handles=handles, loc="outside lower center", ncols=_LEGEND_COLUMNS, fontsize=8
        )


@dataclass(frozen=True, slots=True)
class _Picture:
    """Which two fields of a ``Point`` it shows."""

    x: str
    y: str
    x_label: str
    y_label: str

    def of(self, found: Sequence[Point]) -> tuple[list[float], list[float]]:
        """Of those points that have both."""
        pairs = [(getattr(point, self.x), getattr(point, self.y)) for point in found]
        known = [(x, y) for x, y in pairs if x is not None and y is not None]
        return [x for x, _ in known], [y for _, y in known]


@dataclass(frozen=True, slots=True)
class _Kind:
    """Points that look alike."""

    is_colocated: bool
    is_estimate: bool
    mark: str
    label: str

    @property
    def look(self) -> dict[str, Any]:
        """Of its marks in a file. Estimates are pale."""
        colour = "tab:orange" if self.is_colocated else "tab:blue"
        return {"marker": self.mark, "color": colour, "alpha": 0.4 if self.is_estimate else 1.0}

    def among(self, found: Sequence[Point]) -> list[Point]:
        wanted = (self.is_colocated, self.is_estimate)
        return [point for point in found if (point.is_colocated, point.is_estimate) == wanted]


_PICTURES = (
    _Picture("tokens_per_user", "tokens_per_accelerator", "tokens/s/user", "tokens/s/GPU"),
    _Picture(
        "prefill_share",
        "rate_per_accelerator",
        "prefill share of GPUs (colocated: 0)",
        "goodput/s/GPU",
    ),
)
_KINDS = (
    _Kind(False, True, ".", "two pools, estimated"),
    _Kind(True, True, "*", "colocated, estimated"),
    _Kind(False, False, "x", "two pools"),
    _Kind(True, False, "o", "colocated"),
)
