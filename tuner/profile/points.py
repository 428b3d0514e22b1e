"""Which steps, engines and transfers are measured: enough to tell all parts of a model apart. Pure.

Covers: prompt chunks × what is cached before them, decode batches × contexts, chunks beside
decodes, several prompts in a step; replicas by threads, shape and who computes beside them.
Does not cover: measuring (``cluster.profiling``), fitting (``tuner.profile.fit``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import product

from core.errors import InvalidField
from core.latency_profile import StepWork, chunk_pairs
from core.shards import ONE_RANK, ParallelShape


class Effort(Enum):
    """How much time measuring may take."""

    QUICK = "quick"
    NORMAL = "normal"
    THOROUGH = "thorough"


@dataclass(frozen=True, slots=True)
class Limits:
    """What this model and this machine can take: the longest sequence, the largest chunk and KV of
    all sequences of a step in tokens; sequences of a step."""

    max_positions: int
    chunk_tokens: int
    max_num_seqs: int
    kv_tokens: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """``count`` tokens of a prompt after ``start`` that are cached; ``draws``: it ends there."""

    start: int
    count: int
    draws: bool

    def __str__(self) -> str:
        return f"{self.count} after {self.start}{', drawn' if self.draws else ''}"


@dataclass(frozen=True, slots=True)
class StepPoint:
    """One kind of step: ``chunks`` of different prompts, and ``decodes`` sequences that attend to
    ``context`` tokens each, their newest included."""

    chunks: tuple[Chunk, ...] = ()
    decodes: int = 0
    context: int = 0

    @property
    def name(self) -> str:
        """Says all, so it also identifies the point."""
        parts = [f"prefill {' and '.join(map(str, self.chunks))}"] if self.chunks else []
        parts += [f"decode {self.decodes} × {self.context}"] if self.decodes else []
        return " beside ".join(parts)

    @property
    def work(self) -> StepWork:
        tokens = sum(chunk.count for chunk in self.chunks)
        drawn = sum(chunk.draws for chunk in self.chunks)
        pairs = sum(chunk_pairs(chunk.start, chunk.count) for chunk in self.chunks)
        return StepWork(
            rows=tokens + self.decodes,
            sampled=drawn + self.decodes,
            prefill_pairs=pairs,
            decodes=self.decodes,
            decode_context=self.decodes * self.context,
        )

    @property
    def kv_tokens(self) -> int:
        """Tokens whose KV the step reads or writes."""
        return self.decodes * self.context + sum(c.start + c.count for c in self.chunks)


@dataclass(frozen=True, slots=True)
class EngineSetting:
    """A replica that is measured, with ``company`` others computing at the same time. Those that
    share its cores come first: with ``core_share`` 1/2 there is one of them."""

    shape: ParallelShape
    threads: int
    core_share: float = 1.0
    company: int = 0

    @property
    def name(self) -> str:
        """Says all, so it also identifies the setting."""
        words = f"{self.shape}, {self.threads} thread{'s' if self.threads > 1 else ''}"
        if self.core_share < 1:
            words += f", {self.core_share:g} of its cores"
        return words + (f", beside {self.company}" if self.company else "")


@dataclass(frozen=True, slots=True)
class EdgeSetting:
    """A way of blocks that is measured: over ``transport`` from a prefill replica of ``source`` to
    a decode replica of ``target``."""

    transport: str
    source: ParallelShape
    target: ParallelShape

    @property
    def name(self) -> str:
        """Says all, so it also identifies the setting."""
        return f"{self.transport}, {self.source} to {self.target}"

    @property
    def num_ranks(self) -> int:
        """Of both ends."""
        return self.source.num_ranks + self.target.num_ranks


@dataclass(frozen=True, slots=True)
class _Design:
    chunks: tuple[int, ...]
    starts: tuple[int, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    beside_chunks: tuple[int, ...]
    beside_batches: tuple[int, ...]
    longest: int


# Batches are close to each other where a step turns from reading weights to computing: with one of
# them unseen, the others must still say where that is.
_DESIGNS = {
    Effort.QUICK: _Design(
        chunks=(16, 64, 128, 256),
        starts=(0, 1024),
        batches=(1, 2, 4, 6, 8, 10, 12, 16, 24, 32),
        contexts=(64, 1024),
        beside_chunks=(48, 192),
        beside_batches=(4, 12),
        longest=2048,
    ),
    Effort.NORMAL: _Design(
        chunks=(8, 16, 32, 64, 128, 256, 512),
        starts=(0, 512, 1500),
        batches=(1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64),
        contexts=(64, 512, 1500),
        beside_chunks=(32, 96, 224),
        beside_batches=(2, 8, 24),
        longest=2048,
    ),
    Effort.THOROUGH: _Design(
        chunks=(8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192),
        starts=(0, 256, 1024, 4000, 12_000, 30_000),
        batches=(1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96, 128, 192, 256),
        contexts=(64, 256, 1024, 4000, 12_000, 30_000),
        beside_chunks=(32, 96, 224, 480),
        beside_batches=(2, 8, 24, 64),
        longest=32_768,
    ),
}

_BATCH_BLOCKS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_FEW_BATCHES = 5
# A shared core is measured where cores are so few that one would share them.
_MOST_CORES_TO_SHARE = 4


def design_steps(effort: Effort, limits: Limits) -> tuple[StepPoint, ...]:
    """All different, within ``limits``."""
    design = _DESIGNS[effort]
    longest = min(design.longest, limits.max_positions)
    points = [*_prefills(design, longest), *_decodes(design), *_mixed(design), *_packed(design)]
    usable = (point for point in points if _fits(point, longest, limits))
    return tuple(dict.fromkeys(usable))


def design_engines(
    effort: Effort, cores: int, shapes: Iterable[ParallelShape], threads: int | None = None
) -> tuple[EngineSetting, ...]:
    """On a CPU of ``cores`` cores: the fewest threads first, then ``shapes`` of several ranks.

    Replicas that don't have all cores are measured alone and with others on all other cores, and
    where cores are few also with another one on the same cores. ``threads``: of each rank, None:
    all cores, half of them, and if there is time their halves too. Raises ``InvalidField``.
    """
    if threads is not None and threads > cores:
        fix = f"this process may use {cores} core{'s' if cores > 1 else ''}"
        raise InvalidField("engine.threads", threads, fix)
    one_rank: list[EngineSetting] = []
    fewest = 1 if effort is Effort.THOROUGH else max(1, cores // 2)
    for count in (threads,) if threads else reversed(_halves(cores, fewest)):
        one_rank.append(EngineSetting(ONE_RANK, count))
        if count < cores:
            one_rank.append(EngineSetting(ONE_RANK, count, company=cores // count - 1))
    if cores <= _MOST_CORES_TO_SHARE:
        # All others compute too: one on the same cores, and one on each other share of them.
        first = one_rank[0].threads
        one_rank.append(EngineSetting(ONE_RANK, first, core_share=0.5, company=cores // first))
    several = [
        EngineSetting(shape, threads or cores // shape.num_ranks)
        for shape in dict.fromkeys(shapes)
        if shape.num_ranks > 1 and shape.num_ranks * (threads or 1) <= cores
    ]
    return (*one_rank, *several)


def design_transfers(largest: int, *, few: bool = False) -> tuple[int, ...]:
    """Blocks of a batch, up to ``largest``; ``few``: as many as a straight line needs."""
    counts = tuple(count for count in _BATCH_BLOCKS if count <= largest)
    if not few or len(counts) <= _FEW_BATCHES:
        return counts
    last = len(counts) - 1
    return tuple(counts[i * last // (_FEW_BATCHES - 1)] for i in range(_FEW_BATCHES))


def _prefills(design: _Design, longest: int) -> Iterator[StepPoint]:
    for count in design.chunks:
        for start in design.starts:
            yield StepPoint((Chunk(start, count, draws=True),))
    for index, count in enumerate(design.chunks):
        start = 0 if index % 2 else max(0, longest - count)
        yield StepPoint((Chunk(start, count, draws=False),))


def _decodes(design: _Design) -> Iterator[StepPoint]:
    for batch in design.batches:
        for context in design.contexts:
            yield StepPoint(decodes=batch, context=context)


def _mixed(design: _Design) -> Iterator[StepPoint]:
    beside = product(design.beside_chunks, design.beside_batches)
    for index, (count, batch) in enumerate(beside):
        chunk = Chunk(design.starts[index % 2], count, draws=index % 2 == 0)
        yield StepPoint((chunk,), batch, design.contexts[1])


def _packed(design: _Design) -> Iterator[StepPoint]:
    """Several short prompts in one step."""
    for count, prompts in ((16, 4), (64, 3)):
        yield StepPoint((Chunk(0, count, draws=True),) * prompts)


def _fits(point: StepPoint, longest: int, limits: Limits) -> bool:
    ends = [point.context, *(chunk.start + chunk.count for chunk in point.chunks)]
    chunked = sum(chunk.count for chunk in point.chunks)
    return (
        max(ends) <= longest
        and chunked <= limits.chunk_tokens
        and point.decodes <= limits.max_num_seqs
        and point.kv_tokens <= limits.kv_tokens
    )


def _halves(cores: int, fewest: int) -> Sequence[int]:
    counts = [cores]
    while counts[-1] // 2 >= fewest:
        counts.append(counts[-1] // 2)
    return counts
