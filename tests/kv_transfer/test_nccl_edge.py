"""KV blocks over NCCL: the real classes of both sides over sockets, the communicator a stub."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import threading
from collections.abc import Iterator

import pytest
import torch
from fake_gpu import StubCommunicator
from nccl_edges import Edges

from core.errors import Incompatible
from core.handoff import Piece
from core.lease_events import PieceCopy
from core.shards import ParallelShape
from kv_transfer.nccl_communicator import UINT8, Communicator, CupyNccl
from kv_transfer.nccl_receiver_rules import Limits

QUICK = Limits(room=0.3, join=0.3, batch=0.3)


@pytest.fixture
def edges() -> Iterator[Edges]:
    yield from open_edges(Edges())


@pytest.fixture
def quick() -> Iterator[Edges]:
    yield from open_edges(Edges(limits=QUICK))


def open_edges(edges: Edges) -> Iterator[Edges]:
    yield edges
    edges.close()


def test_blocks_arrive_and_are_verified(edges: Edges) -> None:
    source = edges.open()
    assert source.copy(edges.announce(5, 2, 6)).good == (0, 1, 2)
    assert source.copy(edges.announce(0)).good == (0,)
    assert torch.equal(edges.arrived([5, 2, 6, 0]), edges.sent([5, 2, 6, 0]))


def test_a_part_of_a_split_pool_arrives_and_nothing_else_is_touched() -> None:
    for place in range(4):
        edges = Edges(ParallelShape(2, 1), ParallelShape(1, 2), place)
        assert edges.open().copy(edges.announce(1, 3)).good == (0, 1)
        assert torch.equal(edges.arrived([1, 3]), edges.sent([1, 3]))
        written = edges.destination.view(torch.uint8).count_nonzero()
        assert written == edges.sent([1, 3]).count_nonzero()
        edges.close()


def test_many_blocks_come_in_batches(edges: Edges, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kv_transfer.staging.BATCH_BYTES", 2 * edges.plan.block_bytes)
    source = edges.open()
    assert source.copy(edges.announce(*range(8))).good == tuple(range(8))
    # The self-test and four batches of two.
    assert edges.decode_gpu.log.count("receive") == 5
    assert torch.equal(edges.arrived(range(8)), edges.sent(range(8)))


def test_a_block_that_moved_on_is_refused_and_its_neighbours_land(edges: Edges) -> None:
    copies = edges.announce(5, 2, 6)
    edges.generations[2] += 1
    result = edges.open().copy(copies)
    assert (result.good, result.bad) == ((0, 2), (1,))
    assert not edges.arrived([2]).any()


def test_a_block_id_outside_the_pool_is_refused(edges: Edges) -> None:
    (copy,) = edges.announce(5)
    outside = PieceCopy(0, Piece(99, 0, copy.piece.checksums), 0)
    assert edges.open().copy([outside]).bad == (0,)


def test_one_flipped_bit_is_found(edges: Edges) -> None:
    copies = edges.announce(5, 2)
    edges.pool.tensor[5].view(torch.uint8)[3, 1, 1, 1, 5] ^= 1
    result = edges.open().copy(copies)
    assert (result.good, result.bad) == ((1,), (0,))


def test_streams_wait_for_each_other_on_both_sides(edges: Edges) -> None:
    copies = edges.announce(5)
    source = edges.open()
    edges.prefill_gpu.log.clear()
    edges.decode_gpu.log.clear()
    source.copy(copies)
    assert edges.prefill_gpu.log == ["transfer waits for compute", "send"]
    assert edges.decode_gpu.log == [
        "receive",
        "transfer waits for compute",
        "compute waits for transfer",
    ]


def test_packing_waits_for_what_was_described_not_for_later_steps(edges: Edges) -> None:
    source, copies = edges.open(), edges.announce(5)
    later = threading.Event()
    edges.prefill_gpu.compute.work.append(later.is_set)
    assert source.copy(copies).good == (0,)
    later.set()


def test_nothing_is_allocated_once_an_edge_is_open(edges: Edges) -> None:
    source = edges.open()
    for gpu in (edges.prefill_gpu, edges.decode_gpu):
        gpu.log.clear()
    source.copy(edges.announce(1, 2))
    assert "allocate" not in edges.prefill_gpu.log + edges.decode_gpu.log


def test_a_batch_that_does_not_come_fences_the_edge(quick: Edges) -> None:
    source = quick.open()
    (wire,) = quick.wires.values()
    wire.stuck = True
    assert source.copy(quick.announce(5)).bad == (0,)
    with pytest.raises(Incompatible, match="not over in time: receiving a batch"):
        source.copy(quick.announce(5))
    source.close()
    (communicator,) = quick.decode_nccl.communicators
    assert communicator.aborted_by == "nccl-abort"
    assert not quick.destination.view(torch.uint8).any()


def test_the_prefill_worker_fences_too_and_serves_the_next_stream(quick: Edges) -> None:
    source = quick.open()
    (wire,) = quick.wires.values()
    wire.stuck = True
    source.copy(quick.announce(5))
    again = quick.open()
    assert again.copy(quick.announce(5)).good == (0,)
    assert quick.prefill_nccl.communicators[0].aborted_by == "nccl-abort"


def test_an_abort_ends_a_copy_at_once_and_later_ones_raise(edges: Edges) -> None:
    source = edges.open()
    (wire,) = edges.wires.values()
    wire.stuck = True
    copies, results = edges.announce(5), []
    copying = threading.Thread(target=lambda: results.append(source.copy(copies)))
    copying.start()
    with wire.changed:
        assert wire.changed.wait_for(lambda: len(wire.sends) == 2, 20)
    source.abort()
    copying.join()
    assert results[0].bad == (0,)
    with pytest.raises(Incompatible, match="given up"):
        source.copy(copies)


@pytest.mark.thorough
def test_a_prefill_worker_that_stops_while_it_joins_fails_the_self_test(quick: Edges) -> None:
    """A call that waits for the other rank can't be aborted: whoever is in it does so later."""
    woken, join = threading.Event(), quick.prefill_nccl.join

    def join_when_woken(unique_id: bytes, rank: int) -> StubCommunicator:
        woken.wait()
        return join(unique_id, rank)

    quick.prefill_nccl.join = join_when_woken  # type: ignore[method-assign]
    with pytest.raises(Incompatible, match="making the communicator"):
        quick.open()
    stuck = [thread for thread in threading.enumerate() if thread.name == "nccl-edge"]
    woken.set()
    for thread in stuck:
        thread.join()
    quick.server.close()
    communicators = quick.decode_nccl.communicators + quick.prefill_nccl.communicators
    assert [c.aborted_by for c in communicators] == ["nccl-edge", "nccl-serve"]
    assert not quick.destination.view(torch.uint8).any()


def test_a_revoked_stream_is_fenced_on_both_sides(edges: Edges) -> None:
    source = edges.open()
    edges.server.revoke(edges.token)
    edges.server.close()
    assert edges.prefill_nccl.communicators[0].aborted_by == "nccl-abort"
    copies = [PieceCopy(0, Piece(5, 5, (1,)), 0)]
    with contextlib.suppress(Incompatible):
        assert source.copy(copies).bad == (0,)
    with pytest.raises(Incompatible, match="fenced"):
        source.copy(copies)


def test_a_wrong_token_is_refused(edges: Edges) -> None:
    with pytest.raises(Incompatible, match="handshake"):
        edges.open(bytes(16))


def test_a_wrong_self_test_is_found(edges: Edges, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kv_transfer.staging.Staging.fill_first", lambda self, row: None)
    with pytest.raises(Incompatible, match="self-test failed"):
        edges.open()


@pytest.mark.parametrize("side", ["prefill_cap", "decode_cap"])
def test_with_a_cap_idle_edges_close_and_open_again_on_demand(side: str) -> None:
    edges = Edges(**{side: 1})
    first, second = edges.open(), edges.open()
    for source in (first, second, first):
        assert source.copy(edges.announce(4)).good == (0,)
    destroyed = [c for c in edges.decode_nccl.communicators if c.is_destroyed]
    assert len(destroyed) == len(edges.decode_nccl.communicators) - 1 == 4
    edges.close()


def test_without_room_a_copy_lands_nothing_and_the_edge_lives() -> None:
    edges, busy = Edges(decode_cap=1, limits=QUICK), BusyEdge()
    source = edges.open()
    assert edges.decode_room.enter(busy, limit_s=20)
    assert source.copy(edges.announce(3)).bad == (0,)
    edges.decode_room.leave(busy)
    assert source.copy(edges.announce(3)).good == (0,)
    edges.close()


class BusyEdge:
    is_idle = False

    def ask_to_close(self) -> None:
        raise AssertionError("it is busy")


def test_the_stub_has_the_signatures_of_cupys_communicator() -> None:
    nccl = importlib.import_module("cupy.cuda.nccl")
    for name in ("send", "recv", "abort", "destroy", "check_async_error"):
        real = signature_in_docs(getattr(nccl.NcclCommunicator, name).__doc__)
        assert parameters(getattr(StubCommunicator, name)) == real
        assert parameters(getattr(Communicator, name)) == real
    assert nccl.NcclCommunicator.__doc__.startswith("NcclCommunicator(int ndev, bytes commId, int")
    assert nccl.NCCL_UINT8 == UINT8


def test_nccl_is_there_and_gives_ids_of_128_bytes() -> None:
    assert len(CupyNccl(0).new_unique_id()) == 128


def signature_in_docs(doc: str) -> list[str]:
    """Names from a line that Cython writes: ``Name.send(self, intptr_t sendbuf, …) None``."""
    found = re.search(r"\((.*)\)", doc.splitlines()[0])
    assert found
    return [part.split()[-1] for part in found[1].split(",")]


def parameters(method: object) -> list[str]:
    return list(inspect.signature(method).parameters)  # type: ignore[arg-type]
