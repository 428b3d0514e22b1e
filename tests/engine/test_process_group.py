"""What ranks say to each other: same bits everywhere, any dtype, and no wait without an end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import pytest
import torch
from memory_rendezvous import InMemory

from core.errors import InternalError
from core.shards import ParallelShape
from engine.process_group import TorchCommunicator

T = TypeVar("T")
Task = Callable[[TorchCommunicator], T]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


class Ranks:
    """Threads with one communicator each."""

    def __init__(self, shape: ParallelShape, timeout_s: float) -> None:
        store = InMemory()
        self._threads = [ThreadPoolExecutor(1, f"rank{i}") for i in range(shape.num_ranks)]
        making = [
            thread.submit(TorchCommunicator, store, shape, i, "127.0.0.1", "cpu", timeout_s)
            for i, thread in enumerate(self._threads)
        ]
        self.communicators = [made.result() for made in making]

    def start(self, rank: int, task: Task[T]) -> Future[T]:
        return self._threads[rank].submit(task, self.communicators[rank])

    def all_do(self, task: Task[T]) -> list[T]:
        futures = [self.start(rank, task) for rank in range(len(self._threads))]
        return [future.result() for future in futures]

    def close(self) -> None:
        self.all_do(lambda communicator: communicator.close())
        for thread in self._threads:
            thread.shutdown()


@contextmanager
def ranks_of(tensor: int, pipeline: int, timeout_s: float = 60.0) -> Iterator[Ranks]:
    ranks = Ranks(ParallelShape(tensor, pipeline), timeout_s)
    yield ranks
    ranks.close()


def numbers(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 7, 300])
def test_a_sum_is_the_same_on_every_rank_and_for_every_company(
    dtype: torch.dtype, rows: int
) -> None:
    parts = [numbers(rank, rows, 48).to(dtype) for rank in range(3)]
    with ranks_of(3, 1) as ranks:
        sums = ranks.all_do(lambda me: me.all_reduce(parts[me.rank].clone()))
        alone = ranks.all_do(lambda me: me.all_reduce(parts[me.rank][-1:].clone()))
    exact = torch.stack(parts).double().sum(dim=0)
    for total in sums:
        assert total.dtype is dtype
        assert torch.equal(total, sums[0])
        torch.testing.assert_close(total, exact.to(dtype))
    assert torch.equal(alone[2], sums[2][-1:])


@pytest.mark.parametrize("dtype", DTYPES)
def test_columns_of_different_widths_come_to_the_first_rank(dtype: torch.dtype) -> None:
    whole = numbers(1, 5, 10).to(dtype)
    parts = whole.split((4, 3, 3), dim=1)
    with ranks_of(3, 1) as ranks:
        joined = ranks.all_do(lambda me: me.gather_columns(parts[me.rank].contiguous(), (4, 3, 3)))
    assert joined[0] is not None
    assert torch.equal(joined[0], whole)
    assert joined[1:] == [None, None]


@pytest.mark.parametrize("dtype", DTYPES)
def test_steps_pass_the_stages_in_order(dtype: torch.dtype) -> None:
    """The first stage does not wait for the others: it is done before they have begun."""
    steps = [numbers(i, i + 1, 8).to(dtype) for i in range(3)]

    def pass_on(me: TorchCommunicator) -> list[torch.Tensor]:
        received = [torch.empty_like(step) for step in steps]
        for x in received:
            me.receive_from_previous_stage(x)
            if me.shape.stage_of(me.rank) < 2:
                me.send_to_next_stage(x + 1)
        return received

    with ranks_of(2, 3) as ranks:
        for rank in (0, 1):
            ranks.start(
                rank, lambda me: [me.send_to_next_stage(x + me.rank) for x in steps]
            ).result()
        futures = [ranks.start(rank, pass_on) for rank in (2, 3, 4, 5)]
        passed = [future.result() for future in futures]
    for place, received in enumerate(passed):
        stage, tensor_rank = divmod(place, 2)
        for x, step in zip(received, steps, strict=True):
            assert torch.equal(x, step + tensor_rank + stage)


def test_no_more_steps_are_kept_for_a_stage_than_there_are_stages() -> None:
    with ranks_of(1, 2, timeout_s=0.2) as ranks:
        for i in range(2):
            ranks.start(0, lambda me, i=i: me.send_to_next_stage(numbers(i, 4))).result()
        with pytest.raises(InternalError, match="send to the next stage") as error:
            ranks.start(0, lambda me: me.send_to_next_stage(numbers(3, 4))).result()
        assert error.value.reason == "PEERS_LOST"


# Tensor ranks, stages, the rank that waits for the last one to leave, and for what.
WAITS: dict[str, tuple[int, int, int, Task[object]]] = {
    "a sum": (3, 1, 0, lambda me: me.all_reduce(torch.ones(4))),
    "columns": (3, 1, 0, lambda me: me.gather_columns(torch.ones(2, 2), (2, 2, 2))),
    "the previous stage": (1, 2, 1, lambda me: me.receive_from_previous_stage(torch.ones(4))),
}


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("gone_before", [True, False])
def test_a_rank_that_is_gone_ends_the_waits_of_others_at_once(wait: str, gone_before: bool) -> None:
    """At once: the timeout of ten minutes is longer than a test may take."""
    tensor, pipeline, waiting, task = WAITS[wait]
    with ranks_of(tensor, pipeline, timeout_s=600.0) as ranks:
        leaving = 2 if tensor > 1 else 0
        others = [rank for rank in range(tensor * pipeline) if rank != leaving]
        if gone_before:
            ranks.start(leaving, TorchCommunicator.close).result()
        futures = {rank: ranks.start(rank, task) for rank in others}
        ranks.start(leaving, TorchCommunicator.close).result()
        with pytest.raises(InternalError, match=f"rank {waiting} of") as error:
            futures[waiting].result()
    assert error.value.reason == "PEERS_LOST"
    assert "start the replica anew" in error.value.message


@pytest.mark.thorough
@pytest.mark.parametrize("wait", WAITS)
def test_a_rank_that_hangs_ends_the_waits_of_others_after_the_timeout(wait: str) -> None:
    tensor, pipeline, waiting, task = WAITS[wait]
    with (
        ranks_of(tensor, pipeline, timeout_s=0.2) as ranks,
        pytest.raises(InternalError, match="did not answer in time"),
    ):
        ranks.start(waiting, task).result()


def test_a_rank_that_never_comes_is_an_error() -> None:
    store = InMemory(timeout_s=0.1)
    with pytest.raises(InternalError, match=r"rank 0 of 2×1 .* connect to them") as error:
        TorchCommunicator(store, ParallelShape(2), 0, "127.0.0.1", "cpu", timeout_s=0.2)
    assert error.value.reason == "PEERS_LOST"


def test_one_rank_of_one_needs_no_others() -> None:
    x = torch.ones(2, 2)
    with ranks_of(1, 1) as ranks:
        assert ranks.communicators[0].all_reduce(x) is x
        assert ranks.communicators[0].gather_columns(x, (2,)) is x
