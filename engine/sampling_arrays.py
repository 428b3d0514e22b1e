"""A step's sampling requests as the arrays that the kernels read, kept from step to step.

While the same sequences decode, only the positions change: the rest stays where it is.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

from core.request import SamplingParams
from core.step import SampleSpec
from kernels.sampling_arrays import SamplingArrays


class StepArrays:
    """Builds the arrays of one step after the other; those of a step before are overwritten.

    Of the latest step: ``counts``, how many draws each row has; ``logprobs``, by row, how many of
    the likeliest tokens are wanted beside the drawn ones.
    """

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.logprobs: dict[int, int] = {}
        self._params: list[SamplingParams] = []
        self._arrays = SamplingArrays.of_settings([], [])

    def update(self, samples: Sequence[tuple[SampleSpec, ...]]) -> SamplingArrays:
        """One draw for each spec; row i is drawn from as ``samples[i]`` says."""
        specs = [spec for row in samples for spec in row]
        params, counts = [spec.params for spec in specs], [len(row) for row in samples]
        # By identity: two requests with equal parameters are rare, comparing values is not cheap.
        same = len(params) == len(self._params) and all(map(operator.is_, params, self._params))
        if not same or counts != self.counts:
            self._arrays = _arrays(params, counts)
            self._params, self.counts = params, counts
            self.logprobs = _logprobs([row[0].params for row in samples])
        self._arrays.sequence_indices[:] = [spec.sequence_index for spec in specs]
        self._arrays.positions[:] = [spec.position for spec in specs]
        return self._arrays


def _arrays(params: Sequence[SamplingParams], counts: Sequence[int]) -> SamplingArrays:
    rows = [row for row, count in enumerate(counts) for _ in range(count)]
    settings = [(p.temperature, p.top_p, p.min_p, p.top_k, p.seed) for p in params]
    return SamplingArrays.of_settings(rows, settings)


def _logprobs(params: Sequence[SamplingParams]) -> dict[int, int]:
    return {row: p.logprobs for row, p in enumerate(params) if p.logprobs is not None}
