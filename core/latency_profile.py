"""How long steps and transfers take, as fitted to measurements or computed from a roofline. Pure.

One model for prefill, decode and steps that do both, because the engine has one kind of step. Its
time is a sum: of what the rows take (weights are read once whatever their number, then arithmetic
grows: a curve of straight pieces), of the drawn tokens (each needs the row of the vocabulary), and
of attention, once for (query, key) pairs of prompt chunks and once for the context that decoding
sequences read. With one decoding sequence more in each step that is a + b·batch + c·Σcontext, with
one chunk a + b·tokens + c·tokens·context.

All times are whole femtoseconds, so that the time of many steps at once is exactly the sum of their
times. Does not cover: measuring and fitting (``tuner.profile``), who waits for whom
(``tuner.simulate``).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from math import isqrt
from typing import Literal, NamedTuple

from core.errors import InvalidField
from core.shards import ParallelShape
from core.step import StepPlan

FEMTOSECONDS = 10**15


def femtoseconds(seconds: float) -> int:
    return round(seconds * FEMTOSECONDS)


class StepWork(NamedTuple):
    """What one step computes.

    ``rows``: tokens that go through the layers; ``sampled``: tokens that are drawn;
    ``prefill_pairs``: (query, key) pairs of all prompt chunks; ``decodes``: sequences with one
    token; ``decode_context``: tokens that these attend to, their own included.
    """

    rows: int
    sampled: int
    prefill_pairs: int
    decodes: int
    decode_context: int

    @classmethod
    def of(cls, plan: StepPlan) -> StepWork:
        rows = sampled = pairs = decodes = context = 0
        for piece in plan.slices:
            count = len(piece.tokens)
            rows += count
            sampled += len(piece.samples)
            if count == 1:
                decodes += 1
                context += piece.end
            else:
                pairs += chunk_pairs(piece.start, count)
        return cls(rows, sampled, pairs, decodes, context)


def chunk_pairs(start: int, count: int) -> int:
    """(query, key) pairs of a causal chunk of ``count`` tokens after ``start`` others."""
    return count * start + count * (count + 1) // 2


@dataclass(frozen=True)
class RowCurve:
    """Femtoseconds by number of rows: straight between ``(rows, time)`` points, and beyond the
    last two in their direction. ``rows`` rises strictly from 0 or 1."""

    points: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        rows = [point[0] for point in self.points]
        if len(rows) < 2 or sorted(set(rows)) != rows:
            raise InvalidField("rows", rows, "a curve has two points or more, with rising rows")

    @cached_property
    def _known(self) -> dict[int, int]:
        """Of the numbers of rows that were asked for: there are as many as a step may have. No
        field, as it is no part of a profile."""
        return {}

    def at(self, rows: int) -> int:
        time = self._known.get(rows)
        if time is None:
            time = self._known[rows] = self._between(rows)
        return time

    def _between(self, rows: int) -> int:
        index = bisect_right(self.points, (rows, -1)) - 1
        index = min(max(index, 0), len(self.points) - 2)
        (low, start), (high, end) = self.points[index], self.points[index + 1]
        return max(0, start + (end - start) * (rows - low) // (high - low))


@dataclass(frozen=True, slots=True)
class StepModel:
    """Time of an engine step, all stages of the pipeline together. Femtoseconds."""

    rows: RowCurve
    per_sampled: int
    per_prefill_pair: int
    per_decode_context: int

    def time(self, work: StepWork) -> int:
        return (
            self.rows.at(work.rows)
            + self.per_sampled * work.sampled
            + self.per_prefill_pair * work.prefill_pairs
            + self.per_decode_context * work.decode_context
        )

    def scaled(self, factor: float) -> StepModel:
        """Every step takes ``factor`` times as long."""
        return StepModel(
            rows=RowCurve(tuple((rows, round(time * factor)) for rows, time in self.rows.points)),
            per_sampled=round(self.per_sampled * factor),
            per_prefill_pair=round(self.per_prefill_pair * factor),
            per_decode_context=round(self.per_decode_context * factor),
        )

    def steps_within(self, first: StepWork, time: int) -> int:
        """The largest number of steps in a row, each with the sequences of ``first``, that take at
        most ``time``. They decode: the context grows by their number from step to step."""
        start, growth = self.time(first), self.per_decode_context * first.decodes
        if time < start:
            return 0
        if growth == 0:
            return time // start if start else 2**31
        # growth/2 · n² + (start − growth/2) · n ≤ time
        b = 2 * start - growth
        return (isqrt(b * b + 8 * growth * time) - b) // (2 * growth)


@dataclass(frozen=True, slots=True)
class FitError:
    """Relative errors of a fit on points that it had not seen. ``residuals``: measured / fitted,
    one for each point. ``worst_point``: which one that is, in words."""

    median: float
    p95: float
    worst: float
    residuals: tuple[float, ...] = ()
    worst_point: str = ""


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """One replica of ``shape``, each rank with ``threads`` (CPU) or a GPU of its own.

    ``core_share``: of each of its cores it has this share, the rest is others' (1: all of it).
    ``company``: how many other replicas computed on the same host while it was measured. They
    slow it even from cores of their own: memory is shared.
    ``kv_tokens``: what its KV pool can hold at most on this hardware, in tokens. ``error``: None
    if the model was computed and not fitted.
    """

    shape: ParallelShape
    threads: int
    core_share: float
    step: StepModel
    kv_tokens: int
    error: FitError | None = None
    company: int = 0

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        company = f", beside {self.company}" if self.company else ""
        return f"{self.shape}, {threads} each, core share {self.core_share:g}{company}"


@dataclass(frozen=True, slots=True)
class TransferModel:
    """Time from the announcement of finished blocks to their being verified: a fixed part for each
    batch and a part for each token's KV, in femtoseconds. One edge moves one batch at a time."""

    per_batch: int
    per_token: int

    def time(self, tokens: int) -> int:
        return self.per_batch + self.per_token * tokens


@dataclass(frozen=True, slots=True)
class TransferProfile:
    """``transport`` between a prefill replica of ``source`` and a decode replica of ``target``."""

    transport: str
    source: ParallelShape
    target: ParallelShape
    model: TransferModel
    error: FitError | None = None


@dataclass(frozen=True, slots=True)
class Interference:
    """How many times as long steps take while others compute on all other cores of the host: steps
    that only decode and steps with prompts, beside others that do the one or the other.

    Caches and memory are shared, and those who carry tokens away (router, doors, clients) take some
    of each core. 1: not at all.
    """

    decode_beside_decode: float
    decode_beside_prefill: float
    prefill_beside_decode: float
    prefill_beside_prefill: float

    def added(self, decodes: bool, others_decode: bool) -> float:
        """What others add to a step, as a share of its time alone. ``decodes``, ``others_decode``:
        nothing but decoding."""
        if decodes:
            factor = self.decode_beside_decode if others_decode else self.decode_beside_prefill
        else:
            factor = self.prefill_beside_decode if others_decode else self.prefill_beside_prefill
        return factor - 1.0


class Origin(Enum):
    """Where a profile's numbers come from."""

    MEASURED = "measured"
    MODELLED = "modelled"


@dataclass(frozen=True, slots=True)
class LatencyProfile:
    """All that is known of one model on one kind of hardware.

    ``message_s``: seconds that a control message takes from one process to another and through
    it; ``request_s``: those of the router and the doors for a request, one way. ``model_hash`` is
    "" for a model that nobody loaded. ``weight_bytes``, ``kv_bytes_per_token``: of a whole replica.
    ``created``: ISO 8601; ``device``: as ``engine.device`` of a config. ``cores``: of the host that
    it was measured on, as many as could be used; 0: not known. ``interference``: of replicas on
    different cores of one host; None: not measured, the ``company`` of engines has to do.
    ``left_out``: what was to be measured and could not be, in words.
    """

    origin: Origin
    hardware: str
    model: str
    model_hash: str
    dtype: str
    created: str
    max_positions: int
    weight_bytes: int
    kv_bytes_per_token: int
    message_s: float
    request_s: float
    engines: tuple[EngineProfile, ...]
    transfers: tuple[TransferProfile, ...]
    device: Literal["cpu", "cuda"] = "cpu"
    cores: int = 0
    interference: Interference | None = None
    left_out: tuple[str, ...] = ()

    def engine(
        self,
        shape: ParallelShape,
        core_share: float = 1.0,
        *,
        threads: int | None = None,
        company: int = 0,
    ) -> EngineProfile:
        """The one whose company is nearest to ``company`` replicas that compute beside it.

        ``threads`` of each rank; None: any. Raises ``InvalidField`` naming what is there.
        """
        suited = [
            engine
            for engine in self.engines
            if (engine.shape, engine.core_share) == (shape, core_share)
            and threads in (None, engine.threads)
        ]
        if suited:
            return min(suited, key=lambda engine: abs(engine.company - company))
        of_threads = "" if threads is None else f" of {threads} threads"
        raise InvalidField(
            "profile",
            f"{shape}{of_threads} with core share {core_share:g}",
            f"was not profiled; this profile of {self.model} has {_listed(self.engines)}"
            + self.why_left_out,
        )

    @property
    def why_left_out(self) -> str:
        """To be put behind what is missing."""
        return f" ({'; '.join(self.left_out)})" if self.left_out else ""


def _listed(engines: Sequence[EngineProfile]) -> str:
    return "; ".join(str(engine) for engine in engines) or "no engine"
