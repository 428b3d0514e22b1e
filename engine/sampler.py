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

from core.step import SampledToken, Slice, StepResult
from engine.logits import Adjustments, LogitAdjuster
from engine.logprobs import Row, token_logprobs
from engine.sampling_arrays import StepArrays
from engine.vocabulary import Logits
from kernels.sampling import NO_TOKEN, sample_tokens
from kernels.sampling_arrays import SamplingArrays

NOT_FINITE = "the model's logits hold NaN or infinity, or leave no token to choose"


@dataclass(frozen=True, slots=True)
class Draws:
    """What is wanted of a step's logits: row i is drawn from ``counts[i]`` times, for
    ``sequence_ids[i]``. ``logprobs``: by row, how many of the likeliest are wanted beside."""

    sequence_ids: list[int]
    counts: list[int]
    logprobs: dict[int, int]
    arrays: SamplingArrays
    adjustments: Adjustments | None


@dataclass(frozen=True, slots=True)
class PendingDraws:
    """Draws that are enqueued on a GPU, or done on a CPU: ``tokens`` int64, one for each draw.
    ``host_rows``: logits of rows with log-probabilities, by number."""

    tokens: torch.Tensor
    draws: Draws
    host_rows: dict[int, Row]

    def read(self) -> StepResult:
        """For a GPU the host waits here, once.

        A row that holds NaN or +inf, or nothing above -inf, fails its own sequence only.
        """
        ids, drawn = self.draws.sequence_ids, self.tokens.tolist()
        if self.host_rows or len(drawn) > len(ids):
            sampled = _sampled(self.draws, drawn, self.host_rows)
        else:
            pairs = zip(ids, drawn, strict=True)
            sampled = {i: (SampledToken(token),) for i, token in pairs if token != NO_TOKEN}
        if len(sampled) == len(ids):
            return StepResult(sampled)
        return StepResult(sampled, {i: NOT_FINITE for i in ids if i not in sampled})


class Sampler:
    """Keeps the arrays of the step before, which mostly serve again. For one thread at a time."""

    def __init__(self) -> None:
        self._arrays = StepArrays()
        self._adjuster = LogitAdjuster()

    def prepare(self, slices: Sequence[Slice]) -> Draws:
        """All that can be done before there are logits. Valid until the next call.

        The samples of one slice may differ in their sequence index only.
        """
        arrays = self._arrays.update([part.samples for part in slices])
        return Draws(
            sequence_ids=[part.sequence_id for part in slices],
            counts=self._arrays.counts,
            logprobs=self._arrays.logprobs,
            arrays=arrays,
            adjustments=self._adjuster.prepare(slices),
        )

    def draw(self, logits: Logits, draws: Draws) -> PendingDraws:
        """Draws from ``logits`` [R, vocab]; on a GPU this only enqueues.

        Rows with penalties are changed meanwhile, and changed back. To be read before the logits
        are overwritten.
        """
        if draws.adjustments is None:
            tokens = sample_tokens(logits.values, draws.arrays, logits.maxima)
        else:
            with torch.inference_mode(), draws.adjustments.applied(logits.values):
                tokens = sample_tokens(logits.values, draws.arrays)
        host_rows = _host_rows(logits.values, list(draws.logprobs)) if draws.logprobs else {}
        return PendingDraws(tokens, draws, host_rows)


def _host_rows(logits: torch.Tensor, rows: Sequence[int]) -> dict[int, Row]:
    """Rows by number. Those of a GPU are there when the host has waited for what comes after."""
    if logits.is_cpu:
        return {row: logits[row].numpy() for row in rows}
    host = torch.empty(len(rows), logits.shape[1], dtype=logits.dtype, pin_memory=True)
    for copied, row in zip(host, rows, strict=True):
        copied.copy_(logits[row], non_blocking=True)
    return dict(zip(rows, host.numpy(), strict=True))


def _sampled(
    draws: Draws, drawn: list[int], host_rows: dict[int, Row]
) -> dict[int, tuple[SampledToken, ...]]:
    sampled, tokens = {}, iter(drawn)
    for row, (sequence_id, count) in enumerate(zip(draws.sequence_ids, draws.counts, strict=True)):
        of_row = [next(tokens) for _ in range(count)]
        if of_row[0] != NO_TOKEN:
            sampled[sequence_id] = _with_logprobs(of_row, host_rows.get(row), draws.logprobs, row)
    return sampled


def _with_logprobs(
    tokens: Sequence[int], logits: Row | None, counts: dict[int, int], row: int
) -> tuple[SampledToken, ...]:
    if logits is None:
        return tuple(SampledToken(token) for token in tokens)
    logprobs = token_logprobs(logits, tokens, counts[row])
    return tuple(SampledToken(*pair) for pair in zip(tokens, logprobs, strict=True))
