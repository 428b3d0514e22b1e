"""What the ranks of one replica say to each other while they compute a step.

Tensors only: which step to compute comes from the leading rank another way (``worker.ranks``).
Does not cover: torch's process groups (``engine.process_group``).
"""

from __future__ import annotations

from typing import Protocol

import torch

from core.shards import ONE_RANK, ParallelShape


class Communicator(Protocol):
    """One rank's place among the ranks of its replica. Used by the thread that computes steps."""

    @property
    def shape(self) -> ParallelShape: ...

    @property
    def rank(self) -> int: ...

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the tensor ranks of this stage, the same bits on each; may reuse ``x``."""

    def gather_columns(self, x: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor | None:
        """``x`` [rows, widths[tensor rank]] of every tensor rank side by side, on tensor rank 0 of
        the stage; None on the others."""

    def send_to_next_stage(self, x: torch.Tensor) -> None:
        """To the rank of the next stage with the same tensor rank. Returns without waiting for it;
        ``x`` must not be changed any more."""

    def receive_from_previous_stage(self, x: torch.Tensor) -> None:
        """Fills ``x``; blocks until it came."""

    def close(self) -> None:
        """Lets go of connections. What others wait for from this rank fails."""


class Alone:
    """The only rank of a replica."""

    shape = ONE_RANK
    rank = 0

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def gather_columns(self, x: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor | None:
        del widths
        return x

    def send_to_next_stage(self, x: torch.Tensor) -> None:
        raise AssertionError("one rank has no next stage")

    def receive_from_previous_stage(self, x: torch.Tensor) -> None:
        raise AssertionError("one rank has no previous stage")

    def close(self) -> None:
        pass


ALONE = Alone()
