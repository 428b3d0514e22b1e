"""What `crossdock tune` does with its options: reads, searches, writes files."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.cli.accelerators import AcceleratorOptions, parse_budget
from cluster.cli.tune_validate import ValidateOptions, check_options, validate_result
from cluster.progress import StderrProgress
from cluster.spec_file import load_spec
from core.errors import InvalidField
from core.pool_config import PoolSpec
from core.step_budget import STEP_TOKENS, step_budget
from tuner.load.metrics import Slo
from tuner.load.quantities import parse_rate, parse_seconds
from tuner.search import charts, report, report_json
from tuner.search.evaluate import Goal
from tuner.search.outputs import MADE_BY, check_folder, write_outputs
from tuner.search.space import Accelerators, Limits
from tuner.search.tune import Question, TuneResult, bounded_candidates, tune
from tuner.simulate.plots import check_plot_path
from tuner.simulate.traces import load_requests
from tuner.validate import report as comparison
from tuner.validate.compare import Case

# Sequences of one GPU worker to begin with: memory and TPOT limit them before that.
_GPU_SEQS = 256


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """The options as they were typed; see ``cluster.cli.tune``."""

    trace: Path
    gpus: str | None = None
    prefill_gpus: str | None = None
    decode_gpus: str | None = None
    ttft: str | None = None
    tpot: str | None = None
    percentile: float = 90.0
    rate: float | None = None
    gpu_hour_price: str | None = None
    profile: Path | None = None
    prefill_profile: Path | None = None
    decode_profile: Path | None = None
    prefill_nodes: str | None = None
    decode_nodes: str | None = None
    model: str | None = None
    config: Path | None = None
    limit: int | None = None
    seed: int | None = None
    plot: Path | None = None
    out: Path | None = None
    validate: ValidateOptions | None = None


@dataclass(frozen=True, slots=True)
class Tuned:
    """``origins``: which profiles were used, in words; ``written``: the files; ``cases``: what was
    predicted and measured."""

    result: TuneResult
    origins: tuple[str, ...]
    written: tuple[Path, ...]
    cases: tuple[Case, ...] = ()

    def text(self) -> list[str]:
        files = [f"wrote {path}" for path in self.written]
        return [*self.origins, "", *report.verdict_lines(self.result), *files]

    def table(self, top: int) -> tuple[report.Row, list[report.Row]]:
        return report.table(self.result, top)

    def chart(self) -> str:
        return charts.terminal_text(self.result)

    def as_json(self) -> dict[str, Any]:
        files = [str(path) for path in self.written]
        told = {"profiles": list(self.origins), "files": files, **report_json.as_json(self.result)}
        return told | {"validation": comparison.as_json(self.cases)} if self.cases else told

    def cases_table(self) -> tuple[report.Row, list[report.Row]]:
        return comparison.table(self.cases)

    def cases_text(self) -> list[str]:
        return comparison.summary_lines(self.cases)


def run(options: TuneOptions) -> Tuned:
    """Raises ``InvalidField`` for an option or a file, before anything is written."""
    started = time.monotonic()
    question, origins = read_question(options)
    progress = StderrProgress()
    bounded = bounded_candidates(question)
    best, bound = max(bounded, key=lambda pair: pair[1].rate)
    progress.note(
        f"after {time.monotonic() - started:.1f} s: {len(bounded)} clusters; by capacities alone "
        f"{best} could serve at most {bound.rate:.2f} requests/s ({bound.limited_by.value}); "
        "simulating …"
    )
    result = tune(question, bounded, progress.step)
    progress.note(f"after {time.monotonic() - started:.0f} s: the verdict")
    written = _write(options, result, origins)
    cases: tuple[Case, ...] = ()
    if options.validate is not None and result.verdict.winner is not None:
        cases = validate_result(options.validate, result, progress)
    return Tuned(result, origins, written, cases)


def read_question(options: TuneOptions) -> tuple[Question, tuple[str, ...]]:
    """And where its numbers come from, in words. Raises ``InvalidField``."""
    if not 0 < options.percentile <= 100:
        raise InvalidField("--percentile", options.percentile, "must be above 0 and at most 100")
    if options.rate is not None:
        parse_rate("--rate", options.rate)
    if options.plot is not None:
        check_plot_path(options.plot)
    base = load_spec(options.config, _slo_of(options))
    slo = Slo(base.slo.ttft, base.slo.tpot)
    step_budget(base, "decode")
    budget, origins = parse_budget(
        AcceleratorOptions(
            gpus=options.gpus,
            prefill_gpus=options.prefill_gpus,
            decode_gpus=options.decode_gpus,
            gpu_hour_price=options.gpu_hour_price,
            profile=options.profile,
            prefill_profile=options.prefill_profile,
            decode_profile=options.decode_profile,
            model=options.model,
            base=base,
            prefill_nodes=options.prefill_nodes,
            decode_nodes=options.decode_nodes,
        )
    )
    if options.out is not None:
        check_folder(options.out, budget)
    if options.validate is not None:
        check_options(options.validate, budget)
    base = base.model_copy(update={"model": options.model or base.model})
    trace = load_requests(options.trace, options.limit, options.seed)
    question = Question(
        trace=trace,
        base=base,
        budget=budget,
        goal=Goal(slo, options.percentile),
        limits=_limits(base.pools.decode, budget.decode),
        prefill_limits=_limits(base.pools.prefill, budget.prefill),
        rate=options.rate,
        seed=options.seed or 0,
    )
    return question, origins


def _slo_of(options: TuneOptions) -> dict[str, object]:
    """What was stated of it; the config says the rest."""
    stated = {"ttft": options.ttft, "tpot": options.tpot}
    return {
        f"slo.{name}": parse_seconds(f"--{name}", text)
        for name, text in stated.items()
        if text is not None
    }


def _limits(pool: PoolSpec, on: Accelerators) -> Limits:
    """As the config says, else what suits the device to begin with."""
    device, tokens = on.profile.device, pool.max_num_batched_tokens
    if "max_num_seqs" in pool.model_fields_set:
        seqs = pool.max_num_seqs
    else:
        usual = pool.max_num_seqs if device == "cpu" else _GPU_SEQS
        seqs = min(usual, tokens or usual)
    return Limits(seqs, tokens or max(STEP_TOKENS[device], seqs))


def _write(options: TuneOptions, result: TuneResult, origins: tuple[str, ...]) -> tuple[Path, ...]:
    winner = result.verdict.winner
    if options.plot is not None:
        charts.draw(result, result.question.trace.name, options.plot)
    drawn = () if options.plot is None else (options.plot,)
    if winner is None or options.out is None:
        return drawn
    today = datetime.now(UTC).date().isoformat()
    made = f"{MADE_BY} on {today}."
    comment = "\n".join([made, *origins, *report.verdict_lines(result)])
    return (*drawn, *write_outputs(winner.candidate, result.question.base, comment, options.out))
