"""Draws from one row of logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from core.step import SampledToken, SampleSpec
from engine.logprobs import Logits
from engine.sampler import Sampler


def sample_row(logits: Logits, specs: Sequence[SampleSpec]) -> tuple[SampledToken, ...]:
    """One token for each of ``specs`` from float32 [vocab], as `Sampler` draws them."""
    (drawn,) = Sampler().draw(torch.from_numpy(logits)[None], [tuple(specs)]).read()
    return drawn
