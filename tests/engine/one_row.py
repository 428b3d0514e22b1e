"""Draws from rows of logits without a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from core.step import SampledToken, SampleSpec, Slice, StepResult
from engine.logprobs import Row
from engine.sampler import Sampler
from engine.vocabulary import Logits


def slices_of(samples: Sequence[tuple[SampleSpec, ...]]) -> list[Slice]:
    """One slice for each row, of sequences 0, 1, ..."""
    one = np.zeros(1, np.int32)
    return [Slice(i, 0, one, one, specs) for i, specs in enumerate(samples)]


def sample_rows(
    logits: npt.NDArray[np.float32],
    samples: Sequence[tuple[SampleSpec, ...]],
    sampler: Sampler | None = None,
) -> StepResult:
    """Draws from float32 [R, vocab] by sequences 0, 1, ..."""
    sampler = sampler or Sampler()
    draws = sampler.prepare(slices_of(samples))
    return sampler.draw(Logits(torch.from_numpy(logits)), draws).read()


def sample_row(logits: Row, specs: Sequence[SampleSpec]) -> tuple[SampledToken, ...]:
    """One token for each of ``specs`` from float32 [vocab]; none if no token can be chosen."""
    return sample_rows(logits[None], [tuple(specs)]).sampled.get(0, ())
