"""Pictures of a search: the Pareto front, and goodput over the ratio of the pools.

In the terminal by plotext, as files by matplotlib; both come with the extra ``plot``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuner.search.report import tokens_per_accelerator, tokens_per_user
from tuner.search.space import Candidate
from tuner.search.tune import TuneResult
from tuner.simulate.plots import new_figure, save_figure

_WIDTH, _HEIGHT = 76, 18
# Above the highest point, for the legend.
_HEADROOM = 1.25


@dataclass(frozen=True, slots=True)
class Point:
    """One simulated candidate. ``prefill_share``: of all its accelerators; 0 for colocated."""

    name: str
    is_colocated: bool
    prefill_share: float
    rate_per_accelerator: float
    tokens_per_accelerator: float
    tokens_per_user: float


def points(result: TuneResult) -> list[Point]:
    """All candidates that met the SLO at some rate."""
    found = []
    for scored in result.scored:
        trial = scored.reached.trial if scored.reached is not None else None
        if trial is not None:
            found.append(
                Point(
                    str(scored.candidate),
                    scored.candidate.is_colocated,
                    prefill_share(scored.candidate),
                    scored.rate_per_accelerator,
                    tokens_per_accelerator(scored, trial),
                    tokens_per_user(trial),
                )
            )
    return found


def pareto_front(found: Sequence[Point]) -> list[Point]:
    """Those that nobody beats in both tokens/s/GPU and tokens/s/user, by the latter."""
    front: list[Point] = []
    for point in sorted(
        found, key=lambda p: (p.tokens_per_user, p.tokens_per_accelerator), reverse=True
    ):
        if not front or point.tokens_per_accelerator > front[-1].tokens_per_accelerator:
            front.append(point)
    return front[::-1]


def prefill_share(candidate: Candidate) -> float:
    """The ratio of the pools as a share (0 to 1), which has no end that is far away."""
    return candidate.ratio / (1 + candidate.ratio)


def best_of_each_share(found: Sequence[Point]) -> list[Point]:
    """The highest goodput at each ratio of two pools, by the share of prefill."""
    best: dict[float, Point] = {}
    for point in found:
        known = best.get(point.prefill_share)
        higher = known is None or point.rate_per_accelerator > known.rate_per_accelerator
        if higher and not point.is_colocated:
            best[point.prefill_share] = point
    return [best[share] for share in sorted(best)]


def terminal_text(result: TuneResult) -> str:
    """Both pictures for a terminal; says how to get them where plotext is missing."""
    try:
        import plotext
    except ImportError:
        return "(charts in the terminal need plotext: pip install 'crossdock[plot]')"
    found = points(result)
    if not found:
        return ""
    drawn = []
    for picture in _PICTURES:
        plotext.clear_figure()
        plotext.theme("clear")
        plotext.plot_size(_WIDTH, _HEIGHT)
        for colocated, marker, label in _KINDS:
            x, y = picture.of([point for point in found if point.is_colocated is colocated])
            if x:
                plotext.scatter(x, y, marker=marker, label=label)
        plotext.ylim(0, _HEADROOM * max(picture.of(found)[1]))
        plotext.xlabel(picture.x_label)
        plotext.ylabel(picture.y_label)
        drawn.append(str(plotext.uncolorize(plotext.build())))
    return "\n\n".join(drawn)


def draw(result: TuneResult, title: str, path: Path) -> None:
    """Both pictures into a .png, .svg or .html file. Raises ``InvalidField`` if it can't be
    written."""
    figure = new_figure(1, 2, title)
    found = points(result)
    lines = (pareto_front(found), best_of_each_share(found))
    for axes, picture, line in zip(figure.axes, _PICTURES, lines, strict=True):
        for colocated, marker, label in _KINDS:
            chosen = [point for point in found if point.is_colocated is colocated]
            axes.scatter(*picture.of(chosen), marker=marker, label=label)
        axes.plot(*picture.of(line), linewidth=1)
        for point, x, y in zip(line, *picture.of(line), strict=True):
            axes.annotate(point.name, (x, y), fontsize=7)
        axes.set_xlabel(picture.x_label)
        axes.set_ylabel(picture.y_label)
        axes.set_ylim(0, _HEADROOM * max(picture.of(found)[1], default=1.0))
        axes.legend()
    save_figure(figure, title, path)


@dataclass(frozen=True, slots=True)
class _Picture:
    """Which two fields of a ``Point`` it shows."""

    x: str
    y: str
    x_label: str
    y_label: str

    def of(self, found: Sequence[Point]) -> tuple[list[float], list[float]]:
        return [getattr(p, self.x) for p in found], [getattr(p, self.y) for p in found]


_PICTURES = (
    _Picture("tokens_per_user", "tokens_per_accelerator", "tokens/s/user", "tokens/s/GPU"),
    _Picture(
        "prefill_share",
        "rate_per_accelerator",
        "prefill share of GPUs (colocated: 0)",
        "goodput/s/GPU",
    ),
)
# Whether they are colocated, the mark of a terminal (x and o in files, too), what they are called.
_KINDS = ((False, "x", "two pools"), (True, "o", "colocated"))
