"""Pictures of a simulation: latencies against their limits, and the pools over time.

Needs matplotlib (the extra ``plot``). Does not cover: pictures of a search (``tuner.search``).
"""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from core.errors import InvalidField
from core.request import Role
from tuner.files import check_writable, write_files
from tuner.load.metrics import Slo
from tuner.simulate.pools import Course, PoolCourse, pool_courses
from tuner.simulate.result import SimulationResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {Role.PREFILL: "tab:blue", Role.DECODE: "tab:orange", Role.MIXED: "tab:green"}
_SUFFIXES = (".png", ".html", ".svg")


def check_plot_path(path: Path) -> None:
    """Before the work, so that a typing error doesn't cost it. Raises ``InvalidField``."""
    if path.suffix not in _SUFFIXES:
        raise InvalidField("--plot", str(path), f"must end with {', '.join(_SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        fix = "pictures need matplotlib: pip install 'crossdock[plot]'"
        raise InvalidField("--plot", str(path), fix) from None
    check_writable(path, "--plot")


def plot_simulation(result: SimulationResult, slo: Slo, title: str, path: Path) -> None:
    """Writes PNG, SVG, or a page with the picture in it, by the suffix of ``path``."""
    figure = new_figure(2, 2, title)
    ttft, tpot, waiting, busy = figure.axes
    _distribution(ttft, result.ttft_s, slo.ttft_s, "TTFT (s)")
    _distribution(tpot, result.tpot_s * 1000, slo.tpot_s * 1000, "TPOT (ms)")
    courses = pool_courses(result)
    _over_time(waiting, courses, "waiting", "requests that wait, per worker")
    _over_time(busy, courses, "busy", "busy share of engines")
    save_figure(figure, title, path)


def new_figure(rows: int, columns: int, title: str) -> Figure:
    """A figure of so many axes. No window, whatever the machine has."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * columns, 3.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    figure.subplots(rows, columns)
    return figure


def save_figure(figure: Figure, title: str, path: Path) -> None:
    """Nothing half-written is left. Raises ``InvalidField`` if it can't be written."""
    if path.suffix == ".html":
        write_files({path: _page(figure, title)}, "--plot")
        return
    drawing = io.BytesIO()
    figure.savefig(drawing, format=path.suffix[1:], dpi=120)
    write_files({path: drawing.getvalue()}, "--plot")


def _page(figure: Figure, title: str) -> str:
    drawing = io.StringIO()
    figure.savefig(drawing, format="svg")
    svg = drawing.getvalue()
    svg = svg[svg.index("<svg") :]
    name = html.escape(title)
    return f'<!doctype html><meta charset="utf-8"><title>{name}</title>\n{svg}\n'


def _distribution(axes: Axes, values: npt.NDArray[np.float64], limit: float, label: str) -> None:
    """Share of requests at or below each value, and the limit."""
    known = np.sort(values[np.isfinite(values)])
    axes.set_xlabel(label)
    axes.set_ylabel("share of requests")
    axes.axvline(limit, color="tab:red", linestyle="--", label=f"limit {limit:g}")
    if len(known):
        axes.step(known, np.arange(1, len(known) + 1) / len(known), where="post")
        axes.set_xlim(0, max(1.5 * limit, float(np.quantile(known, 0.995))))
    axes.set_ylim(0, 1)
    axes.legend()


def _over_time(axes: Axes, courses: tuple[PoolCourse, ...], field: str, label: str) -> None:
    """Mean over a pool's workers, and the range between the least and the most."""
    axes.set_xlabel("seconds")
    axes.set_ylabel(label)
    for pool in courses:
        course: Course = getattr(pool, field)
        colour = _COLOURS[pool.role]
        axes.plot(pool.at_s, course.mean, color=colour, label=pool.role.value)
        axes.fill_between(pool.at_s, course.least, course.most, color=colour, alpha=0.2)
    axes.set_ylim(bottom=0)
    axes.legend()
