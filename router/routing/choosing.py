"""Which workers get an attempt: who may at all, whom the policy takes of those, what it expects.

Pure: columns of the workers in, a placement out. Covers: pools that are too small, workers that
failed this request before, whether a prompt may be computed by who decodes. Does not cover: the
choice (``router.routing.policies``), admission (whether to take a request at all).
"""

from __future__ import annotations

from random import Random

import numpy as np

from core.errors import InternalError, Unavailable
from router.placement import Disaggregation, Placement, WorkerId
from router.routing.candidates import Mask, PromptShape, UsableWorkers
from router.routing.policies.policy import Eligible, Policy
from router.routing.predictions import Predictions

RETRY_AFTER_S = 2.0


class Eligibility:
    """Who of the ``usable`` may get which prompt as what."""

    def __init__(self, usable: UsableWorkers, disaggregation: Disaggregation) -> None:
        self._usable = usable
        self._disaggregation = disaggregation
        # The answer to nearly all prompts.
        self._of_all: Eligible | None = None

    def of(
        self, prompt: PromptShape, answers: int = 1, avoid: frozenset[WorkerId] = frozenset()
    ) -> Eligible:
        """Raises Unavailable. ``avoid``: workers that failed this request before, or have enough
        before them. A decode worker among them is still taken if there is no other."""
        usable = self._usable
        if avoid or prompt.num_blocks > usable.fewest_blocks or answers > usable.fewest_places:
            return self._eligible(self._able(prompt, answers), avoid)
        if self._of_all is None:
            everybody = np.ones(len(usable.workers), dtype=np.bool_)
            self._of_all = self._eligible(everybody, avoid)
        return self._of_all

    def _able(self, prompt: PromptShape, answers: int) -> Mask:
        usable = self._usable
        able: Mask = usable.num_blocks >= prompt.num_blocks
        # A prefill worker runs no answers.
        return able & (usable.max_num_seqs >= answers) if answers > 1 else able

    def _eligible(self, able: Mask, avoid: frozenset[WorkerId]) -> Eligible:
        usable, always = self._usable, self._disaggregation is Disaggregation.ALWAYS
        decoders, receivers = usable.decode & able, usable.receive & able
        prefillers = usable.prefill & able
        if avoid:
            avoided = usable.among(avoid)
            decoders, receivers = (_prefer_others(mask, avoided) for mask in (decoders, receivers))
            prefillers = _prefer_others(prefillers, avoided) if always else prefillers & ~avoided
        if not decoders.any():
            raise _no_worker("decode")
        alone = np.flatnonzero(decoders)
        if prefillers.any() and receivers.any():
            handoff = np.flatnonzero(prefillers), np.flatnonzero(receivers)
            return Eligible(handoff, alone if self._disaggregation is Disaggregation.AUTO else None)
        if always:
            raise _no_worker("decode" if prefillers.any() else "prefill")
        return Eligible(None, alone)


def choose(
    eligible: Eligible, predictions: Predictions, policy: Policy, random: Random
) -> Placement:
    """What ``policy`` takes; ``random`` decides between equals."""
    usable = predictions.candidates.usable
    workers = usable.workers
    choice = policy.choose(eligible, predictions, random)
    source = None if choice.prefill is None else _worker(workers[choice.prefill])
    return Placement(
        _worker(workers[choice.decode]),
        source,
        predictions.forecast(choice.decode, choice.prefill),
        is_direct=source is None and usable.has_pairs,
    )


def _worker(worker: WorkerId | None) -> WorkerId:
    if worker is None:
        raise InternalError("nobody has the number that was chosen", reason="INVARIANT")
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
