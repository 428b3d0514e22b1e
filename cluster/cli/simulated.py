"""What `crossdock simulate` found, for people and for programs. Pure.

Does not cover: pictures (``tuner.simulate.plots``).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cluster.cli.profile_choice import ChosenProfile
from core.config import ClusterSpec
from tuner.load.metrics import Slo, Spread
from tuner.simulate.pools import Course, PoolCourse
from tuner.simulate.requests import RequestTrace
from tuner.simulate.summary import SimulationSummary

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Simulated:
    """The summary, the pools over time, and of what they are."""

    trace: RequestTrace
    spec: ClusterSpec
    profile: ChosenProfile
    slo: Slo
    seed: int
    summary: SimulationSummary
    courses: tuple[PoolCourse, ...]

    def headings(self) -> list[str]:
        trace, slo = self.trace, self.slo
        return [
            f"{describe(self.spec)}; {self.profile.words}",
            f"{len(trace)} request{'s' if len(trace) > 1 else ''} of {trace.name}, {self._pace}; "
            f"on average {trace.prompt_tokens.mean():.0f} tokens in, "
            f"{trace.output_tokens.mean():.0f} out",
            f"goodput: TTFT ≤ {slo.ttft_s:g} s, TPOT ≤ {slo.tpot_s * 1000:g} ms; seed {self.seed}",
        ]

    @property
    def _pace(self) -> str:
        rate, duration_s = self.trace.rate, self.trace.duration_s
        return f"{rate:.3g}/s over {duration_s:.4g} s" if rate else "at one moment"

    @property
    def hour_price(self) -> float | None:
        """Of the cluster; None where the config has no ``gpu_hour_price`` for a pool in use."""
        pools = [
            pool for pool in (self.spec.pools.prefill, self.spec.pools.decode) if pool.replicas
        ]
        prices = [price for pool in pools if (price := pool.hour_price) is not None]
        return sum(prices) if len(prices) == len(pools) else None

    @property
    def cost_per_million_tokens(self) -> float | None:
        """Of the cluster while it served, for each million tokens of answers; None where no price
        is known, or no answer was completed."""
        tokens_per_hour = 3600 * self.summary.output_tokens_per_s
        if self.hour_price is None or not tokens_per_hour:
            return None
        return self.hour_price / tokens_per_hour * 1e6

    def as_json(self) -> dict[str, Any]:
        trace = self.trace
        return {
            "trace": trace.name,
            "requests_per_s_offered": trace.rate,
            "cluster": describe(self.spec),
            "profile": self.profile.words,
            "profile_origin": self.profile.profile.origin.value,
            "slo": asdict(self.slo),
            "seed": self.seed,
            "hour_price": self.hour_price,
            "cost_per_million_tokens": self.cost_per_million_tokens,
            "summary": _plain(asdict(self.summary)),
            "pools_over_time": [_pool_over_time(pool) for pool in self.courses],
        }

    def table(self) -> tuple[Row, list[Row]]:
        s = self.summary
        rows: list[Row] = [
            ("completed", f"{s.completed} of {s.requests}"),
            ("requests/s", f"{s.requests_per_s:.3f}"),
            ("goodput requests/s", f"{s.goodput.requests_per_s:.3f}"),
            ("goodput share", f"{s.goodput.share:.1%}"),
            ("share within TTFT", f"{s.goodput.share_ttft:.1%}"),
            ("share within TPOT", f"{s.goodput.share_tpot:.1%}"),
            ("tokens/s in", f"{s.input_tokens_per_s:.0f}"),
            ("tokens/s out", f"{s.output_tokens_per_s:.0f}"),
            ("prompt tokens from cache", f"{s.hit_rate:.1%}"),
        ]
        if s.transferred_tokens:
            rows.append(("KV transfers under way, mean", f"{s.edges_busy:.2f}"))
        rows += self._cost_rows()
        spreads = {"TTFT": s.ttft_s, "TPOT": s.tpot_s, "ITL": s.itl_s, "E2E": s.e2e_s}
        rows += [(f"{name} ms, mean p50 p90 p99", _spread(x)) for name, x in spreads.items()]
        return ("", "simulated"), rows

    def _cost_rows(self) -> list[Row]:
        if self.hour_price is None:
            return [("cost", "– (the config has no gpu_hour_price)")]
        cost = self.cost_per_million_tokens
        rows: list[Row] = [("cost per hour", f"{self.hour_price:.2f}")]
        return rows if cost is None else [*rows, ("cost per million tokens out", f"{cost:.3f}")]

    def pools_table(self) -> tuple[Row, list[Row]]:
        columns = ("pool", "workers", "busy", "waiting mean", "max", "KV used", "preemptions")
        return columns, [
            (
                pool.role.value,
                str(pool.workers),
                f"{pool.busy:.0%}",
                f"{pool.waiting_mean:.1f}",
                str(pool.waiting_max),
                f"{pool.used_blocks_max:.0%}",
                str(pool.preemptions),
            )
            for pool in self.summary.pools
        ]


def describe(spec: ClusterSpec) -> str:
    """ "2P:1D, tp 2/1", or "colocated, 3 workers"."""
    prefill, decode = spec.pools.prefill, spec.pools.decode
    if not prefill.replicas:
        return f"colocated, {decode.replicas} of {decode.shape}"
    return f"{prefill.replicas}P:{decode.replicas}D of {prefill.shape} and {decode.shape}"


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    parts = (spread.mean, spread.p50, spread.p90, spread.p99)
    return "  ".join(f"{part * 1000:.1f}" for part in parts)


def _pool_over_time(pool: PoolCourse) -> dict[str, Any]:
    """Numbers of one worker: the mean over the pool's, and of the worst one."""
    return {
        "role": pool.role.value,
        "at_s": pool.at_s.round(6).tolist(),
        "busy": _rounded(pool.busy, ("mean",)),
        "waiting": _rounded(pool.waiting, ("mean", "most")),
        "running": _rounded(pool.running, ("mean", "most")),
        "used_blocks": _rounded(pool.used_blocks, ("mean", "most")),
    }


def _rounded(course: Course, parts: tuple[str, ...]) -> dict[str, list[float]]:
    return {part: getattr(course, part).round(4).tolist() for part in parts}


def _plain(value: Any) -> Any:
    """Enums as their values, tuples as lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return getattr(value, "value", value)
