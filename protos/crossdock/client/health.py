"""Asks gRPC's health service (v1) whether requests can be served.

The package that has its messages would be one more dependency, and a second copy of them would
clash with it where both are installed. They have one field each, number 1, and so the same bytes
as protobuf's wrappers: HealthCheckRequest{service} as a string, HealthCheckResponse{status} as an
int (an enum on the wire).
"""

from __future__ import annotations

from typing import Any

from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from crossdock.v1 import inference_pb2 as pb

_SERVING = 1
REQUEST = StringValue(value=pb.DESCRIPTOR.services_by_name["Inference"].full_name)


def check(channel: Any) -> Any:
    """The unary call ``Check`` of a channel, of either kind."""
    return channel.unary_unary("/grpc.health.v1.Health/Check", **_CODEC)


def watch(channel: Any) -> Any:
    """The streaming call ``Watch`` of a channel, of either kind."""
    return channel.unary_stream("/grpc.health.v1.Health/Watch", **_CODEC)


def is_serving(response: Int32Value) -> bool:
    return response.value == _SERVING


_CODEC = {
    "request_serializer": StringValue.SerializeToString,
    "response_deserializer": Int32Value.FromString,
}
