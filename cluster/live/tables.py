"""How a frame of `crossdock status --watch` looks in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from rich import box
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.live.frame import Frame

_NOTHING = "–"
# Columns that hold names; all others hold numbers.
_WORDS = ("", "from", "to", "by")
# From here on a share of a pool is shown as full.
_FULL = 0.9


def draw(frame: Frame) -> RenderableType:
    """Everything, the most important first: a low terminal shows what fits."""
    parts = [_head(frame), _serving(frame["serving"]), _latency(frame), _workers(frame["workers"])]
    if frame["edges"]:
        parts.append(_edges(frame["edges"]))
    return Group(*parts, _router(frame["router"]), _tenants(frame["tenants"]))


def _head(frame: Frame) -> RenderableType:
    model = Text(frame["model"], style="bold")
    model.append("" if frame["settled"] else "  changing", "yellow")
    model.append(f"  (last {frame['window_s']:.0f} s)", "dim")
    pools = frame["pools"]
    line = Text()
    for pool in ("prefill", "decode"):
        told = pools[pool]
        missing = told["ready"] < told["wanted"]
        line.append(f"{pool} {told['ready']}/{told['wanted']}", "red" if missing else "green")
        used = told["utilization"]
        full = used is not None and used >= _FULL
        line.append(f" {_percent(used)} used  ", "yellow" if full else "")
    line.append(f"imbalance {_percent(pools['imbalance'])}  restarts {frame['restarts']}")
    return Group(model, line)


def _serving(told: Frame) -> RenderableType:
    return _table(
        "serving",
        ["requests /s", "goodput /s", "in SLO", "waiting", "streaming", "prompt tok/s", "cached",
         "generated tok/s", "retries"],
        [[
            _number(told["requests_per_s"]), _number(told["goodput_per_s"]),
            _percent(told["attainment"]), _count(told["waiting"]), _count(told["streaming"]),
            _number(told["prompt_tokens_per_s"]), _percent(told["cached"]),
            _number(told["generated_tokens_per_s"]), _count(told["retries"]),
        ]],
    )  # fmt: skip


def _latency(frame: Frame) -> RenderableType:
    rows = [
        [name.upper(), *(_seconds(value) for value in spread.values())]
        for name, spread in frame["latency"].items()
    ]
    latency = _table("latency", ["", "p50", "p90", "p99"], rows)
    phases = frame["phases"]
    names = list(next(iter(phases.values()), {}))
    spent = _table(
        "before the first token, mean",
        ["", *names],
        [[role, *(_seconds(told[name]) for name in names)] for role, told in phases.items()],
    )
    # Beside each other where there is room.
    return Columns((latency, spent), padding=(0, 3))


def _workers(workers: Iterable[Frame]) -> RenderableType:
    rows = [
        [
            told["worker"] if told["state"] == "ready" else _not_ready(told),
            f"{_count(told['running'])}/{_count(told['max_sequences'])}",
            _count(told["waiting"]),
            _percent(told["kv_used"]),
            _percent(told["busy"]),
            _percent(told["mfu"]),
            _percent(told["mbu"]),
            _number(told["prefill_tokens_per_s"]),
            _number(told["decode_tokens_per_s"]),
            _seconds(told["step_s"]),
            _count(told["orphan_blocks"]),
        ]
        for told in workers
    ]
    columns = ["", "run", "wait", "KV", "busy", "MFU", "MBU", "prefill tok/s",
               "decode tok/s", "step", "orphan blocks"]  # fmt: skip
    return _table("workers", columns, rows)


def _not_ready(told: Frame) -> str:
    return f"{told['worker']} {told['state']} {told['detail']}".strip()


def _edges(edges: Iterable[Frame]) -> RenderableType:
    rows = [
        [
            told["from"],
            told["to"],
            told["transport"] + (" (slow)" if told["slow"] else ""),
            _megabytes(told["bytes_per_s"]),
            _megabytes(told["copying_bytes_per_s"]),
            _count(told["resent_blocks"]),
        ]
        for told in edges
    ]
    return _table("edges", ["from", "to", "by", "MB/s", "MB/s copying", "resent"], rows)


def _router(told: Frame) -> RenderableType:
    ratios = [told[f"{name}_actual_over_predicted"] for name in ("ttft", "tpot")]
    decisions = _table(
        "router",
        ["handoff /s", "local /s", "direct /s", "decision p99", "TTFT /predicted",
         "TPOT /predicted", "excluded workers"],
        [[
            _number(told["handoff_per_s"]), _number(told["local_per_s"]),
            _number(told["direct_per_s"]), _seconds(told["decision_p99_s"]),
            *(_NOTHING if ratio is None else f"{ratio:.2f}" for ratio in ratios),
            _count(told["excluded_workers"]),
        ]],
    )  # fmt: skip
    prefixes = _table(
        "prefixes",
        ["P overlap", "D overlap", "KV events/s", "index blocks"],
        [[
            _percent(told["prefill_overlap"]), _percent(told["decode_overlap"]),
            _number(told["kv_events_per_s"]), _count(told["index_blocks"]),
        ]],
    )  # fmt: skip
    return Group(decisions, prefixes)


def _tenants(tenants: Iterable[Frame]) -> RenderableType:
    rows = [
        [
            told["tenant"],
            _number(told["requests_per_s"]),
            _count(told["at_door"]),
            _number(told["turned_away_per_s"]),
            _percent(told["attainment"]),
            _number(told["prompt_tokens_per_s"]),
            _number(told["generated_tokens_per_s"]),
            _NOTHING if told["cost_per_hour"] is None else f"{told['cost_per_hour']:.2f}",
        ]
        for told in tenants
    ]
    columns = ["", "requests /s", "at door", "refused /s", "in SLO", "prompt tok/s",
               "generated tok/s", "cost /h"]  # fmt: skip
    return _table("tenants", columns, rows)


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Words of ``columns`` stand below each other, so that all fits into 80 characters; what is
    wider all the same breaks names, and leaves numbers whole."""
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in columns:
        words = column in _WORDS
        heading = column.replace(" ", "\n")
        justify: Literal["left", "right"] = "left" if words else "right"
        table.add_column(
            heading, justify=justify, no_wrap=not words, overflow="fold", vertical="bottom"
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _percent(share: Any) -> str:
    return _NOTHING if share is None else f"{share:.0%}"


def _count(value: Any) -> str:
    return f"{value:.0f}"


def _number(value: Any) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _seconds(value: Any) -> str:
    if value is None:
        return _NOTHING
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _megabytes(value: Any) -> str:
    return _NOTHING if value is None else f"{value / 1e6:.1f}"
