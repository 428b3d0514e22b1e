"""Whether workers can begin with one more request, and which of them should not get it."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from predicted_workers import BLOCK, COSTS, Worker, decode, mixed, prefill

from core.outputs import Load
from core.tenants import DoorLimits
from router.admission.worker_room import WorkerRoom
from router.placement import Disaggregation, Mode
from router.routing.candidates import PromptShape
from router.routing.routing_rules import RoutingRules
from router.routing.routing_state import RoutedPrompt, RoutingState

BACKLOG = 200
BUSY = prefill("p0", pending=BACKLOG)
AUTO, PREFER = Disaggregation.AUTO, Disaggregation.PREFER


class Cluster:
    def __init__(
        self, *workers: Worker, mode: Disaggregation = AUTO, limits: DoorLimits | None = None
    ) -> None:
        rules = RoutingRules(mode, costs=COSTS)
        limits = limits or DoorLimits(prefill_backlog=BACKLOG, decode_backlog=0)
        self.routing = RoutingState(rules, Random(0))
        for one in workers:
            self.routing.attached(one.worker, one.role, one.blocks, one.places)
            load = Load(one.busy, 0, one.blocks - one.used, one.pending)
            self.routing.load_reported(one.worker, load, 0.0)
        self.routing.use(one.worker for one in workers)
        self.room = WorkerRoom(self.routing, limits, rules, BLOCK)

    def has_room(self, tokens: int = 100) -> bool:
        return self.room.has_room(tokens)

    def laden(self, tokens: int = 100) -> set[str]:
        return {worker.name for worker in self.room.laden(tokens)}


def test_a_pair_that_can_begin_is_room_and_others_are_laden() -> None:
    cluster = Cluster(BUSY, prefill("p1"), decode("d0", busy=32), decode("d1"))
    assert cluster.has_room()
    assert cluster.laden() == {"p0", "d0"}


def test_a_decode_worker_alone_is_room_where_all_prefill_workers_have_enough() -> None:
    cluster = Cluster(BUSY, decode("d0", busy=32), decode("d1", busy=1), decode("d2", pending=200))
    assert cluster.has_room()
    assert cluster.laden() == {"p0", "d0", "d2"}
    shape = PromptShape(100, BLOCK)
    prompt = RoutedPrompt(shape, np.arange(1, 1 + 100 // BLOCK, dtype=np.uint64))
    placement = cluster.routing.place(prompt, cluster.room.laden(100))
    assert (placement.mode, placement.decode.name) == (Mode.DIRECT, "d1")


def test_not_alone_where_prompts_are_to_be_handed_over() -> None:
    cluster = Cluster(BUSY, decode("d0"), mode=PREFER)
    assert not cluster.has_room()
    assert cluster.laden() == set()


def test_not_alone_where_answers_would_come_too_late() -> None:
    """50 ms each: 28 for the step in a full pool, the rest of the prompt's time in 64 parts."""
    cluster = Cluster(BUSY, decode("d0", busy=1))
    assert cluster.has_room(8_000)
    assert not cluster.has_room(12_000)
    assert Cluster(BUSY, decode("d0")).has_room(12_000)


@pytest.mark.parametrize(
    ("worker", "has_room"),
    [(mixed("m"), True), (mixed("m", busy=32), False), (mixed("m", pending=BACKLOG), False)],
)
def test_mixed_workers_have_room_for_computing_and_decoding_or_not(
    worker: Worker, has_room: bool
) -> None:
    cluster = Cluster(worker)
    assert cluster.has_room() is has_room
    assert cluster.laden() == set()
    assert Cluster(worker, mixed("free")).laden() == (set() if has_room else {"m"})


def test_without_workers_nothing_is_waited_for() -> None:
    assert Cluster().has_room()


def test_without_limits_there_is_always_room() -> None:
    cluster = Cluster(BUSY, decode("d0", busy=1000), limits=DoorLimits())
    assert cluster.has_room()
    assert cluster.laden() == set()
