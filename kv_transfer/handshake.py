"""What two workers must have in common before a block may move, checked once per stream.

Nothing that the other side states is trusted before it was checked here: names and shapes are
bounded, and there are as many offers as ranks, and as many transports as edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import Incompatible, InvalidField
from core.kv_layout import PROTOCOL_VERSION, KVLayout
from core.shards import MAX_RANKS, ONE_RANK, ParallelShape, check_kv_split
from core.transfer_plan import EdgePlan, make_plan
from crossdock.v1 import handoff_pb2 as pb

# Far above any real replica: a plan of this many ranks on both sides is still made in no time.
_MAX_NAME = 256


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """Who a worker is in this life, how it is split, and what its blocks look like.

    ``layout``: blocks of the whole model.
    """

    worker: str
    epoch: int
    model_hash: int
    layout: KVLayout
    shape: ParallelShape = ONE_RANK


def hello(identity: WorkerIdentity, decode_epoch: int, offers: Sequence[pb.RankOffer]) -> pb.Hello:
    """P's first message on a stream. ``offers``: of its ranks, in their order."""
    return pb.Hello(
        protocol_version=PROTOCOL_VERSION,
        worker=identity.worker,
        epoch=identity.epoch,
        decode_epoch=decode_epoch,
        model_hash=identity.model_hash,
        layout_hash=identity.layout.layout_hash,
        dtype=identity.layout.dtype,
        block_size=identity.layout.block_size,
        tensor_parallel_size=identity.shape.tensor,
        pipeline_parallel_size=identity.shape.pipeline,
        ranks=offers,
    )


def hello_reply(identity: WorkerIdentity, transports: Sequence[str]) -> pb.HelloReply:
    """D's first message on a stream that it accepts. ``transports``: in the plan's order."""
    return pb.HelloReply(
        tensor_parallel_size=identity.shape.tensor,
        pipeline_parallel_size=identity.shape.pipeline,
        transports=transports,
    )


def refusal(reason: str) -> pb.HelloReply:
    return pb.HelloReply(refused=reason)


def find_difference(identity: WorkerIdentity, offered: pb.Hello) -> str:
    """Why D and P can't work together, by name; "" if they can."""
    if max(len(offered.worker), len(offered.dtype)) > _MAX_NAME:
        return f"name of the prefill worker or of its dtype: more than {_MAX_NAME} characters"
    layout = identity.layout
    pairs = [
        ("protocol version", PROTOCOL_VERSION, offered.protocol_version),
        ("epoch of the decode worker", identity.epoch, offered.decode_epoch),
        ("model", f"{identity.model_hash:016x}", f"{offered.model_hash:016x}"),
        ("dtype", layout.dtype, offered.dtype),
        ("block size", layout.block_size, offered.block_size),
        ("block layout", f"{layout.layout_hash:016x}", f"{offered.layout_hash:016x}"),
    ]
    differences = [
        f"{name}: {identity.worker} has {ours}, {offered.worker} has {theirs}"
        for name, ours, theirs in pairs
        if ours != theirs
    ]
    # With another layout or version, what is said about the split would mislead.
    return "; ".join(differences) or _find_wrong_split(layout, offered)


def stated_shape(message: pb.Hello | pb.HelloReply) -> ParallelShape:
    """As the other side says; to be checked."""
    return ParallelShape(message.tensor_parallel_size, message.pipeline_parallel_size)


def accepted_plan(identity: WorkerIdentity, reply: pb.HelloReply) -> tuple[EdgePlan, ...]:
    """The plan from P (``identity``) to the D that sent this reply.

    Raises `Incompatible` if D refused, or states what can't be.
    """
    if reply.refused:
        raise Incompatible(reply.refused, reason="HANDSHAKE_REFUSED")
    shape = stated_shape(reply)
    wrong = _find_wrong_shape(identity.layout, shape)
    plan = () if wrong else make_plan(identity.layout, identity.shape, shape)
    if not wrong and len(reply.transports) != len(plan):
        wrong = f"{len(reply.transports)} transports for {len(plan)} edges"
    if wrong:
        raise Incompatible(f"the decode worker states {wrong}", reason="HANDSHAKE_REFUSED")
    return plan


def _find_wrong_split(layout: KVLayout, offered: pb.Hello) -> str:
    shape = stated_shape(offered)
    wrong = _find_wrong_shape(layout, shape)
    if not wrong and len(offered.ranks) != shape.num_ranks:
        wrong = f"{len(offered.ranks)} offers for the {shape.num_ranks} ranks of shape {shape}"
    return f"{offered.worker} states {wrong}" if wrong else ""


def _find_wrong_shape(layout: KVLayout, shape: ParallelShape) -> str:
    if not 1 <= shape.num_ranks <= MAX_RANKS:
        return f"shape {shape}: must have 1 to {MAX_RANKS} ranks"
    try:
        check_kv_split(shape, layout.num_layers, layout.num_kv_heads)
    except InvalidField as error:
        return f"shape {shape}: {error.message}"
    return ""
