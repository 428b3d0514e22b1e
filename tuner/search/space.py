"""Every cluster that a budget of accelerators allows: ratios and shapes, and colocated as a rival.

Pure. Does not cover: which of them is good (``bounds``, ``halving``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from core.errors import InvalidField
from core.kv_config import KVSpec
from core.latency_profile import EngineProfile, LatencyProfile
from core.shards import ParallelShape
from tuner.search.one_host import common_threads, threads_on_host
from tuner.simulate.from_spec import blocks_of_replica

# Pairs of name and value.
Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Accelerators:
    """``count`` of one kind at ``hour_price`` each (0: not known), and what was profiled on it.
    A profile of CPU workers counts ranks. ``name``: told in the names of clusters, where there are
    two kinds. ``nodes``: labels of the Kubernetes nodes that have them."""

    profile: LatencyProfile
    count: int
    hour_price: float = 0.0
    name: str = ""
    nodes: Labels = ()

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

    @property
    def host_cores(self) -> int | None:
        """Of the one host on which all workers run, if they run on a CPU that was measured."""
        profile = self.decode.profile
        on_host = self.is_shared and profile.device == "cpu" and profile.cores
        return profile.cores if on_host else None


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the scheduler of one worker, see ``core.config.PoolSpec``."""

    max_num_seqs: int
    max_num_batched_tokens: int


@dataclass(frozen=True, slots=True)
class PoolChoice:
    """``replicas`` of ``shape`` on accelerators of one kind.

    ``threads``: of each rank on a CPU; None: any that was profiled. ``host_cores``: of the host
    that all workers of the cluster share; None: each has hardware of its own."""

    on: Accelerators
    replicas: int
    shape: ParallelShape
    limits: Limits
    threads: int | None = None
    host_cores: int | None = None

    @property
    def accelerators(self) -> int:
        """On a shared host the cores that its threads could use."""
        ranks = self.replicas * self.shape.num_ranks
        return ranks if self.host_cores is None else ranks * (self.threads or 1)

    @property
    def hour_price(self) -> float:
        return self.accelerators * self.on.hour_price

    @property
    def engine(self) -> EngineProfile:
        """Of a worker while nobody else computes on its host."""
        return self.on.profile.engine(self.shape, threads=self.threads)


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
        used = sum(pool.accelerators for pool in self.pools)
        host_cores = self.decode[0].host_cores
        return used if host_cores is None else min(used, host_cores)

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
            numbers = "+".join(f"{p.replicas} {p.on.name}".strip() for p in self.decode)
            return f"colocated {numbers}, {shapes}"
        return f"{self.prefill.replicas}P:{self.decode[0].replicas}D, {shapes}"

    def with_threads(self, threads: int, host_cores: int | None) -> Candidate:
        """The same cluster with ``threads`` for each rank, see ``PoolChoice``."""
        prefill = self.prefill
        if prefill is not None:
            prefill = replace(prefill, threads=threads, host_cores=host_cores)
        return Candidate(
            prefill,
            tuple(replace(p, threads=threads, host_cores=host_cores) for p in self.decode),
        )


def all_candidates(
    budget: Budget,
    longest: int,
    limits: Limits,
    *,
    spend_all: bool = True,
    prefill_limits: Limits | None = None,
    kv: KVSpec | None = None,
    threads: int | None = None,
) -> list[Candidate]:
    """Those whose every worker can hold a request of ``longest`` tokens, and between whose pools
    transfers were profiled.

    ``spend_all``: only clusters to which no further replica can be added (with two kinds also
    colocated serving on one of them, and 1:1), for the most goodput that the budget can give; else
    also all smaller ones, to find the cheapest that suffices. ``prefill_limits``: of prefill
    workers, None: ``limits``; ``kv``, ``threads`` (of each rank, on CPUs; None: as suits their
    number): of all workers.
    Raises ``InvalidField`` if no replica can hold the longest request.
    """
    wanted = _Wanted(
        budget, limits, prefill_limits or limits, longest, kv or KVSpec(), threads, spend_all
    )
    shapes = {kind: _shapes(kind, wanted) for kind in _unique(budget.kinds)}
    if not any(shapes.values()):
        _refuse_too_few(wanted)
        raise InvalidField("TRACE", longest, _needed_room(budget, longest, wanted.kv))
    # With fewer workers on a host each has more threads: that leaves no core unused.
    every = wanted if budget.host_cores is None else replace(wanted, spend_all=False)
    found = [*_colocated(every, shapes), *_split(every, shapes)]
    placed = [_placed(candidate, wanted) for candidate in found]
    return [candidate for candidate in placed if candidate is not None]


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What ``all_candidates`` was asked for."""

    budget: Budget
    limits: Limits
    prefill_limits: Limits
    longest: int
    kv: KVSpec
    threads: int | None
    spend_all: bool

    def is_held_by(
        self, profile: LatencyProfile, shape: ParallelShape, engine: EngineProfile
    ) -> bool:
        """Whether a replica has room for the longest request, and the hardware for the blocks that
        the config asks for."""
        blocks = blocks_of_replica(self.kv, profile, shape, engine.kv_tokens)
        return self.longest <= blocks * self.kv.block_size <= engine.kv_tokens


def _unique(kinds: Sequence[Accelerators]) -> list[Accelerators]:
    return list({id(kind): kind for kind in kinds}.values())


def _refuse_too_few(wanted: _Wanted) -> None:
    """Raises ``InvalidField`` if more accelerators could hold what so many can't."""
    for kind in wanted.budget.kinds:
        more = replace(kind, count=max(e.shape.num_ranks for e in kind.profile.engines))
        if larger := _shapes(more, wanted):
            least = min(shape.num_ranks for shape in larger)
            fix = f"a replica of {kind.profile.model} for {wanted.longest} tokens takes {least}"
            raise InvalidField("gpus", kind.count, fix)


def _needed_room(budget: Budget, longest: int, kv: KVSpec) -> str:
    fix = f"none of the profiled shapes can hold {longest} tokens"
    if kv.num_blocks is not None:
        return f"{fix} in kv.num_blocks = {kv.num_blocks}, or none has memory for so many"
    if kv.memory is None and budget.decode.profile.device != "cpu":
        return f"{fix}: take larger ones"
    return f"{fix}: take larger ones, or give more kv.memory"


def _shapes(kind: Accelerators, wanted: _Wanted) -> list[ParallelShape]:
    fitting = [
        engine.shape
        for engine in kind.profile.engines
        if engine.core_share == 1.0
        and wanted.is_held_by(kind.profile, engine.shape, engine)
        and engine.shape.num_ranks <= kind.count
    ]
    # A profile may have a shape several times, with other threads or beside others.
    return list(dict.fromkeys(fitting))


Shapes = dict[Accelerators, list[ParallelShape]]


def _colocated(wanted: _Wanted, shapes: Shapes) -> Iterator[Candidate]:
    """On each kind alone; with two kinds also on both, each in any of its shapes."""
    kinds = wanted.budget.kinds
    for kind in kinds:
        for pool in _mixed_pools(kind, shapes[kind], wanted, wanted.spend_all):
            yield Candidate(None, (pool,))
    if len(kinds) < 2:
        return
    largest = [list(_mixed_pools(kind, shapes[kind], wanted, True)) for kind in kinds]
    # For a rate: all of one kind and what it takes of the other.
    some = [list(_mixed_pools(kind, shapes[kind], wanted, wanted.spend_all)) for kind in kinds]
    both = dict.fromkeys([*product(some[0], largest[1]), *product(largest[0], some[1])])
    yield from (Candidate(None, pools) for pools in both)


def _mixed_pools(
    kind: Accelerators, shapes: list[ParallelShape], wanted: _Wanted, only_most: bool
) -> Iterator[PoolChoice]:
    for shape in shapes:
        for replicas in _counts(kind.count // shape.num_ranks, only_most):
            yield PoolChoice(kind, replicas, shape, wanted.limits)


def _split(wanted: _Wanted, shapes: Shapes) -> Iterator[Candidate]:
    budget = wanted.budget
    for source in shapes[budget.prefill]:
        for target in shapes[budget.decode]:
            if not all(_has_edge(kind, source, target) for kind in budget.kinds):
                continue
            for prefills, decodes in _counts_of_both(budget, source, target, wanted.spend_all):
                yield Candidate(
                    PoolChoice(budget.prefill, prefills, source, wanted.prefill_limits),
                    (PoolChoice(budget.decode, decodes, target, wanted.limits),),
                )


def _placed(candidate: Candidate, wanted: _Wanted) -> Candidate | None:
    """With the threads of its workers, where these run on CPUs; None if it was not profiled."""
    pools = candidate.pools
    host_cores = wanted.budget.host_cores
    if host_cores is None:
        if any(pool.on.profile.device != "cpu" for pool in pools):
            return candidate
        profiles = [pool.on.profile for pool in pools]
        common = common_threads(profiles, [pool.shape for pool in pools], wanted.threads)
        return candidate.with_threads(common, None) if common else None
    profile = pools[0].on.profile
    replicas = [pool.shape for pool in pools for _ in range(pool.replicas)]
    on_host = threads_on_host(
        profile,
        replicas,
        lambda shape, engine: wanted.is_held_by(profile, shape, engine),
        wanted.threads,
    )
    if on_host is None:
        return None
    placed = candidate.with_threads(on_host, host_cores)
    threads = wanted.threads or 1
    spent = placed.accelerators >= min(wanted.budget.total * threads, host_cores)
    return placed if spent or not wanted.spend_all else None


def _has_edge(kind: Accelerators, source: ParallelShape, target: ParallelShape) -> bool:
    """Whether it was profiled how long blocks take from one shape to the other."""
    edges = {(transfer.source, transfer.target) for transfer in kind.profile.transfers}
    return (source, target) in edges


def _counts_of_both(
    budget: Budget, source: ParallelShape, target: ParallelShape, spend_all: bool
) -> Iterator[tuple[int, int]]:
    if not budget.is_shared:
        yield from _counts_of_two_kinds(budget, source, target, spend_all)
        return
    for prefills in range(1, budget.prefill.count // source.num_ranks + 1):
        left = budget.decode.count - prefills * source.num_ranks
        most = left // target.num_ranks
        if most < 1:
            return
        for decodes in _counts(most, spend_all):
            if not spend_all or left - decodes * target.num_ranks < source.num_ranks:
                yield prefills, decodes


def _counts_of_two_kinds(
    budget: Budget, source: ParallelShape, target: ParallelShape, spend_all: bool
) -> Iterable[tuple[int, int]]:
    """All of both kinds, and the rival 1:1 though it leaves some of one kind idle: where all are
    spent, shapes that happen to give equal numbers would stand for it."""
    prefills = budget.prefill.count // source.num_ranks
    decodes = budget.decode.count // target.num_ranks
    if not spend_all:
        return product(range(1, prefills + 1), range(1, decodes + 1))
    equal = min(prefills, decodes)
    return dict.fromkeys([(prefills, decodes), (equal, equal)])


def _counts(most: int, only_most: bool) -> range:
    return range(most, most + 1) if only_most else range(1, most + 1)


def _shape_words(shape: ParallelShape) -> str:
    return f"tp {shape.tensor}" + (f" pp {shape.pipeline}" if shape.pipeline > 1 else "")
