"""What two workers must have in common before a block may move, checked once per stream."""

from __future__ import annotations

from dataclasses import dataclass

from core.kv_layout import PROTOCOL_VERSION, KVLayout
from crossdock.v1 import handoff_pb2 as pb
from kv_transfer.offers import Offer


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """Who a worker is in this life, and what its blocks look like."""

    worker: str
    epoch: int
    model_hash: int
    layout: KVLayout


def hello(identity: WorkerIdentity, decode_epoch: int, offer: Offer) -> pb.Hello:
    """P's first message on a stream."""
    return pb.Hello(
        protocol_version=PROTOCOL_VERSION,
        worker=identity.worker,
        epoch=identity.epoch,
        decode_epoch=decode_epoch,
        model_hash=identity.model_hash,
        layout_hash=identity.layout.layout_hash,
        dtype=identity.layout.dtype,
        block_size=identity.layout.block_size,
        transports=offer.transports,
        shm=offer.shm,
        tcp=offer.tcp,
    )


def find_difference(identity: WorkerIdentity, offered: pb.Hello) -> str:
    """Why these two can't work together, by name; "" if they can."""
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
    return "; ".join(differences)
