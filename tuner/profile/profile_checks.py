"""What makes no sense in a latency profile whose fields have the right types. Pure.

Files are edited by hand and copied between versions: a time that is negative, endless or missing
would come back from a simulation as nonsense, or as one that never ends.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import astuple
from itertools import pairwise

from core.kv_layout import DTYPE_BYTES
from core.latency_profile import EngineProfile, FitError, LatencyProfile, StepModel
from core.shards import MAX_RANKS

# In femtoseconds about twelve days, longer than any step; and tokens of a pool.
_LONGEST_TIME = 10**21
_MOST_TOKENS = 10**10


def find_problem(profile: LatencyProfile) -> str:
    """In words, with where it is; "" if there is none."""
    return next(_problems(profile), "")


def unknown_field(stated: object, known: object, where: str = "") -> str:
    """The path of the first field in ``stated`` that ``known``, the same as it is written, has not;
    "" if there is none."""
    if isinstance(stated, dict) and isinstance(known, dict):
        for key, value in stated.items():
            path = f"{where}.{key}" if where else str(key)
            if key not in known:
                return path
            if found := unknown_field(value, known[key], path):
                return found
    if isinstance(stated, list) and isinstance(known, list):
        for index, (one, other) in enumerate(zip(stated, known, strict=True)):
            if found := unknown_field(one, other, f"{where}.{index}"):
                return found
    return ""


def _problems(profile: LatencyProfile) -> Iterator[str]:
    if profile.dtype not in DTYPE_BYTES:
        yield f"dtype {profile.dtype!r} is none of {', '.join(DTYPE_BYTES)}"
    sizes = ("max_positions", "weight_bytes", "kv_bytes_per_token")
    yield from (f"{name} is below 1" for name in sizes if getattr(profile, name) < 1)
    if profile.cores < 0:
        yield "cores is below 0"
    if not all(0 <= value < 60 for value in (profile.message_s, profile.request_s)):
        yield "message_s and request_s must be seconds from 0 on"
    found = profile.interference
    if found is not None and not all(1 <= factor < math.inf for factor in astuple(found)):
        yield "interference must be numbers from 1 on"
    if not profile.engines:
        yield "it has no engine"
    for engine in profile.engines:
        yield from (f"{problem} of engine {engine}" for problem in _of_engine(engine))
    for transfer in profile.transfers:
        times = (transfer.model.per_batch, transfer.model.per_token)
        problems = [*_of_times(times), *_of_error(transfer.error)]
        yield from (f"{problem} of the {transfer.transport} transfer" for problem in problems)


def _of_engine(engine: EngineProfile) -> Iterator[str]:
    if not 0 < engine.core_share <= 1:
        yield f"core share {engine.core_share}"
    if min(engine.threads, engine.shape.tensor, engine.shape.pipeline, engine.kv_tokens) < 1:
        yield "a size below 1"
    if engine.shape.num_ranks > MAX_RANKS or engine.kv_tokens > _MOST_TOKENS:
        yield "a size beyond all hardware"
    if engine.company < 0:
        yield "a company below 0"
    yield from _of_step(engine.step)
    yield from _of_error(engine.error)


def _of_step(step: StepModel) -> Iterator[str]:
    heights = [time for _, time in step.rows.points]
    yield from _of_times((step.per_sampled, step.per_prefill_pair, step.per_decode_context))
    yield from _of_times(heights)
    if step.rows.points[0][0] < 0:
        yield "a number of rows below 0"
    if any(later < earlier for earlier, later in pairwise(heights)):
        yield "a time that falls while rows are added"
    if step.rows.at(1) == 0:
        yield "a step that takes no time"


def _of_times(times: Iterable[int]) -> Iterator[str]:
    for time in times:
        if time < 0:
            yield "a negative time"
        if time > _LONGEST_TIME:
            yield "a time of days"


def _of_error(error: FitError | None) -> Iterator[str]:
    if error is None:
        return
    if not all(0 <= value < math.inf for value in (error.median, error.p95, error.worst)):
        yield "an error of the fit that is no number"
    if not all(0 < value < math.inf for value in error.residuals):
        yield "a residual that is not above 0"
