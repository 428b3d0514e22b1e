"""Configurations under loads: what was predicted, what a real cluster did.

One cluster after the other, each under all loads. Does not cover: which configurations and loads
(``cluster.cli.tune_validate``, ``cluster.validation.grid``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cluster.code_digest import code_digest
from cluster.demo_model import ensure_demo_model
from cluster.model_folder import find_model
from cluster.profiling.machine import usable_cores
from cluster.progress import Progress
from cluster.validation.kept_runs import KeptRun, RunKey, keep_run, read_run
from cluster.validation.replay import replay, warm_up
from cluster.validation.served import served
from core.config import ClusterSpec
from core.latency_profile import LatencyProfile
from tuner.load.metrics import RunResult, Slo, summarize
from tuner.processes import Processes
from tuner.search.verdict import REPLICATES
from tuner.simulate.core_shares import place_workers
from tuner.simulate.requests import RequestTrace
from tuner.validate.compare import Case, Outcome
from tuner.validate.predict import Prediction, likely, predict

# Predictions that are made before other processes would have started.
_FEW = 4


@dataclass(frozen=True, slots=True)
class Configuration:
    """A cluster that is to be served, and how to call it."""

    name: str
    spec: ClusterSpec


@dataclass(frozen=True, slots=True)
class OfferedLoad:
    """``trace`` comes at ``rate`` requests per second on average."""

    traffic: str
    rate: float
    trace: RequestTrace


@dataclass(frozen=True, slots=True)
class Validation:
    """All of it. ``records``: folder where runs are kept; those that are there are not measured
    again."""

    configurations: tuple[Configuration, ...]
    loads: tuple[OfferedLoad, ...]
    profile: LatencyProfile
    slo: Slo
    records: Path | None = None
    replicates: int = REPLICATES

    def prediction(self, configuration: Configuration, load: OfferedLoad) -> Prediction:
        return Prediction(configuration.spec, self.profile, load.trace, self.slo)

    def kept_path(self, configuration: Configuration, load: OfferedLoad) -> Path | None:
        """Where the run is kept; None if none is."""
        if self.records is None:
            return None
        name = f"{configuration.name} {load.traffic} {load.rate:g}"
        return RunKey(name, configuration.spec, load.trace, self.profile).path(self.records)


def validate(validation: Validation, progress: Progress) -> tuple[Case, ...]:
    """Predicts all, so that what can't be predicted is refused first, then measures.

    Raises what serving raises.
    """
    pairs = [(c, load) for c in validation.configurations for load in validation.loads]
    predicted = [predict(validation.prediction(c, load)) for c, load in pairs]
    measured = [
        outcome for c in validation.configurations for outcome in _measure(validation, c, progress)
    ]
    progress.step("how sure the predictions are")
    replicates = _replicates(validation, pairs)
    return tuple(
        Case(
            configuration=configuration.name,
            traffic=load.traffic,
            rate=load.rate,
            shares_cores=shares_cores(configuration.spec),
            predicted=prediction,
            measured=outcome,
            likely=likely(drawn),
            replicates=tuple(drawn),
        )
        for (configuration, load), prediction, outcome, drawn in zip(
            pairs, predicted, measured, replicates, strict=True
        )
    )


def shares_cores(spec: ClusterSpec) -> bool:
    """Whether some worker has no core to itself on this machine."""
    if spec.engine.device != "cpu":
        return False
    return any(place.crowd for place in place_workers(spec, len(usable_cores())))


def _measure(
    validation: Validation, configuration: Configuration, progress: Progress
) -> list[Outcome]:
    """Under each load."""
    paths = [validation.kept_path(configuration, load) for load in validation.loads]
    runs = [
        None if path is None else _kept(path, load, progress)
        for path, load in zip(paths, validation.loads, strict=True)
    ]
    if None in runs:
        progress.step(f"starting {configuration.name}")
        folder = _model_folder(configuration.spec, progress)
        with served(configuration.spec) as url:
            warm_up(url, folder)
            for index, load in enumerate(validation.loads):
                if runs[index] is None:
                    told = f"{len(load.trace)} requests in {load.trace.duration_s:.0f} s"
                    words = f"{configuration.name}, {load.traffic} at {load.rate:g}/s"
                    progress.step(f"{words}: {told}")
                    runs[index] = _replayed(url, folder, load, paths[index])
    return [_outcome(run, validation.slo) for run in runs if run is not None]


def _kept(path: Path, load: OfferedLoad, progress: Progress) -> RunResult | None:
    """Says so if other code served it than would now."""
    kept = read_run(path, load.trace.duration_s)
    if kept is None:
        return None
    if kept.code != code_digest():
        progress.note(
            f"{path} was measured on {kept.measured} with other code ({kept.code}, here it is "
            f"{code_digest()}); delete it to measure this one"
        )
    return kept.run


def _replayed(url: str, model: Path, load: OfferedLoad, path: Path | None) -> RunResult:
    """Kept at ``path``, so that what comes after may fail."""
    run = replay(url, model, load.trace)
    if path is not None:
        measured = datetime.now(UTC).isoformat(timespec="seconds")
        keep_run(KeptRun(run, code_digest(), measured), path)
    return run


def _model_folder(spec: ClusterSpec, progress: Progress) -> Path:
    return find_model(spec.model) if spec.model else ensure_demo_model(progress)


def _outcome(run: RunResult, slo: Slo) -> Outcome:
    summary = summarize([run], slo)
    return Outcome.of(summary.ttft_s, summary.tpot_s, summary.goodput)


def _replicates(
    validation: Validation, pairs: Sequence[tuple[Configuration, OfferedLoad]]
) -> list[list[Outcome]]:
    """Of each pair, on all cores if there are many."""
    count = validation.replicates
    wanted = [
        validation.prediction(c, load).replicate(number)
        for c, load in pairs
        for number in range(1, count + 1)
    ]
    if len(wanted) <= _FEW:
        outcomes = [predict(one) for one in wanted]
    else:
        with Processes(len(usable_cores())) as processes:
            futures = [processes.submit(predict, one) for one in wanted]
            outcomes = [future.result() for future in futures]
    return [outcomes[i * count : (i + 1) * count] for i in range(len(pairs))]
