"""How much replicas on different cores of one host slow each other down while they serve.

One worker is measured while the others do nothing, decode, or compute prompts. All are real, with
routers and a client, because these take their share of the cores as well. Does not cover: replicas
that share a core (an engine's company does), starting workers (``cluster.profiling.serving``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import product
from statistics import median

from cluster.profiling.http_client import Client
from core.latency_profile import Interference

DECODE, PREFILL, NOBODY = "decode", "prefill", "nobody"
# Answers at once. Few: then the weights are read all the time, and that is what others feel most.
_ANSWERS = 2
# One after the other; the first one may come before the others are busy.
_PROMPTS = 4


def name_of(work: str, others: str) -> str:
    return f"{work} beside {others}"


NAMES = tuple(name_of(*both) for both in product((DECODE, PREFILL), (NOBODY, DECODE, PREFILL)))


@dataclass(frozen=True, slots=True)
class NeighbourWork:
    """Tokens of the prompts and of the answers; each pair of works is measured ``rounds`` times."""

    prompt_tokens: int
    answer_tokens: int
    rounds: int


async def measure_neighbours(
    measured: Client, others: Sequence[Client], work: NeighbourWork
) -> dict[str, float]:
    """Seconds of a decode step and of a short prompt, by ``NAMES``; ``others``: one at least."""
    found: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(work.rounds):
        for mode in (NOBODY, DECODE, PREFILL):
            async with _busy(others, mode, work):
                for own in (DECODE, PREFILL):
                    found[name_of(own, mode)].append(await _seconds(measured, own, work))
    return {name: median(seconds) for name, seconds in found.items()}


async def _seconds(client: Client, own: str, work: NeighbourWork) -> float:
    if own == DECODE:
        return await client.answers(_ANSWERS, work.answer_tokens)
    prompts = [await client.first_token(work.prompt_tokens) for _ in range(_PROMPTS)]
    return median(prompts[1:])


@asynccontextmanager
async def _busy(others: Sequence[Client], mode: str, work: NeighbourWork) -> AsyncIterator[None]:
    """They finish what they are at when it is over."""
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for client in others if mode != NOBODY else ():
            group.create_task(_compute(client, mode, work, over))
        try:
            yield
        finally:
            over.set()


async def _compute(client: Client, mode: str, work: NeighbourWork, over: asyncio.Event) -> None:
    while not over.is_set():
        if mode == DECODE:
            await client.answers(_ANSWERS, work.answer_tokens)
        else:
            await client.first_token(work.prompt_tokens)


def interference(seconds: Mapping[str, float]) -> Interference | None:
    """From seconds by ``NAMES``; None if some were not measured. Nobody is faster in company: what
    says so is noise."""
    if any(seconds.get(name, 0.0) <= 0 for name in NAMES):
        return None

    def factor(work: str, others: str) -> float:
        return max(1.0, seconds[name_of(work, others)] / seconds[name_of(work, NOBODY)])

    return Interference(
        decode_beside_decode=factor(DECODE, DECODE),
        decode_beside_prefill=factor(DECODE, PREFILL),
        prefill_beside_decode=factor(PREFILL, DECODE),
        prefill_beside_prefill=factor(PREFILL, PREFILL),
    )
