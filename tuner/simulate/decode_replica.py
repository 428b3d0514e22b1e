"""A decode or mixed worker in virtual time, which takes many steps at once where it can.

While its sequences only decode, the scheduler knows for how many steps nothing else can happen
(`Decoder.steady_steps`). Such a *run* is put down with its end only. Whatever happens before that
end first books the steps that ended by then, and finds the worker exactly as if it had taken them
one by one. Until then the router knows the load and the cache of the run's start; who decides by
what a run changes asks for it (`DecodeReplica.run_may_matter`).
Does not cover: the step loop otherwise (``tuner.simulate.replica``).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import count
from typing import Any

from core.block_hash import HashArray
from core.block_pool import BlockPool
from core.latency_profile import FEMTOSECONDS, StepWork, femtoseconds
from core.lease_events import Aborted, CopyPieces, FailAttempt, SendToPrefill, Tick
from core.request import AttemptKey
from core.sequence import Sequence
from decode_worker.decoder import Decoder, DecoderCommand, DecoderInput
from tuner.simulate.agenda import Agenda
from tuner.simulate.cluster_model import ClusterModel, WorkerModel
from tuner.simulate.identity import drawn_token
from tuner.simulate.network import Network
from tuner.simulate.recorder import GapRecorder
from tuner.simulate.replica import NO_EOS, SimulatedReplica

# A run shorter than this is taken step by step: it would not pay.
_SHORTEST_RUN = 2


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """``steps`` steps in a row, none of them booked, the first with the work ``first``.

    Times in femtoseconds. ``after_step``: the router does not know yet what the step before it
    gave and the first one took. ``blocks``: how many it takes at most.
    """

    start: int
    steps: int
    first: StepWork
    first_time: int
    after_step: bool
    blocks: int


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
        step_by_step: bool = False,
    ) -> None:
        super().__init__(number, model, agenda, network, gaps)
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
        self._may_run = not step_by_step and self._pipeline.depth == 1
        self._run: Run | None = None
        self._catching_up = False

    @property
    def idle(self) -> bool:
        return super().idle and self._run is None

    # Runs

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
        running = self.decoder.scheduler.running
        size = len(running)
        first = StepWork(size, size, 0, size, sum(s.length for s in running))
        time = self._step_model.time(first)
        if time < 1:
            return False
        blocks = size * (steps // self.decoder.pool.block_size + 1)
        run = Run(now, steps, first, time, self._is_completing, blocks)
        self._run = run
        end = now + self._step_model.run_time(first, steps)
        self._agenda.at_step_end(end, self.number, self._on_run_end, run)
        return True

    @property
    def in_run(self) -> bool:
        return self._run is not None

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
        self._catching_up = True
        self._book_known(run)
        while self._pipeline.ended_at < self._agenda.now:
            self._complete(self._pipeline.ended_at)
        self._catching_up = False
        self._on_step_end(None)

    def _book_known(self, run: Run) -> None:
        """Books at once the steps of which the router knows, but not the run's last; the one
        after them is under way then."""
        self._run = None
        elapsed = self._agenda.now - run.start - self._network.delay
        known = min(run.steps - 1, self._step_model.steps_within(run.first, max(0, elapsed)))
        at = run.start
        if known:
            at += self._step_model.run_time(run.first, known)
            self._note_gaps(run, known, at)
            self._pipeline.pass_to(run.start, at)
            self.decoder.complete_steady_steps(known, _drawn_by, at / FEMTOSECONDS)
        self._plan(at)
        if known or run.after_step:
            self._tell_state(bool(known), at)

    def _note_gaps(self, run: Run, steps: int, end: int) -> None:
        """``steps`` tokens for each sequence. For some, the one before came before the run."""
        growth = self._step_model.per_decode_context * run.first.decodes
        token_at, start = self._token_at, run.start
        earlier: Counter[int] = Counter()
        for sequence in self.decoder.scheduler.running:
            index = sequence.params.seed
            if token_at[index] != start:
                earlier[start + run.first_time - token_at[index]] += 1
            token_at[index] = end
        others = earlier.total()
        self._gaps.step(earlier)
        if others and steps > 1:
            self._gaps.run(run.first_time + growth, growth, steps - 1, others)
        if run.first.decodes > others:
            self._gaps.run(run.first_time, growth, steps, run.first.decodes - others)

    def run_may_matter(self, free_blocks: int, needed: int, held: HashArray) -> bool:
        """Whether a decision now may depend on steps that are not booked.

        The router believes that there are ``free_blocks``, looks for ``needed`` ones, and knows of
        the leading blocks ``held`` (hashes) here.
        """
        run = self._run
        if run is None:
            return False
        known_after = run.start if run.after_step else run.start + run.first_time
        if self._agenda.now < known_after + self._network.delay:
            return False
        return needed > free_blocks - run.blocks or self._may_evict(run, held)

    def _may_evict(self, run: Run, held: HashArray) -> bool:
        """A prefix whose last block somebody holds stays, as long as there are others to evict."""
        pool = self.decoder.pool
        if not len(held) or run.blocks <= pool.num_free:
            return False
        return 4 * run.blocks > pool.num_available or not pool.is_held(int(held[-1]))

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
