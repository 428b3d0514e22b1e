"""Which workers get a prompt, by what they hold and how busy they are."""

from random import Random

import numpy as np
import pytest

from core.errors import Unavailable
from core.outputs import Load
from core.request import Role
from router.placement import Disaggregation, Placement, WorkerId, WorkerView
from router.policy import Candidates, PromptShape, choose

P0, P1, D0, D1, M0 = (WorkerId(name, 1) for name in ("p0", "p1", "d0", "d1", "m0"))
PROMPT = PromptShape(num_tokens=100, block_size=16)
AUTO, ALWAYS = Disaggregation.AUTO, Disaggregation.ALWAYS


def view(
    worker: WorkerId,
    role: Role,
    *,
    pending: int = 0,
    running: int = 0,
    free: int = 100,
    blocks: int = 100,
) -> WorkerView:
    return WorkerView(worker, role, blocks, Load(running, 0, free, pending))


def prefill(worker: WorkerId, pending: int = 0, blocks: int = 100) -> WorkerView:
    return view(worker, Role.PREFILL, pending=pending, blocks=blocks)


def decode(worker: WorkerId, running: int = 0, free: int = 100) -> WorkerView:
    return view(worker, Role.DECODE, running=running, free=free)


def place(
    *workers: WorkerView,
    overlap: dict[WorkerId, int] | None = None,
    avoid: set[WorkerId] | None = None,
    mode: Disaggregation = AUTO,
    seed: int = 0,
) -> Placement:
    candidates = columns(workers, overlap or {})
    return choose(PROMPT, candidates, frozenset(avoid or ()), mode, Random(seed))


def columns(views: tuple[WorkerView, ...], overlap: dict[WorkerId, int]) -> Candidates:
    return Candidates(
        [view.worker for view in views],
        np.array([view.role.decodes for view in views], dtype=np.bool_),
        np.array([view.role.takes_handoffs for view in views], dtype=np.bool_),
        np.array([view.role.prefills_for_others for view in views], dtype=np.bool_),
        np.array([view.num_blocks for view in views]),
        np.array([overlap.get(view.worker, 0) for view in views]),
        np.array([view.load.running + view.load.waiting for view in views]),
        np.array([view.load.free_blocks for view in views]),
        np.array([view.load.pending_prefill_tokens for view in views]),
    )


def test_a_prefill_worker_is_used_when_there_is_one() -> None:
    assert place(prefill(P0), decode(D0)) == Placement(D0, P0)


def test_without_prefill_workers_the_decode_worker_does_it_all() -> None:
    assert place(decode(D0)) == Placement(D0)
    assert place(view(M0, Role.MIXED)) == Placement(M0)


def test_only_decode_workers_take_handoffs() -> None:
    mixed = view(M0, Role.MIXED)
    assert place(prefill(P0), mixed) == Placement(M0)
    assert place(prefill(P0), mixed, decode(D0, running=9)) == Placement(D0, P0)
    with pytest.raises(Unavailable, match="no decode worker"):
        place(prefill(P0), mixed, mode=ALWAYS)


def test_always_means_no_local_prefill() -> None:
    with pytest.raises(Unavailable, match="no prefill worker"):
        place(decode(D0), mode=ALWAYS)


def test_the_longer_cached_prefix_wins() -> None:
    chosen = place(prefill(P0), prefill(P1), decode(D0), overlap={P0: 1, P1: 4})
    assert chosen.prefill == P1


def test_a_long_queue_outweighs_a_cached_prefix() -> None:
    chosen = place(prefill(P0), prefill(P1, pending=5000), decode(D0), overlap={P1: 6})
    assert chosen.prefill == P0


def test_the_less_busy_decode_worker_wins() -> None:
    assert place(prefill(P0), decode(D0, running=5), decode(D1, running=1)).decode == D1


def test_blocks_that_are_not_free_cost_more_than_blocks_to_ship() -> None:
    chosen = place(prefill(P0), decode(D0, free=2), decode(D1), overlap={D0: 2})
    assert chosen.decode == D1


def test_the_decode_worker_that_holds_the_prefix_wins_a_tie_in_load() -> None:
    assert place(prefill(P0), decode(D0), decode(D1), overlap={D1: 3}).decode == D1


def test_equal_workers_share_the_work_and_a_seed_repeats_the_choice() -> None:
    workers = (prefill(P0), prefill(P1), decode(D0), decode(D1))
    chosen = [place(*workers, seed=seed) for seed in range(40)]
    assert {c.decode for c in chosen} == {D0, D1}
    assert {c.prefill for c in chosen} == {P0, P1}
    assert chosen == [place(*workers, seed=seed) for seed in range(40)]


def test_workers_that_failed_this_request_are_avoided() -> None:
    workers = (prefill(P0), prefill(P1), decode(D0), decode(D1))
    assert all(place(*workers, avoid={P0, D1}, seed=s) == Placement(D0, P1) for s in range(20))


def test_when_every_prefill_worker_failed_the_decode_worker_prefills() -> None:
    assert place(prefill(P0), decode(D0), avoid={P0}) == Placement(D0)
    assert place(prefill(P0), decode(D0), avoid={P0}, mode=ALWAYS) == Placement(D0, P0)


def test_the_only_decode_worker_is_taken_again() -> None:
    assert place(prefill(P0), decode(D0), avoid={D0}) == Placement(D0, P0)


def test_no_decode_worker_says_when_to_come_back() -> None:
    with pytest.raises(Unavailable, match="no decode worker") as caught:
        place(prefill(P0))
    assert caught.value.retry_after is not None


def test_a_worker_with_too_small_a_pool_is_left_out() -> None:
    assert place(prefill(P0, blocks=6), prefill(P1, blocks=7), decode(D0)).prefill == P1
