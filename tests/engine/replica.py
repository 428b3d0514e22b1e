"""All ranks of a replica as threads of this process, with real process groups between them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from memory_rendezvous import InMemory

from core.shards import ParallelShape
from core.step import StepPlan, StepResult
from engine.batch import batch_arrays, to_device
from engine.process_group import TorchCommunicator
from engine.runner import LoadedModel, load_runner
from engine.upload import Upload

T = TypeVar("T")
Logits = dict[int, torch.Tensor]


def logits_of(rank: LoadedModel, plan: StepPlan) -> Logits | None:
    """Computes a step and gives the float32 logits [vocab] of each slice that samples, by its
    sequence; None on a rank that does not sample."""
    model, pool = rank.runner.model, rank.pool.tensor
    arrays = batch_arrays(plan, pool.shape[4])
    logits = model.forward(to_device(arrays, Upload(model.device)), pool)
    if logits is None:
        return None
    order = [part.sequence_id for part in arrays.sampled_slices]
    return dict(zip(order, logits.values, strict=True))


class Replica:
    """Computes each step on all ranks at the same time."""

    def __init__(
        self,
        folder: Path,
        shape: ParallelShape,
        *,
        num_blocks: int,
        block_size: int,
        dtype: str = "float32",
    ) -> None:
        store = InMemory()
        self._threads = [ThreadPoolExecutor(1, f"rank{i}") for i in range(shape.num_ranks)]

        def connect(rank: int) -> TorchCommunicator:
            return TorchCommunicator(store, shape, rank, "127.0.0.1", "cpu", timeout_s=60)

        def load(rank: int) -> LoadedModel:
            return load_runner(
                folder,
                dtype=dtype,
                device="cpu",
                num_blocks=num_blocks,
                block_size=block_size,
                communicator=self.communicators[rank],
            )

        self.communicators = self.on_all_ranks(connect)
        self.ranks = self.on_all_ranks(load)
        self.pool = self.ranks[0].pool

    def on_all_ranks(self, task: Callable[[int], T]) -> list[T]:
        futures = [thread.submit(task, i) for i, thread in enumerate(self._threads)]
        return [future.result() for future in futures]

    def execute(self, plan: StepPlan) -> StepResult:
        return _only(self.on_all_ranks(lambda rank: self.ranks[rank].runner.execute(plan)))

    def logits(self, plan: StepPlan) -> Logits:
        return _only(self.on_all_ranks(lambda rank: logits_of(self.ranks[rank], plan)))

    def forget(self) -> None:
        """Fills all pools with NaN: nothing may be read that is not written again."""
        for rank in self.ranks:
            rank.pool.tensor.fill_(torch.nan)

    def close(self) -> None:
        self.on_all_ranks(lambda rank: self.communicators[rank].close())
        for thread in self._threads:
            thread.shutdown()
        for rank in self.ranks:
            rank.pool.close()


def _only(results: list[T | None]) -> T:
    """The result of the one rank that has one."""
    (result,) = [result for result in results if result is not None]
    return result
