"""A search as JSON: all that is known of every candidate. Pure.

Does not cover: words and rows for people (``report``).
"""

from __future__ import annotations

import math
from typing import Any

from tuner.load.metrics import Spread
from tuner.search.halving import Scored
from tuner.search.limiting import limited_by
from tuner.search.report import tokens_per_accelerator, tokens_per_user, verdict_lines
from tuner.search.space import PoolChoice
from tuner.search.tune import TuneResult
from tuner.search.verdict import Comparison


def as_json(result: TuneResult) -> dict[str, Any]:
    """Seconds, requests per second; what is not known or has no end is None."""
    question, verdict = result.question, result.verdict
    return {
        "trace": question.trace.name,
        "requests": len(question.trace),
        "goal": {
            "ttft_s": question.goal.slo.ttft_s,
            "tpot_s": question.goal.slo.tpot_s,
            "percentile": question.goal.percentile,
            "rate": question.rate,
        },
        "traffic": {
            "prompt_tokens": result.traffic.prompt_tokens,
            "output_tokens": result.traffic.output_tokens,
            "hit_rate_at_most": result.traffic.hit_rate,
        },
        "verdict": {
            "winner": None if verdict.winner is None else _scored_json(verdict.winner),
            "nearest": _scored_json(verdict.nearest),
            "disaggregate": verdict.disaggregate,
            "over_colocated": _comparison_json(verdict.colocated),
            "over_one_to_one": _comparison_json(verdict.one_to_one),
            "lines": verdict_lines(result),
        },
        "sensitivity": [
            {
                "change": shift.change,
                "best": str(shift.best),
                "rate": shift.rate,
                "winner_rate": shift.stays_at,
            }
            for shift in result.shifts
        ],
        "candidates": [_scored_json(scored) for scored in result.scored],
    }


def _scored_json(scored: Scored) -> dict[str, Any]:
    candidate, reached = scored.candidate, scored.reached
    data: dict[str, Any] = {
        "cluster": str(candidate),
        "colocated": candidate.is_colocated,
        "pools": [_pool_json(pool) for pool in candidate.pools],
        "gpus": candidate.accelerators,
        "hour_price": candidate.hour_price,
        "bound_rate": _finite(scored.bound.rate),
        "bound_limited_by": scored.bound.limited_by.value,
        "limited_by": scored.bound.limited_by.value,
        "estimated_rate": scored.estimate,
        "rungs": scored.rungs,
        "rate": None,
    }
    trial = reached.told if reached is not None else None
    if reached is None or trial is None:
        return data
    return data | {
        "rate": reached.rate,
        "rate_per_gpu": scored.rate_per_accelerator,
        "simulated_rate": trial.rate,
        "counted_requests": trial.summary.requests,
        "seconds_by_trend": trial.further_s,
        "falls_behind_by": trial.growth,
        "lasting_rate": trial.lasting_rate,
        "simulated_part": 1 / trial.divided_by,
        "share_within_slo": trial.share,
        "is_cut_short": trial.is_cut_short,
        "tokens_per_s_per_gpu": tokens_per_accelerator(scored, trial),
        "tokens_per_s_per_user": tokens_per_user(trial),
        "limited_by": limited_by(trial, scored.bound).value,
        "busy": {pool.role.value: pool.busy for pool in trial.summary.pools},
        **_percentiles("ttft", trial.summary.ttft_s),
        **_percentiles("tpot", trial.summary.tpot_s),
        "simulations": reached.simulations,
    }


def _pool_json(pool: PoolChoice) -> dict[str, Any]:
    return {
        "hardware": pool.on.profile.hardware,
        "replicas": pool.replicas,
        "tensor_parallel_size": pool.shape.tensor,
        "pipeline_parallel_size": pool.shape.pipeline,
        "max_num_seqs": pool.limits.max_num_seqs,
        "max_num_batched_tokens": pool.limits.max_num_batched_tokens,
    }


def _percentiles(name: str, spread: Spread | None) -> dict[str, float | None]:
    parts = ("p50", "p90", "p99")
    return {f"{name}_{part}_s": None if spread is None else getattr(spread, part) for part in parts}


def _comparison_json(comparison: Comparison | None) -> dict[str, Any] | None:
    if comparison is None:
        return None
    likely = comparison.likely
    return {
        "rival": str(comparison.rival.candidate),
        "ratio": comparison.ratio,
        "lasting_ratio": comparison.lasting,
        "likely_low": None if likely is None else likely.low,
        "likely_median": None if likely is None else likely.median,
        "likely_high": None if likely is None else likely.high,
    }


def _finite(value: float) -> float | None:
    """JSON has no number for what nothing limits."""
    return value if math.isfinite(value) else None
