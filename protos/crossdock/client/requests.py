"""Builds the messages that both clients send."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from crossdock.v1 import inference_pb2 as pb

CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.max_send_message_length", 16 * 1024 * 1024),
)


def generate_request(
    text: str | None,
    token_ids: Sequence[int] | None,
    request_id: str,
    sampling: dict[str, Any],
) -> pb.GenerateRequest:
    """Raises ValueError unless exactly one of ``text`` and ``token_ids`` is given."""
    if (text is None) == (token_ids is None):
        raise ValueError("give either text or token_ids")
    request = pb.GenerateRequest(request_id=request_id, sampling=pb.SamplingParams(**sampling))
    if text is not None:
        request.text = text
    else:
        request.token_ids.ids.extend(token_ids or ())
        request.token_ids.SetInParent()
    return request
