"""What came of copies and which transports edges took, to and from rank.proto."""

from __future__ import annotations

from crossdock.v1 import rank_pb2 as pb
from kv_transfer.rank_ports import EdgeChoice, EdgeTraffic, RankCopied


def edge_to_wire(edge: EdgeChoice) -> pb.OpenedEdge:
    return pb.OpenedEdge(
        source=edge.source,
        destination=edge.destination,
        transport=edge.transport,
        detail=edge.detail,
    )


def edge_from_wire(edge: pb.OpenedEdge) -> EdgeChoice:
    return EdgeChoice(edge.source, edge.destination, edge.transport, edge.detail)


def copied_to_wire(copied: RankCopied) -> pb.CopiedBlocks:
    return pb.CopiedBlocks(
        good=copied.good,
        bad=copied.bad,
        traffic=[_traffic_to_wire(traffic) for traffic in copied.traffic],
        lost=copied.lost,
    )


def copied_from_wire(copied: pb.CopiedBlocks) -> RankCopied:
    traffic = tuple(_traffic_from_wire(traffic) for traffic in copied.traffic)
    return RankCopied(tuple(copied.good), tuple(copied.bad), traffic, copied.lost)


def _traffic_to_wire(traffic: EdgeTraffic) -> pb.EdgeTraffic:
    return pb.EdgeTraffic(
        source=traffic.source,
        destination=traffic.destination,
        blocks=traffic.blocks,
        damaged=traffic.damaged,
        bytes=traffic.bytes,
        seconds=traffic.seconds,
    )


def _traffic_from_wire(traffic: pb.EdgeTraffic) -> EdgeTraffic:
    return EdgeTraffic(
        traffic.source,
        traffic.destination,
        traffic.blocks,
        traffic.damaged,
        traffic.bytes,
        traffic.seconds,
    )
