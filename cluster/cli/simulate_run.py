"""What `crossdock simulate` does with its options: reads, simulates, draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.cli.profile_choice import ChosenProfile, choose_profile
from cluster.progress import StderrProgress
from cluster.spec_file import load_spec
from core.config import ClusterSpec
from core.errors import InvalidField
from tuner.load.metrics import Slo, Spread
from tuner.load.quantities import parse_rate, parse_seconds
from tuner.simulate.from_spec import PoolProfiles, model_cluster
from tuner.simulate.plots import check_plot_path, plot_simulation
from tuner.simulate.requests import RequestTrace
from tuner.simulate.simulator import simulate
from tuner.simulate.summary import SimulationSummary, summarize
from tuner.simulate.traces import load_requests

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SimulateOptions:
    """The options as they were typed; see ``cluster.cli.simulate``."""

    trace: Path
    config: Path | None
    overrides: Mapping[str, object]
    profile: Path | None
    one_host: bool
    rate: float | None
    limit: int | None
    seed: int | None
    slo_ttft: str
    slo_tpot: str
    plot: Path | None


@dataclass(frozen=True, slots=True)
class Simulated:
    """The summary, and of what it is one."""

    trace: RequestTrace
    spec: ClusterSpec
    profile: ChosenProfile
    slo: Slo
    seed: int
    summary: SimulationSummary

    def headings(self) -> list[str]:
        trace, slo = self.trace, self.slo
        return [
            f"{describe(self.spec)}; {self.profile.words}",
            f"{len(trace)} requests of {trace.name}, {trace.rate:.3g}/s over "
            f"{trace.duration_s:.4g} s; on average {trace.prompt_tokens.mean():.0f} tokens in, "
            f"{trace.output_tokens.mean():.0f} out",
            f"goodput: TTFT ≤ {slo.ttft_s:g} s, TPOT ≤ {slo.tpot_s * 1000:g} ms; seed {self.seed}",
        ]

    @property
    def cost_per_million_tokens(self) -> float | None:
        """Of the cluster while it served, for each million tokens of answers; None where the config
        has no ``gpu_hour_price`` for a pool in use, or no answer was completed."""
        pools = [
            pool for pool in (self.spec.pools.prefill, self.spec.pools.decode) if pool.replicas
        ]
        prices = [pool.hour_price for pool in pools]
        tokens_per_hour = 3600 * self.summary.output_tokens_per_s
        known = [price for price in prices if price is not None]
        if len(known) < len(prices) or not tokens_per_hour:
            return None
        return sum(known) / tokens_per_hour * 1e6

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
            "cost_per_million_tokens": self.cost_per_million_tokens,
            "summary": _plain(asdict(self.summary)),
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
        if (cost := self.cost_per_million_tokens) is not None:
            rows.append(("cost per million tokens out", f"{cost:.3f}"))
        spreads = {"TTFT": s.ttft_s, "TPOT": s.tpot_s, "ITL": s.itl_s, "E2E": s.e2e_s}
        rows += [(f"{name} ms, mean p50 p90 p99", _spread(x)) for name, x in spreads.items()]
        return ("", "simulated"), rows

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


def run(options: SimulateOptions) -> Simulated:
    """Raises ``InvalidField`` for an option or a file."""
    slo = Slo(
        parse_seconds("--slo-ttft", options.slo_ttft), parse_seconds("--slo-tpot", options.slo_tpot)
    )
    if options.plot is not None:
        check_plot_path(options.plot)
    spec = load_spec(options.config, options.overrides)
    profile = choose_profile(options.profile, spec)
    spec = _on_device_of(profile, spec)
    trace = load_requests(options.trace, options.limit, options.seed)
    if options.rate is not None:
        trace = trace.at_rate(parse_rate("--rate", options.rate))
    host_cores = _host_cores(profile) if options.one_host else None
    cluster = model_cluster(spec, PoolProfiles(profile.profile, profile.profile), host_cores)
    StderrProgress().step(f"simulating {len(trace)} requests")
    result = simulate(trace, cluster, seed=options.seed or 0)
    simulated = Simulated(trace, spec, profile, slo, options.seed or 0, summarize(result, slo))
    if options.plot is not None:
        plot_simulation(result, slo, describe(spec), options.plot)
    return simulated


def _host_cores(profile: ChosenProfile) -> int:
    cores = profile.profile.cores
    if profile.profile.device != "cpu" or not cores:
        fix = "needs a profile that was measured on CPU cores: they are what is shared"
        raise InvalidField("--one-host", True, fix)
    return cores


def _on_device_of(profile: ChosenProfile, spec: ClusterSpec) -> ClusterSpec:
    """The config's defaults depend on the device, and the profile knows which one it is of."""
    engine = spec.engine.model_copy(update={"device": profile.profile.device})
    return spec.model_copy(update={"engine": engine})


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


def _plain(value: Any) -> Any:
    """Enums as their values, tuples as lists."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return getattr(value, "value", value)
