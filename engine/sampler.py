"""Chooses the next tokens of a step from its logits, all rows at once.

Order, as in vLLM: log-probabilities are those of the logits as the model gave them; then bans,
bias and penalties (``engine.logits``), temperature, min_p, top_k, top_p and the draw
(``kernels.sampling``). Equal logits, seed, sequence index and position give the same token on any
worker and in any company.
Does not cover: how a failed sequence is reported (the workers' schedulers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from core.step import SampledToken, SampleSpec, Slice, StepResult
from engine.logits import adjusted_logits
from engine.logprobs import Logits, token_logprobs
from engine.sampling_arrays import StepArrays
from kernels.sampling import NO_TOKEN, sample_tokens

NOT_FINITE = "the model's logits hold NaN or infinity, or leave no token to choose"


@dataclass(frozen=True, slots=True)
class PendingDraws:
    """Draws that are enqueued on a GPU, or done on a CPU: ``tokens`` int64, one for each spec.

    ``samples``: the specs of each row; ``logits``: rows with log-probabilities, by number.
    """

    tokens: torch.Tensor
    samples: Sequence[tuple[SampleSpec, ...]]
    logits: dict[int, Logits]

    def read(self) -> list[tuple[SampledToken, ...]]:
        """One token for each spec of a row; none if no token can be chosen.

        For a GPU the host waits here, once.
        """
        drawn = iter(self.tokens.tolist())
        return [
            _sampled([next(drawn) for _ in specs], self.logits.get(row), specs[0].params.logprobs)
            for row, specs in enumerate(self.samples)
        ]


class Sampler:
    """Keeps the arrays of the step before, which mostly serve again. For one thread at a time."""

    def __init__(self) -> None:
        self._arrays = StepArrays()

    def draw(self, logits: torch.Tensor, samples: Sequence[tuple[SampleSpec, ...]]) -> PendingDraws:
        """Draws all ``samples`` of each row of float32 ``logits`` [R, vocab]; only enqueues.

        The specs of one row may differ in their sequence index only. Rows with penalties are
        changed meanwhile, and changed back. To be read before the logits are overwritten.
        """
        arrays = self._arrays.update(samples)
        with torch.inference_mode(), adjusted_logits(logits, [specs[0] for specs in samples]):
            tokens = sample_tokens(logits, arrays)
        wanted = [i for i, specs in enumerate(samples) if specs[0].params.logprobs is not None]
        return PendingDraws(tokens, samples, _host_rows(logits, wanted))


def step_result(slices: Sequence[Slice], draws: PendingDraws) -> StepResult:
    """Waits for ``draws``, the rows of which belong to ``slices``.

    A row that holds NaN or +inf, or nothing above -inf, fails its own sequence only.
    """
    ids = [part.sequence_id for part in slices]
    sampled = {i: row for i, row in zip(ids, draws.read(), strict=True) if row}
    return StepResult(sampled, {i: NOT_FINITE for i in ids if i not in sampled})


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
