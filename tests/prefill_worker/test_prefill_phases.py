"""What a prefill worker sees of the time before the first token, phase by phase."""

from __future__ import annotations

import numpy as np

from core.block_pool import BlockPool
from core.handoff import Ack, Committed, LeaseTimes, NoRoom, Ticket, ToPrefill
from core.phase_clock import Phase
from core.request import AttemptKey, RequestKey, SamplingParams
from core.step import SampledToken, StepResult
from prefill_worker.messages import FromDecode, Submit
from prefill_worker.prefiller import Prefiller

KEY = AttemptKey(RequestKey("default", "a"), 1)
EOS = 99


class Desk:
    """Chunks of 8 tokens, blocks of 4."""

    def __init__(self) -> None:
        self.seen: dict[Phase, float] = {}
        self.prefiller = Prefiller(
            BlockPool(40, 4),
            max_num_seqs=8,
            max_num_batched_tokens=8,
            eos=frozenset({EOS}),
            times=LeaseTimes(),
            ends_by_text=lambda params, token: False,
            observe_phase=self.seen.__setitem__,
        )
        prompt = np.arange(1, 12, dtype=np.int32)
        self.prefiller.handle(Submit(KEY, prompt, SamplingParams(5), 0, "D0"), 1.0)

    def hear(self, message: ToPrefill, now: float) -> None:
        self.prefiller.handle(FromDecode(message), now)

    def step(self, planned: float, completed: float, token: int = 7) -> None:
        plan = self.prefiller.plan_step(planned)
        assert plan is not None
        drawn = {s.sequence_id: (SampledToken(token),) * len(s.samples) for s in plan.slices}
        self.prefiller.complete_step(plan, StepResult(drawn), completed)


def test_a_handed_off_prompt() -> None:
    desk = Desk()
    desk.hear(Ticket(KEY, 5, 0), 1.5)
    desk.step(planned=2.0, completed=3.0)
    desk.step(planned=3.0, completed=4.0)
    desk.hear(Ack(KEY, 5, 2, ()), 4.25)
    desk.hear(Ack(KEY, 5, 3, ()), 4.5)
    assert desk.seen == {}
    desk.hear(Committed(KEY, 5), 4.75)
    assert desk.seen == {
        Phase.QUEUE: 1.0,
        Phase.RESERVE: 0.5,
        Phase.PREFILL: 2.0,
        Phase.TRANSFER: 0.5,
        Phase.COMMIT: 0.25,
    }


def test_what_comes_before_the_ticket_is_waiting_for_it_and_not_transfer() -> None:
    desk = Desk()
    desk.step(planned=2.0, completed=3.0)
    desk.step(planned=3.0, completed=4.0)
    desk.hear(Ticket(KEY, 5, 0), 5.0)
    desk.hear(Ack(KEY, 5, 3, ()), 5.5)
    desk.hear(Committed(KEY, 5), 5.5)
    assert desk.seen[Phase.RESERVE] == 4.0
    assert (desk.seen[Phase.TRANSFER], desk.seen[Phase.COMMIT]) == (0.5, 0.0)


def test_blocks_that_the_decode_worker_holds_take_no_transfer() -> None:
    desk = Desk()
    desk.hear(Ticket(KEY, 5, 3), 1.5)
    desk.step(planned=2.0, completed=3.0)
    desk.step(planned=3.0, completed=4.0)
    desk.hear(Committed(KEY, 5), 4.5)
    assert (desk.seen[Phase.TRANSFER], desk.seen[Phase.COMMIT]) == (0.0, 0.5)


def test_a_prompt_whose_first_token_ends_it_has_no_handoff() -> None:
    desk = Desk()
    desk.step(planned=2.0, completed=3.0)
    desk.step(planned=3.0, completed=4.0, token=EOS)
    assert desk.seen == {Phase.QUEUE: 1.0, Phase.PREFILL: 2.0}


def test_a_failed_attempt_tells_nothing() -> None:
    desk = Desk()
    desk.step(planned=2.0, completed=3.0)
    desk.hear(NoRoom(KEY, "full"), 3.5)
    assert desk.seen == {}
