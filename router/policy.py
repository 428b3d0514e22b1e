"""Which prefill and which decode worker get an attempt: the pair with the lowest predicted cost.

Pure: views of the workers in, a placement out. Costs are predicted milliseconds, at rough rates
of a small model on a CPU core; they need only be right relative to each other.
Does not cover: admission (whether to take a request at all), measured rates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from core.errors import Unavailable
from router.placement import Disaggregation, Placement, WorkerId, WorkerView

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


def choose(
    prompt: PromptShape,
    workers: Sequence[WorkerView],
    overlap: Mapping[WorkerId, int],
    avoid: frozenset[WorkerId],
    disaggregation: Disaggregation,
    random: Random,
) -> Placement:
    """The cheapest placement; equal costs are decided by ``random``. Raises Unavailable.

    ``overlap``: leading prompt blocks held, by worker. ``avoid``: workers that failed this
    request before. A decode worker among them is still taken if there is no other.
    """
    roomy = [view for view in workers if view.num_blocks >= prompt.num_blocks]
    decoders = _prefer_others([view for view in roomy if view.role.decodes], avoid)
    receivers = _prefer_others([view for view in roomy if view.role.takes_handoffs], avoid)
    prefillers = [view for view in roomy if view.role.prefills_for_others]
    if disaggregation is Disaggregation.ALWAYS:
        prefillers = _prefer_others(prefillers, avoid)
    else:
        prefillers = [view for view in prefillers if view.worker not in avoid]
    if not decoders:
        raise _no_worker("decode")
    if prefillers and receivers:
        prefill = _cheapest(prefillers, lambda v: prefill_cost(v, prompt, overlap), random)
        decode = _cheapest(receivers, lambda v: decode_cost(v, prompt, overlap), random)
        return Placement(decode, prefill)
    if disaggregation is Disaggregation.ALWAYS:
        raise _no_worker("decode" if prefillers else "prefill")
    return Placement(_cheapest(decoders, lambda v: local_cost(v, prompt, overlap), random))


def prefill_cost(view: WorkerView, prompt: PromptShape, overlap: Mapping[WorkerId, int]) -> float:
    """Milliseconds until ``view`` has computed the prompt, after what waits there already."""
    uncached = prompt.uncached_tokens(overlap.get(view.worker, 0))
    return PREFILL_MS_PER_TOKEN * (view.load.pending_prefill_tokens + uncached)


def decode_cost(view: WorkerView, prompt: PromptShape, overlap: Mapping[WorkerId, int]) -> float:
    """Milliseconds that the answer takes longer on ``view`` than on an idle, warm worker."""
    lacking = prompt.num_blocks - overlap.get(view.worker, 0)
    missing = max(0, lacking - view.load.free_blocks)
    sequences = view.load.running + view.load.waiting
    return (
        TRANSFER_MS_PER_BLOCK * lacking
        + DECODE_MS_PER_SEQUENCE * sequences
        + WAIT_MS_PER_MISSING_BLOCK * missing
    )


def local_cost(view: WorkerView, prompt: PromptShape, overlap: Mapping[WorkerId, int]) -> float:
    """Milliseconds when the decode worker prefills by itself: nothing is transferred."""
    lacking = prompt.num_blocks - overlap.get(view.worker, 0)
    own = decode_cost(view, prompt, overlap) - TRANSFER_MS_PER_BLOCK * lacking
    return own + prefill_cost(view, prompt, overlap)


def _cheapest(
    views: Sequence[WorkerView], cost: Callable[[WorkerView], float], random: Random
) -> WorkerId:
    costs = [cost(view) for view in views]
    lowest = min(costs)
    best = [view for view, c in zip(views, costs, strict=True) if c == lowest]
    return random.choice(best).worker


def _prefer_others(views: list[WorkerView], avoid: frozenset[WorkerId]) -> list[WorkerView]:
    return [view for view in views if view.worker not in avoid] or views


def _no_worker(role: str) -> Unavailable:
    return Unavailable(
        f"no {role} worker can take this request at present; try again in {RETRY_AFTER_S:g} s",
        reason="NO_WORKER",
        metadata={"role": role},
        retry_after=RETRY_AFTER_S,
    )
