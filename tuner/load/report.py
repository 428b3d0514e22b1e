"""The report of a benchmark: plain data for JSON, rows for a table, and what to be wary of.

Pure. Does not cover printing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tuner.load.bench import BenchResult
from tuner.load.metrics import RunResult, Slo, Spread, Summary, summarize
from tuner.load.plan import Plan
from tuner.load.records import RequestRecord

# A generator that sends its slowest hundredth this late distorts the arrivals it should make.
LAG_LIMIT_S = 0.05
# Prompts whose mean length differs by a larger share are not the ones that were asked for.
LENGTH_TOLERANCE = 0.05

Row = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """What was measured and how, for people to repeat it.

    ``protocol``: completions, chat, grpc or grpc by ticket.
    """

    target: str
    protocol: str
    prompt_format: str
    arrivals: str
    workload: str
    content_seed: int
    slo: Slo
    max_concurrency: int | None


@dataclass(frozen=True, slots=True)
class Report:
    """``per_seed`` in the order of the runs; ``total`` takes their requests together."""

    settings: Settings
    model: str
    overhead: int
    seeds: tuple[int, ...]
    total: Summary
    per_seed: tuple[Summary, ...]
    warnings: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        per_seed = zip(self.seeds, self.per_seed, strict=True)
        return {
            "model": self.model,
            **asdict(self.settings),
            "prompt_overhead_tokens": self.overhead,
            "warnings": list(self.warnings),
            "total": asdict(self.total),
            "per_seed": [{"seed": seed, **asdict(summary)} for seed, summary in per_seed],
        }

    def table(self) -> tuple[Row, list[Row]]:
        """Columns and rows: one row for each number, the total first, then every seed."""
        many = len(self.seeds) > 1
        summaries = (self.total, *(self.per_seed if many else ()))
        names = ("all seeds",) if many else (f"seed {self.seeds[0]}",) if self.seeds else ("",)
        columns = ("", *names, *(f"seed {seed}" for seed in self.seeds if many))
        return columns, [(name, *map(show, summaries)) for name, show in _ROWS]

    def errors(self) -> list[Row]:
        """(kind, count, words of the first one) of every kind of failure."""
        counted = self.total.errors.items()
        return [(kind, str(errors.count), errors.example) for kind, errors in counted]


def make_report(settings: Settings, plans: Sequence[Plan], result: BenchResult) -> Report:
    total = summarize(result.runs, settings.slo)
    warnings = (
        *_about_generator(total, settings, result.runs),
        *_about_lengths(plans, result),
    )
    return Report(
        settings=settings,
        model=result.model.name,
        overhead=result.overhead,
        seeds=tuple(run.seed for run in result.runs),
        total=total,
        per_seed=tuple(summarize([run], settings.slo) for run in result.runs),
        warnings=warnings,
    )


def _about_generator(total: Summary, settings: Settings, runs: Sequence[RunResult]) -> list[str]:
    found = []
    if any(run.interrupted for run in runs):
        found.append(
            f"interrupted: {total.interrupted} unanswered requests are left out, and those that "
            "were not due yet"
        )
    if total.lag_s is not None and total.lag_s.p99 > LAG_LIMIT_S:
        late = (
            f"requests were sent up to {total.lag_s.max:.3f} s late (p99 {total.lag_s.p99:.3f} s)"
        )
        why = (
            "they waited for --max-concurrency, so this was no open loop"
            if settings.max_concurrency is not None
            else "the generator could not keep up; lower --rate, or give it cores of its own"
        )
        found.append(f"{late}: {why}")
    return found


def _about_lengths(plans: Sequence[Plan], result: BenchResult) -> list[str]:
    done = [record for run in result.runs for record in run.records if record.is_complete]
    limit = result.model.max_model_len
    planned = [request for plan in plans for request in plan.requests]
    too_long = sum(r.prompt_tokens + r.output_tokens > (limit or 0) for r in planned)
    found = []
    if limit is not None and too_long:
        found.append(
            f"{too_long} of {len(planned)} requests are longer than the model's {limit} tokens"
        )
    if without := sum(record.usage is None for record in done):
        found.append(
            f"{without} answers came without usage: prompt tokens are not counted, and each piece "
            "of an answer counts as one token"
        )
    if short := sum(record.output_tokens < record.wanted_output_tokens for record in done):
        found.append(f"{short} of {len(done)} answers were shorter than planned")
    return found + _about_prompts(done)


def _about_prompts(done: Sequence[RequestRecord]) -> list[str]:
    counted = [(r.usage.prompt_tokens, r.wanted_prompt_tokens) for r in done if r.usage]
    real, wanted = sum(pair[0] for pair in counted), sum(pair[1] for pair in counted)
    if abs(real - wanted) <= LENGTH_TOLERANCE * wanted:
        return []
    return [
        f"prompts had {real / len(counted):.0f} tokens on average where "
        f"{wanted / len(counted):.0f} were planned: is --tokenizer the model's own?"
    ]


Show = Callable[[Summary], str]


def _spread_rows(name: str, pick: Callable[[Summary], Spread | None]) -> list[tuple[str, Show]]:
    return [(f"{name} {part} ms", _shows(pick, part)) for part in ("mean", "p50", "p90", "p99")]


def _shows(pick: Callable[[Summary], Spread | None], part: str) -> Show:
    return lambda summary: _milliseconds(pick(summary), part)


def _milliseconds(spread: Spread | None, part: str) -> str:
    return "–" if spread is None else f"{getattr(spread, part) * 1000:.1f}"


_ROWS: list[tuple[str, Show]] = [
    ("requests sent", lambda s: str(s.sent)),
    ("completed", lambda s: str(s.completed)),
    ("failed", lambda s: str(s.failed)),
    ("planned requests/s", lambda s: f"{s.planned_requests_per_s:.3f}"),
    ("completed requests/s", lambda s: f"{s.completed_requests_per_s:.3f}"),
    ("goodput requests/s", lambda s: f"{s.goodput.requests_per_s:.3f}"),
    ("goodput share", lambda s: f"{s.goodput.share:.1%}"),
    ("share within TTFT", lambda s: f"{s.goodput.share_ttft:.1%}"),
    ("share within TPOT", lambda s: f"{s.goodput.share_tpot:.1%}"),
    ("tokens in", lambda s: str(s.input_tokens)),
    ("– of them cached", lambda s: str(s.cached_tokens)),
    ("tokens out", lambda s: str(s.output_tokens)),
    ("tokens/s in", lambda s: f"{s.input_tokens_per_s:.1f}"),
    ("tokens/s out", lambda s: f"{s.output_tokens_per_s:.1f}"),
    *_spread_rows("TTFT", lambda s: s.ttft_s),
    *_spread_rows("TPOT", lambda s: s.tpot_s),
    *_spread_rows("ITL", lambda s: s.itl_s),
    *_spread_rows("E2E", lambda s: s.e2e_s),
    ("lag mean ms", lambda s: _milliseconds(s.lag_s, "mean")),
    ("lag p99 ms", lambda s: _milliseconds(s.lag_s, "p99")),
    ("lag max ms", lambda s: _milliseconds(s.lag_s, "max")),
]
