"""Pictures of a search: the Pareto front, and goodput over the ratio of the pools.

In the terminal by plotext, as files by matplotlib; both come with the extra ``plot``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuner.search.report import tokens_per_accelerator, tokens_per_user
from tuner.search.tune import TuneResult
from tuner.simulate.plots import new_figure, save_figure

_WIDTH, _HEIGHT = 76, 18


@dataclass(frozen=True, slots=True)
class Point:
    """One simulated candidate. ``ratio``: prefill accelerators per decode accelerator."""

    name: str
    is_colocated: bool
    ratio: float
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
                    scored.candidate.ratio,
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


def pareto_text(result: TuneResult) -> str:
    """The front for a terminal; says how to get it where plotext is missing."""
    try:
        import plotext
    except ImportError:
        return "(charts in the terminal need plotext: pip install 'crossdock[plot]')"
    found = points(result)
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plot_size(_WIDTH, _HEIGHT)
    for colocated, marker, label in ((False, "x", "two pools"), (True, "o", "colocated")):
        chosen = [point for point in found if point.is_colocated is colocated]
        if chosen:
            plotext.scatter(
                [point.tokens_per_user for point in chosen],
                [point.tokens_per_accelerator for point in chosen],
                marker=marker,
                label=label,
            )
    plotext.xlabel("tokens/s/user")
    plotext.ylabel("tokens/s/GPU")
    return str(plotext.uncolorize(plotext.build()))


def draw(result: TuneResult, title: str, path: Path) -> None:
    """Both pictures into a .png, .svg or .html file."""
    figure = new_figure(1, 2, title)
    pareto, ratio = figure.axes
    found = points(result)
    for colocated, marker, label in ((False, "x", "two pools"), (True, "o", "colocated")):
        chosen = [point for point in found if point.is_colocated is colocated]
        x = [point.tokens_per_user for point in chosen]
        y = [point.tokens_per_accelerator for point in chosen]
        pareto.scatter(x, y, marker=marker, label=label)
        ratios = [point.ratio for point in chosen]
        rates = [point.rate_per_accelerator for point in chosen]
        ratio.scatter(ratios, rates, marker=marker, label=label)
    front = pareto_front(found)
    pareto.plot(
        [point.tokens_per_user for point in front],
        [point.tokens_per_accelerator for point in front],
        linewidth=1,
    )
    for point in front:
        place = (point.tokens_per_user, point.tokens_per_accelerator)
        pareto.annotate(point.name, place, fontsize=7)
    pareto.set_xlabel("tokens/s/user")
    pareto.set_ylabel("tokens/s/GPU")
    ratio.set_xlabel("prefill GPUs per decode GPU (colocated at 0)")
    ratio.set_ylabel("goodput: requests/s/GPU")
    for axes in (pareto, ratio):
        axes.set_ylim(bottom=0)
        axes.legend()
    save_figure(figure, title, path)
