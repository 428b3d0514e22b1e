"""Chooses the next tokens of a step from its logits, all rows at once.

Order, as in vLLM: log-probabilities are those of the logits as the model gave them; then bans,
bias and penalties (``engine.logits``), temperature, min_p, top_k, top_p and the draw
(``kernels.sampling``). Equal logits, seed, sequence index and position give the same token on any
worker and in any company.
Does not cover: how a failed sequence is reported (the workers' schedulers).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from core.step import SampledToken, SampleSpec, Slice, StepResult
from engine.logits import adjusted_logits
from engine.logprobs import Logits, token_logprobs
from engine.sampling_arrays import StepArrays
from kernels.sampling import NO_TOKEN, sample_tokens

NOT_FINITE = "the model's logits hold NaN or infinity, or leave no token to choose"


class Sampler:
    """Keeps the arrays of the step before, which mostly serve again. For one thread at a time."""

    def __init__(self) -> None:
        self._arrays = StepArrays()

    def sample(self, logits: torch.Tensor, slices: Sequence[Slice]) -> StepResult:
        """Draws all samples of each slice from its row of float32 ``logits`` [R, vocab].

        A row that holds NaN or +inf, or nothing above -inf, fails its own sequence only. Rows with
        penalties are changed meanwhile, and changed back. For a GPU the host waits once.
        """
        rows = self.sample_rows(logits, [part.samples for part in slices])
        ids = [part.sequence_id for part in slices]
        sampled = {i: row for i, row in zip(ids, rows, strict=True) if row}
        return StepResult(sampled, {i: NOT_FINITE for i in ids if i not in sampled})

    def sample_rows(
        self, logits: torch.Tensor, samples: Sequence[tuple[SampleSpec, ...]]
    ) -> list[tuple[SampledToken, ...]]:
        """One token for each spec of a row; none if no token can be chosen.

        The specs of one row may differ in their sequence index only.
        """
        arrays = self._arrays.update(samples)
        with torch.inference_mode(), adjusted_logits(logits, [specs[0] for specs in samples]):
            tokens = sample_tokens(logits, arrays)
        counts = [specs[0].params.logprobs for specs in samples]
        with_logprobs = _host_rows(logits, [i for i, n in enumerate(counts) if n is not None])
        drawn = iter(tokens.tolist())
        return [
            _sampled([next(drawn) for _ in specs], with_logprobs.get(row), counts[row])
            for row, specs in enumerate(samples)
        ]


def _host_rows(logits: torch.Tensor, rows: Sequence[int]) -> dict[int, Logits]:
    """Rows by number. Those of a GPU are there when the host has waited for what comes after."""
    if not rows or logits.is_cpu:
        return {row: logits[row].numpy() for row in rows}
    host = torch.empty(len(rows), logits.shape[1], dtype=logits.dtype, pin_memory=True)
    for copied, row in zip(host, rows, strict=True):
        copied.copy_(logits[row], non_blocking=True)
    return dict(zip(rows, host.numpy(), strict=True))


def _sampled(
    tokens: Sequence[int], logits: Logits | None, count: int | None
) -> tuple[SampledToken, ...]:
    """``count``: how many log-probabilities of ``logits`` are wanted beside each token's."""
    if tokens[0] == NO_TOKEN:
        return ()
    if logits is None or count is None:
        return tuple(SampledToken(token) for token in tokens)
    logprobs = token_logprobs(logits, tokens, count)
    return tuple(SampledToken(*pair) for pair in zip(tokens, logprobs, strict=True))
