"""What `crossdock simulate` does with its options: reads, simulates, draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.cli.profile_choice import ChosenProfile, choose_profile
from cluster.cli.simulated import Simulated, describe
from cluster.progress import StderrProgress
from cluster.spec_file import load_spec
from core.config import ClusterSpec
from core.errors import InvalidField
from tuner.load.metrics import Slo
from tuner.load.quantities import parse_rate, parse_seconds
from tuner.simulate.from_spec import PoolProfiles, model_cluster
from tuner.simulate.plots import check_plot_path, plot_simulation
from tuner.simulate.pools import pool_courses
from tuner.simulate.simulator import simulate
from tuner.simulate.summary import summarize
from tuner.simulate.traces import load_requests


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
    slo_ttft: str | None
    slo_tpot: str | None
    plot: Path | None


def run(options: SimulateOptions) -> Simulated:
    """Raises ``InvalidField`` for an option or a file."""
    if options.plot is not None:
        check_plot_path(options.plot)
    spec = load_spec(options.config, options.overrides)
    slo = Slo(
        _limit("--slo-ttft", options.slo_ttft, spec.slo.ttft),
        _limit("--slo-tpot", options.slo_tpot, spec.slo.tpot),
    )
    profile = choose_profile(options.profile, spec)
    spec = _on_device_of(profile, spec)
    trace = load_requests(options.trace, options.limit, options.seed)
    if options.rate is not None:
        trace = trace.at_rate(parse_rate("--rate", options.rate))
    host_cores = _host_cores(profile) if options.one_host else None
    cluster = model_cluster(spec, PoolProfiles(profile.profile, profile.profile), host_cores)
    StderrProgress().step(f"simulating {len(trace)} requests")
    result = simulate(trace, cluster, seed=options.seed or 0)
    simulated = Simulated(
        trace=trace,
        spec=spec,
        profile=profile,
        slo=slo,
        seed=options.seed or 0,
        summary=summarize(result, slo),
        courses=pool_courses(result),
    )
    if options.plot is not None and simulated.summary.completed:
        plot_simulation(result, slo, describe(spec), options.plot)
    return simulated


def _limit(option: str, stated: str | None, of_config: float) -> float:
    return of_config if stated is None else parse_seconds(option, stated)


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
