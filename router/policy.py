"""Which prefill and which decode worker get an attempt: the pair with the lowest predicted cost.

Pure: columns of the workers in, a placement out. Costs are predicted milliseconds, at rough rates
of a small model on a CPU core; they need only be right relative to each other.
Does not cover: admission (whether to take a request at all), measured rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import numpy.typing as npt

from core.errors import InternalError, Unavailable
from router.placement import Disaggregation, Forecast, Placement, WorkerId

Counts = npt.NDArray[np.int64]
Costs = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]

PREFILL_MS_PER_TOKEN = 0.25
TRANSFER_MS_PER_BLOCK = 0.05
# A sequence more in the batch makes each step this much longer, for as long as an answer lasts.
DECODE_MS_PER_SEQUENCE = 0.7 * 64
# A block that isn't free is free when some other answer has ended.
WAIT_MS_PER_MISSING_BLOCK = 20.0
RETRY_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class PromptShape:
    """All that routing needs of a prompt, beside its overlap with the workers' caches."""

    num_tokens: int
    block_size: int

    @property
    def num_blocks(self) -> int:
        return -(-self.num_tokens // self.block_size)

    def uncached_tokens(self, held_blocks: int) -> int:
        """At least one: the last token is always computed, to get logits."""
        return max(1, self.num_tokens - held_blocks * self.block_size)


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """What is known of the workers among which to choose, one entry each in every column.

    ``decode``, ``receive``, ``prefill`` (bool): who may get an attempt as what. ``num_blocks``: of
    the KV pool. ``held``: leading blocks of the prompt. ``sequences``: running and waiting. These
    are int64, like ``free_blocks`` and ``pending_prefill_tokens``.
    """

    workers: Sequence[WorkerId | None]
    decode: Mask
    receive: Mask
    prefill: Mask
    num_blocks: Counts
    held: Counts
    sequences: Counts
    free_blocks: Counts
    pending_prefill_tokens: Counts

    def avoided(self, avoid: frozenset[WorkerId]) -> Mask:
        mask = np.zeros(len(self.workers), dtype=np.bool_)
        if avoid:
            mask[:] = [worker in avoid for worker in self.workers]
        return mask


def choose(
    prompt: PromptShape,
    candidates: Candidates,
    avoid: frozenset[WorkerId],
    disaggregation: Disaggregation,
    random: Random,
) -> Placement:
    """The cheapest placement; equal costs are decided by ``random``. Raises Unavailable.

    ``avoid``: workers that failed this request before. A decode worker among them is still taken
    if there is no other.
    """
    roomy = candidates.num_blocks >= prompt.num_blocks
    avoided = candidates.avoided(avoid)
    decoders = _prefer_others(candidates.decode & roomy, avoided)
    receivers = _prefer_others(candidates.receive & roomy, avoided)
    prefillers = candidates.prefill & roomy
    if disaggregation is Disaggregation.ALWAYS:
        prefillers = _prefer_others(prefillers, avoided)
    else:
        prefillers &= ~avoided
    if not decoders.any():
        raise _no_worker("decode")
    if prefillers.any() and receivers.any():
        prefill = _cheapest(prefillers, prefill_cost(candidates, prompt), random)
        decode = _cheapest(receivers, decode_cost(candidates, prompt), random)
        return _placement(candidates, prompt, decode, prefill)
    if disaggregation is Disaggregation.ALWAYS:
        raise _no_worker("decode" if prefillers.any() else "prefill")
    decode = _cheapest(decoders, local_cost(candidates, prompt), random)
    return _placement(candidates, prompt, decode, None)


def prefill_cost(candidates: Candidates, prompt: PromptShape) -> Costs:
    """Milliseconds until each has computed the prompt, after what waits there already."""
    uncached = np.maximum(1, prompt.num_tokens - candidates.held * prompt.block_size)
    return PREFILL_MS_PER_TOKEN * (candidates.pending_prefill_tokens + uncached)


def decode_cost(candidates: Candidates, prompt: PromptShape) -> Costs:
    """Milliseconds that the answer takes longer on each than on an idle, warm worker."""
    lacking = prompt.num_blocks - candidates.held
    missing = np.maximum(0, lacking - candidates.free_blocks)
    cost: Costs = (
        TRANSFER_MS_PER_BLOCK * lacking
        + DECODE_MS_PER_SEQUENCE * candidates.sequences
        + WAIT_MS_PER_MISSING_BLOCK * missing
    )
    return cost


def local_cost(candidates: Candidates, prompt: PromptShape) -> Costs:
    """Milliseconds when the decode worker prefills by itself: nothing is transferred."""
    lacking = prompt.num_blocks - candidates.held
    own = decode_cost(candidates, prompt) - TRANSFER_MS_PER_BLOCK * lacking
    return own + prefill_cost(candidates, prompt)


def _cheapest(among: Mask, costs: Costs, random: Random) -> int:
    """Its number."""
    numbers = np.flatnonzero(among)
    own = costs[numbers]
    best: int = random.choice(numbers[own == own.min()].tolist())
    return best


def _placement(
    candidates: Candidates, prompt: PromptShape, decode: int, prefill: int | None
) -> Placement:
    held = candidates.held
    forecast = Forecast(
        ttft_s=_first_token_ms(candidates, prompt, decode, prefill) / 1000,
        prefill_held=0 if prefill is None else int(held[prefill]),
        decode_held=int(held[decode]),
    )
    source = None if prefill is None else _worker(candidates, prefill)
    return Placement(_worker(candidates, decode), source, forecast)


def _first_token_ms(
    candidates: Candidates, prompt: PromptShape, decode: int, prefill: int | None
) -> float:
    """The same costs as those of the choice, of what comes before the first token."""
    computing = decode if prefill is None else prefill
    uncached = prompt.uncached_tokens(int(candidates.held[computing]))
    lacking = prompt.num_blocks - int(candidates.held[decode])
    missing = max(0, lacking - int(candidates.free_blocks[decode]))
    waiting = int(candidates.pending_prefill_tokens[computing])
    return (
        PREFILL_MS_PER_TOKEN * (waiting + uncached)
        + WAIT_MS_PER_MISSING_BLOCK * missing
        + (0.0 if prefill is None else TRANSFER_MS_PER_BLOCK * lacking)
    )


def _worker(candidates: Candidates, number: int) -> WorkerId:
    worker = candidates.workers[number]
    if worker is None:
        raise InternalError(f"nobody has number {number}", reason="INVARIANT")
    return worker


def _prefer_others(among: Mask, avoided: Mask) -> Mask:
    others = among & ~avoided
    return others if others.any() else among


def _no_worker(role: str) -> Unavailable:
    return Unavailable(
        f"no {role} worker can take this request at present; try again in {RETRY_AFTER_S:g} s",
        reason="NO_WORKER",
        metadata={"role": role},
        retry_after=RETRY_AFTER_S,
    )
