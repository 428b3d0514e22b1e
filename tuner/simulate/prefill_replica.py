"""A prefill worker in virtual time. Does not cover: its step loop (``tuner.simulate.replica``)."""

from __future__ import annotations

from itertools import repeat
from typing import Any

from core.block_pool import BlockPool
from core.handoff import Announce, Piece
from core.latency_profile import femtoseconds
from core.push import ReportFailure
from core.request import AttemptKey
from prefill_worker.messages import (
    Abort,
    AnnouncePieces,
    PrefillerCommand,
    PrefillerInput,
    SendToDecode,
    Tick,
)
from prefill_worker.prefiller import Prefiller
from tuner.simulate.agenda import Agenda
from tuner.simulate.cluster_model import ClusterModel, WorkerModel
from tuner.simulate.network import Network
from tuner.simulate.recorder import GapRecorder
from tuner.simulate.replica import NO_EOS, SimulatedReplica
from tuner.simulate.shared_host import SharedHost


class PrefillReplica(SimulatedReplica[PrefillerInput, PrefillerCommand]):
    """A prefill worker."""

    def __init__(
        self,
        number: int,
        model: WorkerModel,
        cluster: ClusterModel,
        agenda: Agenda,
        network: Network,
        gaps: GapRecorder,
        host: SharedHost | None = None,
    ) -> None:
        super().__init__(number, model, agenda, network, gaps, host)
        self.prefiller = Prefiller(
            BlockPool(model.num_blocks, cluster.block_size),
            max_num_seqs=model.max_num_seqs,
            max_num_batched_tokens=model.max_num_batched_tokens,
            eos=NO_EOS,
            times=cluster.times,
            ends_by_text=lambda params, token: False,
            depth=model.engine.shape.pipeline,
            ttft=cluster.ttft_s,
        )
        self.brain = self.prefiller
        self._beat = femtoseconds(cluster.times.beat)

    @property
    def _longest_sleep(self) -> int:
        return self._beat

    def _next_tick(self) -> float | None:
        return self.prefiller.next_tick()

    def _tick_event(self) -> PrefillerInput:
        return Tick()

    def _abort_event(self, key: AttemptKey) -> PrefillerInput:
        return Abort(key)

    def _carry_out_one(self, command: Any) -> None:
        match command:
            case SendToDecode(worker, message):
                self._network.to_decode(self.name, worker, message)
            case AnnouncePieces(worker, key, lease_id, first, block_ids, generations):
                # No bytes, no checksums.
                pieces = tuple(
                    map(Piece._make, zip(block_ids, generations, repeat(()), strict=False))
                )
                self._network.to_decode(self.name, worker, Announce(key, lease_id, first, pieces))
            case ReportFailure():
                self._fail(command.key, command)
