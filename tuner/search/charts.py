"""Pictures of a search: the Pareto front, and goodput over the ratio of the pools.

In the terminal by plotext, as files by matplotlib; both come with the extra ``plot``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tuner.search.halving import Scored
from tuner.search.report import tokens_per_accelerator, tokens_per_user
from tuner.search.space import Candidate
from tuner.search.tune import TuneResult
from tuner.simulate.plots import new_figure, save_figure

_WIDTH, _HEIGHT = 76, 18
# Above the highest point, for the legend.
_HEADROOM = 1.25


@dataclass(frozen=True, slots=True)
class Point:
    """One candidate. ``prefill_share``: of all its accelerators; 0 for colocated. Of one that was
    not simulated as a whole the rate is an estimate and tokens per second are not known."""

    name: str
    is_colocated: bool
    prefill_share: float
    rate_per_accelerator: float
    tokens_per_accelerator: float | None = None
    tokens_per_user: float | None = None

    @property
    def is_estimate(self) -> bool:
        return self.tokens_per_user is None


def points(result: TuneResult) -> list[Point]:
    """All candidates that met the SLO at some rate, and those with an estimate."""
    found = [_point(scored) for scored in result.scored]
    return [point for point in found if point is not None]


def _point(scored: Scored) -> Point | None:
    candidate, reached = scored.candidate, scored.reached
    place = (str(candidate), candidate.is_colocated, prefill_share(candidate))
    if reached is None:
        estimate = scored.estimate
        return Point(*place, estimate / candidate.accelerators) if estimate else None
    if reached.trial is None:
        return None
    tokens = (tokens_per_accelerator(scored, reached.trial), tokens_per_user(reached.trial))
    return Point(*place, scored.rate_per_accelerator, *tokens)


def pareto_front(found: Sequence[Point]) -> list[Point]:
    """Those that nobody beats in both tokens/s/GPU and tokens/s/user, by the latter."""
    front: list[Point] = []
    highest = -1.0
    known = [(p.tokens_per_user, p.tokens_per_accelerator, p) for p in found]
    for _, of_gpu, point in sorted(
        ((user, gpu, p) for user, gpu, p in known if user is not None and gpu is not None),
        key=lambda one: one[:2],
        reverse=True,
    ):
        if of_gpu > highest:
            front.append(point)
            highest = of_gpu
    return front[::-1]


def prefill_share(candidate: Candidate) -> float:
    """The ratio of the pools as a share (0 to 1), which has no end that is far away."""
    return candidate.ratio / (1 + candidate.ratio)


def best_of_each_share(found: Sequence[Point]) -> list[Point]:
    """The highest simulated goodput at each ratio of two pools, by the share of prefill."""
    best: dict[float, Point] = {}
    for point in found:
        if point.is_colocated or point.is_estimate:
            continue
        known = best.get(point.prefill_share)
        if known is None or point.rate_per_accelerator > known.rate_per_accelerator:
            best[point.prefill_share] = point
    return [best[share] for share in sorted(best)]


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
        for kind in _KINDS:
            x, y = picture.of(kind.among(found))
            if x:
                plotext.scatter(x, y, marker=kind.mark, label=kind.label)
        plotext.ylim(0, _HEADROOM * max(shown[1]))
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
        for kind in _KINDS:
            x, y = picture.of(kind.among(found))
            if x:
                axes.scatter(x, y, marker=kind.mark, color=kind.colour, label=kind.label)
        axes.plot(*picture.of(line), linewidth=1)
        for point, x_at, y_at in zip(line, *picture.of(line), strict=True):
            axes.annotate(point.name, (x_at, y_at), fontsize=7)
        axes.set_xlabel(picture.x_label)
        axes.set_ylabel(picture.y_label)
        axes.set_ylim(0, _HEADROOM * max(picture.of(found)[1], default=1.0))
        if axes.get_legend_handles_labels()[0]:
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
    def colour(self) -> str:
        return "tab:orange" if self.is_colocated else "tab:blue"

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
