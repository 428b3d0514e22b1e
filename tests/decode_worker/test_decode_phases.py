"""What a decode worker sees of the time before the first token, and blocks that nobody holds."""

from __future__ import annotations

from itertools import count

import numpy as np

from core.block_pool import BlockPool
from core.handoff import Announce, Cancel, Commit, LeaseTimes, Piece, Reserve, ToDecode
from core.lease_events import Copied, FromPrefill, Opened
from core.phase_clock import Phase
from core.request import AttemptKey, RequestKey, SamplingParams
from core.step import SampledToken, StepResult
from decode_worker.decoder import Decoder, PrefillHere

KEY = AttemptKey(RequestKey("default", "a"), 1)
PROMPT = np.arange(1, 12, dtype=np.int32)


class Desk:
    """Blocks of 4 tokens, so that the prompt has three; chunks of 8; leases count from 1."""

    def __init__(self) -> None:
        self.seen: dict[Phase, float] = {}
        ids = count(1)
        self.pool = BlockPool(40, 4)
        self.decoder = Decoder(
            self.pool,
            max_num_seqs=8,
            max_num_batched_tokens=8,
            eos=frozenset({99}),
            times=LeaseTimes(),
            new_lease_id=lambda: next(ids),
            observe_phase=self.seen.__setitem__,
        )

    def hear(self, message: ToDecode, now: float) -> None:
        self.decoder.handle(FromPrefill("P0", message), now)

    def announce(self, first: int, blocks: int, now: float) -> None:
        pieces = tuple(Piece(block, 1, (0,)) for block in range(blocks))
        self.hear(Announce(KEY, 1, first, pieces), now)

    def step(self, planned: float, completed: float) -> None:
        plan = self.decoder.plan_step(planned)
        assert plan is not None
        drawn = {s.sequence_id: (SampledToken(7),) * len(s.samples) for s in plan.slices}
        self.decoder.complete_step(plan, StepResult(drawn), completed)


def test_a_handoff() -> None:
    desk = Desk()
    desk.decoder.handle(Opened(KEY), 0.5)
    desk.hear(Reserve(KEY, PROMPT, 0, SamplingParams(5)), 1.0)
    desk.announce(0, 2, now=2.0)
    desk.decoder.handle(Copied(1, (0, 1), ()), 2.5)
    desk.announce(2, 1, now=3.0)
    desk.hear(Commit(KEY, 1, (SampledToken(7),), 0), 3.25)
    assert desk.seen == {}
    desk.decoder.handle(Copied(1, (2,), ()), 4.0)
    assert desk.seen == {Phase.RESERVE: 0.0, Phase.TRANSFER: 2.0, Phase.COMMIT: 0.75}


def test_a_cancelled_handoff_tells_nothing_and_leaves_no_orphans() -> None:
    desk = Desk()
    desk.decoder.handle(Opened(KEY), 0.5)
    desk.hear(Reserve(KEY, PROMPT, 0, SamplingParams(5)), 1.0)
    desk.announce(0, 2, now=2.0)
    desk.hear(Cancel(KEY, "gone"), 2.5)
    assert desk.seen == {}
    # Under copy, and known to be.
    assert (desk.pool.num_quarantined, desk.decoder.num_orphans) == (2, 0)
    desk.decoder.handle(Copied(1, (0, 1), ()), 3.0)
    assert (desk.pool.num_quarantined, desk.decoder.num_orphans) == (0, 0)


def test_a_prompt_that_is_prefilled_here() -> None:
    desk = Desk()
    desk.decoder.handle(PrefillHere(KEY, PROMPT, SamplingParams(5), 0), 1.0)
    desk.step(planned=2.0, completed=3.0)
    desk.step(planned=3.0, completed=4.5)
    assert desk.seen == {Phase.QUEUE: 1.0, Phase.PREFILL: 2.5}
    desk.seen.clear()
    desk.step(planned=5.0, completed=6.0)
    assert desk.seen == {}


def test_blocks_that_were_taken_and_forgotten_are_orphans() -> None:
    desk = Desk()
    desk.decoder.handle(PrefillHere(KEY, PROMPT, SamplingParams(5), 0), 1.0)
    assert desk.decoder.num_orphans == 0
    taken = desk.pool.allocate(2)
    assert taken is not None
    assert desk.decoder.num_orphans == 2
    desk.pool.quarantine(taken)
    assert desk.decoder.num_orphans == 2
