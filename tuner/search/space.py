"""Every cluster that a budget of accelerators allows: ratios and shapes, and colocated as a rival.

Pure. Does not cover: which of them is good (``bounds``, ``halving``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from core.errors import InvalidField
from core.latency_profile import EngineProfile, LatencyProfile
from core.shards import ParallelShape


@dataclass(frozen=True, slots=True)
class Accelerators:
    """``count`` of one kind at ``hour_price`` each (0: not known), and what was profiled on it.
    A profile of CPU workers counts ranks."""

    profile: LatencyProfile
    count: int
    hour_price: float = 0.0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InvalidField("gpus", self.count, "must be 1 or more")


@dataclass(frozen=True, slots=True)
class Budget:
    """What there is. One kind for both pools, or one for each: then nothing is shared."""

    prefill: Accelerators
    decode: Accelerators

    @property
    def is_shared(self) -> bool:
        return self.prefill is self.decode

    @property
    def total(self) -> int:
        return self.prefill.count if self.is_shared else self.prefill.count + self.decode.count

    @property
    def kinds(self) -> tuple[Accelerators, ...]:
        return (self.prefill,) if self.is_shared else (self.prefill, self.decode)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the scheduler of one worker, see ``core.config.PoolSpec``."""

    max_num_seqs: int
    max_num_batched_tokens: int


@dataclass(frozen=True, slots=True)
class PoolChoice:
    """``replicas`` of ``shape`` on accelerators of one kind."""

    on: Accelerators
    replicas: int
    shape: ParallelShape
    limits: Limits

    @property
    def accelerators(self) -> int:
        return self.replicas * self.shape.num_ranks

    @property
    def hour_price(self) -> float:
        return self.accelerators * self.on.hour_price

    @property
    def engine(self) -> EngineProfile:
        return self.on.profile.engine(self.shape)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One cluster. Without ``prefill`` the pools of ``decode`` are mixed workers: that is
    colocated serving, on every kind of accelerator that there is."""

    prefill: PoolChoice | None
    decode: tuple[PoolChoice, ...]

    @property
    def is_colocated(self) -> bool:
        return self.prefill is None

    @property
    def is_one_to_one(self) -> bool:
        return self.prefill is not None and self.prefill.replicas == self.decode[0].replicas

    @property
    def pools(self) -> tuple[PoolChoice, ...]:
        return self.decode if self.prefill is None else (self.prefill, *self.decode)

    @property
    def accelerators(self) -> int:
        return sum(pool.accelerators for pool in self.pools)

    @property
    def hour_price(self) -> float:
        return sum(pool.hour_price for pool in self.pools)

    @property
    def ratio(self) -> float:
        """Prefill accelerators per decode accelerator; 0 for colocated."""
        prefill = 0 if self.prefill is None else self.prefill.accelerators
        return prefill / sum(pool.accelerators for pool in self.decode)

    def __str__(self) -> str:
        shapes = "/".join(_shape_words(pool.shape) for pool in self.pools)
        if self.prefill is None:
            return f"colocated {'+'.join(str(p.replicas) for p in self.decode)}, {shapes}"
        return f"{self.prefill.replicas}P:{self.decode[0].replicas}D, {shapes}"

    def with_limits(self, prefill: Limits | None, decode: Limits) -> Candidate:
        """The same cluster with other limits; ``prefill`` None leaves its own."""
        chosen = self.prefill
        if chosen is not None and prefill is not None:
            chosen = replace(chosen, limits=prefill)
        return Candidate(chosen, tuple(replace(pool, limits=decode) for pool in self.decode))


def all_candidates(
    budget: Budget, longest: int, limits: Limits, *, spend_all: bool = True
) -> list[Candidate]:
    """Those whose every worker can hold a request of ``longest`` tokens, and between whose pools
    transfers were profiled.

    ``spend_all``: only clusters to which no further replica can be added, for the most goodput
    that the budget can give; else also all smaller ones, to find the cheapest that suffices.
    Raises ``InvalidField`` if no replica can hold the longest request.
    """
    shapes = {kind: _shapes(kind, longest) for kind in _unique(budget.kinds)}
    if not any(shapes.values()):
        fix = f"none of the profiled shapes can hold {longest} tokens: take larger ones"
        raise InvalidField("trace", longest, fix)
    found = [*_colocated(budget, shapes, limits, spend_all)]
    found += _split(budget, shapes, limits, spend_all)
    return found


def _unique(kinds: Sequence[Accelerators]) -> list[Accelerators]:
    return list({id(kind): kind for kind in kinds}.values())


def _shapes(kind: Accelerators, longest: int) -> list[ParallelShape]:
    fitting = [
        engine.shape
        for engine in kind.profile.engines
        if engine.core_share == 1.0
        and engine.kv_tokens >= longest
        and engine.shape.num_ranks <= kind.count
    ]
    # A profile may have a shape several times, with other threads or beside others.
    return list(dict.fromkeys(fitting))


def _colocated(
    budget: Budget,
    shapes: dict[Accelerators, list[ParallelShape]],
    limits: Limits,
    spend_all: bool,
) -> Iterator[Candidate]:
    """With two kinds each takes the shape that it is best at, one after the other."""
    if budget.is_shared:
        kind = budget.decode
        for shape in shapes[kind]:
            for replicas in _counts(kind.count // shape.num_ranks, spend_all):
                yield Candidate(None, (PoolChoice(kind, replicas, shape, limits),))
        return
    for pools in product(*(_largest_pools(kind, shapes[kind], limits) for kind in budget.kinds)):
        used = tuple(pool for pool in pools if pool is not None)
        if used:
            yield Candidate(None, used)


def _largest_pools(
    kind: Accelerators, shapes: list[ParallelShape], limits: Limits
) -> list[PoolChoice | None]:
    """One for each shape; None if there is no shape, so that the other kind serves alone."""
    pools = [PoolChoice(kind, kind.count // shape.num_ranks, shape, limits) for shape in shapes]
    return [*pools] or [None]


def _split(
    budget: Budget,
    shapes: dict[Accelerators, list[ParallelShape]],
    limits: Limits,
    spend_all: bool,
) -> Iterator[Candidate]:
    for source in shapes[budget.prefill]:
        for target in shapes[budget.decode]:
            if not all(_has_edge(kind, source, target) for kind in budget.kinds):
                continue
            for prefills, decodes in _counts_of_both(budget, source, target, spend_all):
                yield Candidate(
                    PoolChoice(budget.prefill, prefills, source, limits),
                    (PoolChoice(budget.decode, decodes, target, limits),),
                )


def _has_edge(kind: Accelerators, source: ParallelShape, target: ParallelShape) -> bool:
    """Whether it was profiled how long blocks take from one shape to the other."""
    edges = {(transfer.source, transfer.target) for transfer in kind.profile.transfers}
    return (source, target) in edges


def _counts_of_both(
    budget: Budget, source: ParallelShape, target: ParallelShape, spend_all: bool
) -> Iterator[tuple[int, int]]:
    for prefills in range(1, budget.prefill.count // source.num_ranks + 1):
        left = budget.decode.count
        if budget.is_shared:
            left -= prefills * source.num_ranks
        most = left // target.num_ranks
        if most < 1:
            return
        if budget.is_shared:
            for decodes in _counts(most, spend_all):
                if not spend_all or left - decodes * target.num_ranks < source.num_ranks:
                    yield prefills, decodes
        elif not spend_all or prefills == budget.prefill.count // source.num_ranks:
            yield from ((prefills, decodes) for decodes in _counts(most, spend_all))


def _counts(most: int, only_most: bool) -> range:
    return range(most, most + 1) if only_most else range(1, most + 1)


def _shape_words(shape: ParallelShape) -> str:
    return f"tp {shape.tensor}" + (f" pp {shape.pipeline}" if shape.pipeline > 1 else "")
