"""Who may join a replica, and when all its ranks are there and ready. Pure.

Every rank is told the settings of its replica by whoever starts it; a rank that was told others
is refused by name. Does not cover: whether it knows the token (``worker.ranks.handshake``).
"""

from __future__ import annotations

from core.errors import Incompatible
from core.shards import ParallelShape
from core.worker_settings import WorkerSettings
from crossdock.v1 import rank_pb2 as pb


def join_message(settings: WorkerSettings, rank: int) -> pb.JoinReplica:
    """What rank ``rank`` of the replica with these settings says first."""
    return pb.JoinReplica(
        rank=rank,
        worker=settings.worker,
        tensor_parallel_size=settings.shape.tensor,
        pipeline_parallel_size=settings.shape.pipeline,
        num_blocks=settings.num_blocks,
        block_size=settings.block_size,
        dtype=settings.dtype,
    )


class Membership:
    """Ranks 1 to n - 1 of one replica: who has joined, with which model."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._joined: set[int] = set()
        self._model_hashes: dict[int, int] = {}

    @property
    def shape(self) -> ParallelShape:
        return self._settings.shape

    @property
    def all_joined(self) -> bool:
        return len(self._joined) == self.shape.num_ranks - 1

    @property
    def all_ready(self) -> bool:
        return len(self._model_hashes) == self.shape.num_ranks - 1

    @property
    def missing(self) -> list[int]:
        """Ranks that have not joined."""
        return sorted(set(range(1, self.shape.num_ranks)) - self._joined)

    def join(self, message: pb.JoinReplica) -> None:
        """Raises ``Incompatible`` for a rank of another replica, or one that is there already."""
        expected = join_message(self._settings, message.rank)
        differing = [
            f"{field.name}: {getattr(expected, field.name)!r} here, "
            f"{getattr(message, field.name)!r} there"
            for field in pb.JoinReplica.DESCRIPTOR.fields
            if getattr(expected, field.name) != getattr(message, field.name)
        ]
        if differing:
            raise _refused(message.rank, "; ".join(differing))
        if message.rank not in self.missing:
            raise _refused(message.rank, f"ranks {self.missing or 'none'} are awaited")
        self._joined.add(message.rank)

    def ready(self, rank: int, model_hash: int) -> None:
        self._model_hashes[rank] = model_hash

    def check_models(self, model_hash: int) -> None:
        """Raises ``Incompatible`` if a rank has loaded another model than the leader."""
        for rank, other in sorted(self._model_hashes.items()):
            if other != model_hash:
                detail = f"model: {model_hash:016x} here, {other:016x} there"
                raise _refused(rank, detail)


def _refused(rank: int, detail: str) -> Incompatible:
    return Incompatible(
        f"rank {rank} can't join this replica: {detail}",
        reason="RANK_REFUSED",
        metadata={"rank": str(rank)},
    )
