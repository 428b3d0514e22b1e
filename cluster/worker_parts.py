"""What a worker is made of: each rank's part of the model, all ranks as one replica, the service
of its role."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.peak_rates import peak_rates
from core.request import Role
from core.worker_settings import RankSettings, WorkerSettings
from crossdock.v1 import worker_pb2
from decode_worker.service import DecodeService
from engine.communicator import ALONE, Communicator
from engine.cost_model import cost_model
from engine.local_executor import LocalExecutor
from engine.model_hash import model_hash
from engine.process_group import TorchCommunicator
from engine.rendezvous import KeyValues
from engine.runner import LoadedModel, load_runner
from kernels.dispatch import force
from kv_transfer.handshake import WorkerIdentity
from kv_transfer.rank_ports import RankReceiver, RankSender
from kv_transfer.rank_receiver import LocalRankReceiver
from kv_transfer.rank_sender import LocalRankSender
from prefill_worker.service import PrefillService
from text.tokenizer import Tokenizer
from worker.metrics import WorkerMetrics
from worker.pool import local_receiver, local_sender, whole_layout
from worker.ranks.executor import RankExecutor
from worker.ranks.group import RankGroup
from worker.ranks.intervals import StepIntervals
from worker.ranks.own_stats import own_stats
from worker.ranks.remote_receiver import RemoteRankReceiver
from worker.ranks.remote_sender import RemoteRankSender
from worker.ranks.replica import Replica

Service = PrefillService | DecodeService

# Ranks start at the same time, but import torch and read weights at their own pace.
_JOIN_LIMIT_S = 120.0
_READY_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class LoadedRank:
    """One rank's part of a model, its place among the other ranks, and its end of the handoff:
    ``sender`` on prefill workers, ``receiver`` on decode workers. ``model_hash``: of the whole
    folder."""

    model: LoadedModel
    communicator: Communicator
    model_hash: int
    sender: LocalRankSender | None
    receiver: LocalRankReceiver | None

    def close(self) -> None:
        """Not while a step is computed. Edges into ``receiver`` are closed before."""
        if self.sender is not None:
            self.sender.close()
        self.communicator.close()
        self.model.pool.close()


def load_rank(
    settings: WorkerSettings, rank: int, host: str, values: KeyValues | None
) -> LoadedRank:
    """Finds the other ranks over ``values`` (None: there are none), reads this rank's weights and
    pre-faults its KV pool; takes seconds. ``host``: where the other ranks reach this one."""
    folder = Path(settings.model_folder)
    if settings.kernels == "torch":
        # Before the model is made: its weights are laid out for what computes with them.
        force("torch")
    communicator: Communicator = ALONE
    if values is not None:
        communicator = TorchCommunicator(values, settings.shape, rank, host, settings.device)
    model = load_runner(
        folder,
        dtype=settings.dtype,
        device=settings.device,
        num_blocks=settings.num_blocks,
        block_size=settings.block_size,
        communicator=communicator,
        max_decodes=settings.max_num_seqs if settings.role.decodes else 0,
    )
    role = settings.role
    # A mixed worker gets no handoffs, so its pool may be in device memory.
    return LoadedRank(
        model,
        communicator,
        model_hash(folder),
        local_sender(settings, model, rank, host) if role is Role.PREFILL else None,
        local_receiver(settings, model, rank) if role is Role.DECODE else None,
    )


def load_leading_rank(settings: WorkerSettings, group: RankGroup | None) -> LoadedRank:
    """As `load_rank`, and returns when the other ranks are ready too. Raises ``Unavailable`` if
    they don't come, ``Incompatible`` if one has another model."""
    if group is None:
        return load_rank(settings, 0, settings.host, None)
    group.wait(group.joined, _JOIN_LIMIT_S)
    loaded = load_rank(settings, 0, settings.host, group.key_values)
    group.wait(group.ready, _READY_LIMIT_S)
    group.check_models(loaded.model_hash)
    return loaded


def make_service(
    settings: WorkerSettings, epoch: int, rank: LoadedRank, group: RankGroup | None
) -> Service:
    """The service of the settings' role on the leading ``rank``, not started yet."""
    model = rank.model
    layout = whole_layout(settings, model)
    identity = WorkerIdentity(settings.worker, epoch, rank.model_hash, layout, settings.shape)
    tokenizer = Tokenizer.load(Path(settings.model_folder))
    replica = make_replica(settings, model, group)
    costs = cost_model(model.config, settings.dtype)
    metrics = WorkerMetrics(settings, costs, peak_rates(settings, costs))
    if settings.role is Role.PREFILL:
        senders = _senders(rank, group)
        return PrefillService(settings, identity, model, tokenizer, replica, metrics, senders)
    receivers = _receivers(rank, group)
    return DecodeService(settings, identity, model, tokenizer, replica, metrics, receivers)


def _senders(rank: LoadedRank, group: RankGroup | None) -> list[RankSender]:
    assert rank.sender is not None
    others = [] if group is None else [RemoteRankSender(group, i) for i in group.ranks]
    return [rank.sender, *others]


def _receivers(rank: LoadedRank, group: RankGroup | None) -> list[RankReceiver]:
    """None of a mixed worker: it takes no handoffs."""
    if rank.receiver is None:
        return []
    others = [] if group is None else [RemoteRankReceiver(group, i) for i in group.ranks]
    return [rank.receiver, *others]


def make_replica(settings: WorkerSettings, model: LoadedModel, group: RankGroup | None) -> Replica:
    """All ranks together, seen from the leading one."""
    intervals = StepIntervals()
    execute = intervals.timed(model.runner.execute)

    def stats() -> worker_pb2.RankStats:
        return own_stats(RankSettings.of_leader(settings), intervals)

    if group is None:
        return Replica(LocalExecutor(execute), stats)
    executor = RankExecutor(
        group, settings.shape, execute, model.pool.generations, settings.block_size
    )
    return Replica(executor, stats, group)
