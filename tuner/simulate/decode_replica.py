"""A decode or mixed worker in virtual time, which takes many steps at once where it can.

While its sequences only decode, the scheduler knows for how many steps nothing else can happen
(`Decoder.steady_steps`). Such a *run* is put down with its end only. Whatever happens before that
end first books the steps that ended by then, and finds the worker exactly as if it had taken them
one by one. Until then the router knows the load and the cache of the run's start; who decides by
what a run changes asks for it (`RunBoard`, `DecodeReplica.steps_may_matter`).
Does not cover: the step loop otherwise (``tuner.simulate.replica``).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from core.block_hash import HashArray
from core.block_pool import BlockPool
from core.latency_profile import FEMTOSECONDS, StepWork, femtoseconds
from core.lease_events import Aborted, CopyPieces, FailAttempt, SendToPrefill, Tick
from core.request import AttemptKey
from core.sequence import Sequence
from decode_worker.decoder import Decoder, DecoderCommand, DecoderInput
from router.routing.worker_load import context_grain
from tuner.simulate.agenda import Agenda
from tuner.simulate.cluster_model import ClusterModel, WorkerModel
from tuner.simulate.identity import drawn_token
from tuner.simulate.network import Network
from tuner.simulate.recorder import GapRecorder
from tuner.simulate.replica import NO_EOS, SimulatedReplica
from tuner.simulate.run_board import RunBoard
from tuner.simulate.shared_host import SharedHost

_NONE: HashArray = np.empty(0, dtype=np.uint64)

# A run shorter than this is taken step by step: it would not pay.
_SHORTEST_RUN = 2


# Not frozen, for the reason that is told in ``core.step``.
@dataclass(slots=True, eq=False)
class Run:
    """``steps`` steps in a row, none of them booked, the first with the work ``first``.

    Times in femtoseconds: the first step takes ``first_time``, each further one ``growth`` longer
    than the one before. ``after_step``: the router does not know yet what the step before it gave
    and the first one took. ``blocks``: how many it takes at most.
    """

    start: int
    steps: int
    first: StepWork
    first_time: int
    growth: int
    after_step: bool
    blocks: int

    def end_of(self, step: int) -> int:
        """When the step is over, counted from 1; 0 is the start."""
        return self.start + step * self.first_time + self.growth * (step * (step - 1) // 2)


class DecodeReplica(SimulatedReplica[DecoderInput, DecoderCommand]):
    """``step_by_step``: no runs."""

    def __init__(
        self,
        number: int,
        model: WorkerModel,
        cluster: ClusterModel,
        agenda: Agenda,
        network: Network,
        gaps: GapRecorder,
        board: RunBoard,
        host: SharedHost | None = None,
        step_by_step: bool = False,
    ) -> None:
        super().__init__(number, model, agenda, network, gaps, host)
        lease_ids = count(1)
        self.decoder = Decoder(
            BlockPool(model.num_blocks, cluster.block_size),
            max_num_seqs=model.max_num_seqs,
            max_num_batched_tokens=model.max_num_batched_tokens,
            eos=NO_EOS,
            times=cluster.times,
            new_lease_id=lambda: next(lease_ids),
            depth=model.engine.shape.pipeline,
            ttft=cluster.ttft_s,
        )
        self.brain = self.decoder
        self._shortest_limit = femtoseconds(min(cluster.times.no_room, cluster.times.open))
        # On a shared host the end of a step depends on what others begin meanwhile.
        self._may_run = not step_by_step and self._pipeline.depth == 1 and host is None
        self._run: Run | None = None
        self._board = board
        self._catching_up = False

    @property
    def idle(self) -> bool:
        return super().idle and self._run is None

    # Runs

    def take(self, event: DecoderInput) -> None:
        if self._leaves_run_alone(event):
            for command in self.decoder.handle(event, self._agenda.now_s):
                self._carry_out_one(command)
            self._arm_tick()
        else:
            super().take(event)

    def _leaves_run_alone(self, event: DecoderInput) -> bool:
        """Whether all that happens is the same without booking the run's steps."""
        run = self._run
        if run is None or not self.decoder.concerns_only_leases(event):
            return False
        # What an event tells of the cache and the load the end of a step has told already, but
        # for what the first step took when it began.
        return run.after_step or run.end_of(1) <= self._agenda.now

    def _plan_next(self, now: int) -> None:
        # What ends by now is better taken step by step: the run would be cut at once.
        if self._may_run and not self._catching_up and self._start_run(now):
            return
        self._plan(now)

    def _start_run(self, now: int) -> bool:
        if self._run is not None or self._under_way:
            return False
        steps = self.decoder.steady_steps()
        if steps < _SHORTEST_RUN:
            return False
        running = self.decoder.sequences.running
        size = len(running)
        first = StepWork(size, size, 0, size, sum(s.length for s in running))
        time = self._step_model.time(first)
        if time < 1:
            return False
        blocks = size * (steps // self.decoder.pool.block_size + 1)
        growth = self._step_model.per_decode_context * size
        run = Run(now, steps, first, time, growth, self._is_completing, blocks)
        self._run = run
        self._board.begun(self.number, blocks, blocks > self.decoder.pool.num_free)
        self._agenda.at_step_end(run.end_of(steps), self.number, self._on_run_end, run)
        return True

    def catch_up(self) -> None:
        if self._run is not None:
            self._catching_up = True
            self._book_known(self._run)
            while self._under_way and self._pipeline.ended_at <= self._agenda.now:
                self._complete(self._pipeline.ended_at)
            self._catching_up = False

    def _on_run_end(self, run: Run) -> None:
        if self._run is not run:
            return
        if self._can_end_at_once(run):
            self._book_all(run)
            self._arm_tick()
            return
        self._catching_up = True
        self._book_known(run)
        while self._pipeline.ended_at < self._agenda.now:
            self._complete(self._pipeline.ended_at)
        self._catching_up = False
        self._on_step_end(None)

    def _can_end_at_once(self, run: Run) -> bool:
        """Whether the router knows of all steps but the last, and nothing but these steps takes
        blocks from the cache until the last one has ended."""
        if run.end_of(run.steps - 1) + self._network.delay > self._agenda.now:
            return False
        return not len(self.decoder.sequences.queue) or run.blocks <= self.decoder.pool.num_free

    def _book_all(self, run: Run) -> None:
        """The same as `_book_known` and the end of the last step, without planning that one."""
        self._end_run()
        now, pool, before = self._agenda.now, self.decoder.pool, self.brain.load
        evicts, earlier = run.blocks > pool.num_free, run.end_of(run.steps - 1)
        free = pool.num_available - self._blocks_taken(run.steps)
        self._note_gaps(run, run.steps, now)
        commands = self.decoder.complete_steady_steps(run.steps, _drawn_by, now / FEMTOSECONDS)
        self._pipeline.pass_to(run.start, now)
        # What the step before the last one told, with the last one under way.
        self._last_load = before._replace(free_blocks=free)
        stored, removed = pool.drain_events() if evicts else (_NONE, _NONE)
        self._network.tell_state(self.number, earlier, self._last_load, stored, removed)
        self._go_on(commands, now, in_run=True)

    def _blocks_taken(self, steps: int) -> int:
        """By so many steps of the run that nobody has booked."""
        size = self.decoder.pool.block_size
        ends = ((s.length + steps - 1, s.num_blocks) for s in self.decoder.sequences.running)
        return sum(max(0, -(-end // size) - blocks) for end, blocks in ends)

    def _end_run(self) -> None:
        self._run = None
        self._board.ended(self.number)

    def _book_known(self, run: Run) -> None:
        """Books at once the steps of which the router knows, but not the run's last; the one
        after them is under way then."""
        self._end_run()
        known = min(run.steps - 1, self._steps_until(run, self._agenda.now - self._network.delay))
        at = run.end_of(known)
        if known:
            self._note_gaps(run, known, at)
            self._pipeline.pass_to(run.start, at)
            self.decoder.complete_steady_steps(known, _drawn_by, at / FEMTOSECONDS)
        self._plan(at)
        if known or run.after_step:
            self._tell_state(bool(known), at)

    def _steps_until(self, run: Run, time: int) -> int:
        return self._step_model.steps_within(run.first, max(0, time - run.start))

    def _note_gaps(self, run: Run, steps: int, end: int) -> None:
        """``steps`` tokens for each sequence. For some, the one before came before the run."""
        growth = run.growth
        token_at, start = self._token_at, run.start
        earlier: dict[int, int] = {}
        others = 0
        for sequence in self.decoder.sequences.running:
            index = sequence.params.seed
            if token_at[index] != start:
                gap = start + run.first_time - token_at[index]
                earlier[gap] = earlier.get(gap, 0) + 1
                others += 1
            token_at[index] = end
        self._gaps.step(earlier)
        if others and steps > 1:
            self._gaps.run(run.first_time + growth, growth, steps - 1, others)
        if run.first.decodes > others:
            self._gaps.run(run.first_time, growth, steps, run.first.decodes - others)

    def steps_may_matter(self, free_blocks: int, needed: int, held: HashArray) -> bool:
        run = self._run
        if run is None:
            return False
        known_after = run.start if run.after_step else run.start + run.first_time
        if self._agenda.now < known_after + self._network.delay:
            return False
        if needed > free_blocks - run.blocks or self._may_evict(run, held):
            return True
        pool = self.decoder.pool.num_blocks
        grain = context_grain(pool)
        return (pool - free_blocks) % grain + run.blocks >= grain

    def _may_evict(self, run: Run, held: HashArray) -> bool:
        """A prefix whose last block somebody holds stays, as long as there are others to evict."""
        pool = self.decoder.pool
        if not len(held) or run.blocks <= pool.num_free:
            return False
        return 4 * run.blocks > pool.num_available or not pool.is_held(int(held[-1]))

    def sample(self) -> None:
        run, now = self._run, self._agenda.now
        if run is None:
            super().sample()
            return
        # The step under way has its blocks already.
        steps = min(run.steps, self._steps_until(run, now) + 1)
        used = self.decoder.pool.num_leased + self._blocks_taken(steps)
        busy = self._pipeline.busy_until(now) + now - run.start
        self.recorder.sample(now, busy, self.brain.load, used)

    # What is its own

    @property
    def _longest_sleep(self) -> int:
        return self._shortest_limit

    @property
    def _minds_no_tick(self) -> bool:
        # It would cut the run, and find nothing to do.
        return self._run is None

    def _next_tick(self) -> float | None:
        return self.decoder.next_tick()

    def _tick_event(self) -> DecoderInput:
        return Tick()

    def _abort_event(self, key: AttemptKey) -> DecoderInput:
        return Aborted(key)

    def _carry_out_one(self, command: Any) -> None:
        match command:
            case SendToPrefill(peer, message):
                self._network.to_prefill(peer, message)
            case CopyPieces():
                self._network.copy(self.number, command)
            case FailAttempt():
                self._fail(command.key, command)


def _drawn_by(sequence: Sequence) -> int:
    return drawn_token(sequence.params)
