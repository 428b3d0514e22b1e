"""Which workers get an attempt: who may at all, whom the policy takes of those, what it expects.

Pure: columns of the workers in, a placement out. Covers: pools that are too small, workers that
failed this request before, whether a prompt may be computed by who decodes. Does not cover: the
choice (``router.policies``), admission (whether to take a request at all).
"""

from __future__ import annotations

from random import Random

from core.errors import InternalError, Unavailable
from router.candidates import Candidates, Mask, PromptShape
from router.placement import Disaggregation, Placement, WorkerId
from router.policies.policy import Eligible, Policy
from router.predictions import Predictions

RETRY_AFTER_S = 2.0


def choose(
    prompt: PromptShape,
    predictions: Predictions,
    avoid: frozenset[WorkerId],
    disaggregation: Disaggregation,
    policy: Policy,
    random: Random,
) -> Placement:
    """What ``policy`` takes; ``random`` decides between equals. Raises Unavailable.

    ``avoid``: workers that failed this request before, or have enough before them. A decode worker
    among them is still taken if there is no other.
    """
    candidates = predictions.candidates
    eligible = _eligible(prompt, candidates, avoid, disaggregation)
    choice = policy.choose(eligible, predictions, random)
    source = None if choice.prefill is None else _worker(candidates, choice.prefill)
    return Placement(
        _worker(candidates, choice.decode),
        source,
        predictions.forecast(choice.decode, choice.prefill),
        is_direct=source is None and eligible.handoff is not None,
    )


def _eligible(
    prompt: PromptShape,
    candidates: Candidates,
    avoid: frozenset[WorkerId],
    disaggregation: Disaggregation,
) -> Eligible:
    always = disaggregation is Disaggregation.ALWAYS
    roomy = candidates.num_blocks >= prompt.num_blocks
    decoders, receivers = candidates.decode & roomy, candidates.receive & roomy
    prefillers = candidates.prefill & roomy
    if avoid:
        avoided = candidates.avoided(avoid)
        decoders, receivers = (_prefer_others(mask, avoided) for mask in (decoders, receivers))
        prefillers = _prefer_others(prefillers, avoided) if always else prefillers & ~avoided
    if not decoders.any():
        raise _no_worker("decode")
    if prefillers.any() and receivers.any():
        alone = decoders if disaggregation is Disaggregation.AUTO else None
        return Eligible((prefillers, receivers), alone)
    if always:
        raise _no_worker("decode" if prefillers.any() else "prefill")
    return Eligible(None, decoders)


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
