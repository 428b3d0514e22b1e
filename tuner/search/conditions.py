"""The circumstances of a simulation: as given, or changed as a replicate or a "what if" wants.

Pure. Does not cover: how hardware is perturbed (``uncertainty``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from tuner.search.bounds import Traffic
from tuner.search.window import source_of
from tuner.simulate.requests import Lengths, RequestTrace

GROWTH = 1.2


@dataclass(frozen=True, slots=True)
class Conditions:
    """``replicate``: other hardware and other traffic of the same kind, see ``uncertainty``; 0:
    neither. ``prompts``, ``answers``: factors on their lengths."""

    replicate: int = 0
    prompts: float = 1.0
    answers: float = 1.0

    def traffic(self, trace: RequestTrace, seed: int, share: float) -> Sampled:
        """``trace`` under these conditions; ``share``: of the goal."""
        changed = trace
        if self.replicate:
            generator = np.random.default_rng([seed, self.replicate])
            changed = changed.resampled(generator)
        if (self.prompts, self.answers) != (1.0, 1.0):
            changed = self._lengthened(changed)
        return Sampled(source_of(changed, seed), Traffic.of_all(changed, share))

    def _lengthened(self, trace: RequestTrace) -> RequestTrace:
        """No request gets longer than the longest: who knows whether that could be served."""
        longest = int((trace.prompt_tokens + trace.output_tokens).max())
        prompts = _longer(trace.prompt_tokens, self.prompts)
        prompts = np.minimum(prompts, longest - trace.output_tokens)
        answers = _longer(trace.output_tokens, self.answers)
        return replace(
            trace, prompt_tokens=prompts, output_tokens=np.minimum(answers, longest - prompts)
        )


@dataclass(frozen=True, slots=True)
class Sampled:
    """``source``: of windows, see ``window``; ``means``: of the whole trace, as ``Traffic.of_all``
    gives them."""

    source: RequestTrace
    means: Traffic


AS_GIVEN = Conditions()
CHANGES = {
    "prompts 20 % longer": Conditions(prompts=GROWTH),
    "answers 20 % longer": Conditions(answers=GROWTH),
}


def _longer(lengths: Lengths, factor: float) -> Lengths:
    longer: Lengths = np.ceil(lengths * factor).astype(np.int32)
    return longer
