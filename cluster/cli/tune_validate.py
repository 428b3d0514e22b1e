"""`crossdock tune --validate`: the best clusters and their rivals, served and measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.cli.options import refuse_given
from cluster.profiling.machine import hardware_name, usable_cores, visible_gpus
from cluster.progress import Progress
from cluster.validation.run import Configuration, OfferedLoad, Validation, validate
from core.errors import InvalidField
from core.latency_profile import LatencyProfile, Origin
from tuner.files import check_writable
from tuner.load.quantities import parse_rate, parse_seconds
from tuner.search.halving import Scored
from tuner.search.outputs import cluster_specs
from tuner.search.space import Budget
from tuner.search.tune import TuneResult
from tuner.validate.compare import Case
from tuner.validate.plan import first_seconds

# Of the highest rate that the winner was predicted to serve.
_COMFORTABLE, _NEAR_ITS_LIMIT = 0.5, 0.9
_CONFIGURATIONS = 3


@dataclass(frozen=True, slots=True)
class ValidateOptions:
    """The options as they were typed; see ``cluster.cli.tune``."""

    configurations: int
    rates: str | None
    seconds: str
    records: Path | None


def typed_options(
    validate: bool,
    configurations: int | None,
    rates: str | None,
    replay_time: str | None,
    records: Path | None,
) -> ValidateOptions | None:
    """None without ``--validate``; then nothing that belongs to it may be given."""
    if not validate:
        belonging = {
            "--configurations": configurations,
            "--rates": rates,
            "--replay-time": replay_time,
            "--records": records,
        }
        refuse_given(belonging, "belongs to --validate; give that, too")
        return None
    return ValidateOptions(configurations or _CONFIGURATIONS, rates, replay_time or "60s", records)


def check_options(options: ValidateOptions, budget: Budget) -> None:
    """Before the search. Raises ``InvalidField``."""
    _parse_rates(options.rates)
    parse_seconds("--replay-time", options.seconds)
    if not budget.is_shared:
        fix = "clusters of two kinds of hardware can't be served on one machine; use --gpus"
        raise InvalidField("--validate", True, fix)
    require_this_machine(budget.decode.profile, budget.decode.profile.model)
    if options.records is not None:
        check_records(options.records)


def check_records(folder: Path) -> None:
    """Before anything is measured. Raises ``InvalidField`` if no run could be kept there."""
    if not folder.is_dir():
        raise InvalidField("--records", str(folder), "is no folder; make it first")
    check_writable(folder / "run.jsonl", "--records")


def require_this_machine(profile: LatencyProfile, named: str) -> None:
    """Raises ``InvalidField`` for a profile that says nothing of this machine."""
    here = hardware_name(profile.device)
    if profile.origin is Origin.MODELLED:
        fix = "is modelled: to compare with this machine, measure it with `crossdock profile`"
        raise InvalidField("--profile", named, fix)
    if profile.hardware != here:
        fix = f"is of {profile.hardware}, and this is {here}: measure here"
        raise InvalidField("--profile", named, fix)


def validate_result(
    options: ValidateOptions, result: TuneResult, progress: Progress
) -> tuple[Case, ...]:
    """Serves and measures. Raises ``InvalidField`` if nothing of it can be served here."""
    question = result.question
    profile = question.budget.decode.profile
    configurations = _configurations(result, options.configurations, _room(profile))
    validation = Validation(
        configurations,
        _loads(options, result),
        profile,
        question.goal.slo,
        options.records,
        question.replicates,
    )
    return validate(validation, progress)


def _configurations(result: TuneResult, count: int, room: int) -> tuple[Configuration, ...]:
    """The ``count`` best with at most ``room`` ranks, and the rivals of the verdict."""
    fitting = [s for s in result.scored if s.rate and s.candidate.accelerators <= room]
    chosen = fitting[:count]
    for comparison in (result.verdict.colocated, result.verdict.one_to_one):
        if comparison is not None and comparison.rival in fitting[count:]:
            chosen.append(comparison.rival)
    if not chosen:
        fix = f"none of the clusters that meet the SLO has room on this machine ({room} ranks)"
        raise InvalidField("--validate", True, fix)
    return tuple(_configuration(scored, result) for scored in chosen)


def _configuration(scored: Scored, result: TuneResult) -> Configuration:
    [spec] = cluster_specs(scored.candidate, result.question.base)
    return Configuration(str(scored.candidate), spec)


def _room(profile: LatencyProfile) -> int:
    return len(usable_cores() if profile.device == "cpu" else visible_gpus())


def _loads(options: ValidateOptions, result: TuneResult) -> tuple[OfferedLoad, ...]:
    trace = result.question.trace
    seconds = parse_seconds("--replay-time", options.seconds)
    return tuple(
        OfferedLoad(trace.name, rate, first_seconds(trace.at_rate(rate), seconds))
        for rate in _parse_rates(options.rates) or _usual_rates(result)
    )


def _usual_rates(result: TuneResult) -> Sequence[float]:
    best = max(scored.rate for scored in result.scored)
    return [float(f"{share * best:.2g}") for share in (_COMFORTABLE, _NEAR_ITS_LIMIT)]


def _parse_rates(text: str | None) -> list[float]:
    """Requests per second, such as 0.5,1; none if nothing was typed."""
    try:
        rates = [float(part) for part in text.split(",")] if text is not None else []
    except ValueError:
        raise InvalidField("--rates", text, "must be requests per second, such as 0.5,1") from None
    return [parse_rate("--rates", rate) for rate in rates]
