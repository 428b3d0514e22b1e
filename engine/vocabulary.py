"""Embedding and head, whose rows (one for each token) the tensor ranks of a stage share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from core.shards import part_of
from engine.communicator import Communicator
from kernels.linear import Linear


@dataclass(frozen=True, slots=True)
class Logits:
    """``values`` float32 [R, vocab]; ``maxima`` of its stripes (`Linear.with_maxima`), if known."""

    values: torch.Tensor
    maxima: torch.Tensor | None = None


class Embedding:
    """``rows`` [len(held), hidden] of the tokens ``held``; other ranks hold the others."""

    def __init__(self, rows: torch.Tensor, held: range, communicator: Communicator) -> None:
        self._rows = rows
        self._first = held.start
        self._communicator = communicator

    def __call__(self, token_ids: torch.Tensor) -> torch.Tensor:
        """int64 [T] to [T, hidden], on every tensor rank."""
        if self._communicator.shape.tensor == 1:
            return self._rows[token_ids]
        places = token_ids - self._first
        elsewhere = (places < 0) | (places >= len(self._rows))
        x = self._rows[places.masked_fill_(elsewhere, 0)]
        return self._communicator.all_reduce(x.masked_fill_(elsewhere[:, None], 0))


class Head:
    """``rows`` [own part of the vocabulary, hidden] as a projection to logits."""

    def __init__(self, rows: torch.Tensor, vocab_size: int, communicator: Communicator) -> None:
        self._project = Linear(rows)
        tensor = communicator.shape.tensor
        self._widths = tuple(len(part_of(vocab_size, tensor, i)) for i in range(tensor))
        self._communicator = communicator

    def __call__(self, x: torch.Tensor) -> Logits | None:
        """[R, hidden] to logits on tensor rank 0, None on the others."""
        if len(self._widths) == 1:
            return Logits(*self._project.with_maxima(x))
        values = self._communicator.gather_columns(self._project(x, wide=True), self._widths)
        return None if values is None else Logits(values)
