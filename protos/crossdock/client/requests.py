"""Builds the messages that both clients send. Field names and types are those of the proto."""

from __future__ import annotations

import difflib
import secrets
import uuid
from collections.abc import Sequence
from typing import Any

from crossdock.v1 import inference_pb2 as pb

# The server's limit; the id of a retry stays below it.
MAX_REQUEST_ID_LENGTH = 128


def generate_request(
    text: str | None,
    token_ids: Sequence[int] | None,
    request_id: str,
    priority: int | None,
    sampling: dict[str, Any],
    by_ticket: bool = False,
) -> pb.GenerateRequest:
    """The message, with an id of its own if ``request_id`` is empty.

    Raises ValueError unless exactly one of ``text`` and ``token_ids`` is given or if a value does
    not fit its field, TypeError for a sampling field that there isn't.
    """
    if (text is None) == (token_ids is None):
        raise ValueError("give either text or token_ids")
    request = pb.GenerateRequest(
        request_id=request_id or uuid.uuid4().hex,
        sampling=sampling_params(sampling),
        by_ticket=by_ticket,
    )
    if priority is not None:
        _set(request, "priority", priority)
    if text is not None:
        _set(request, "text", text)
    else:
        _set(request.token_ids, "ids", token_ids or (), shown_as="token_ids")
        request.token_ids.SetInParent()  # An empty list is given, too: the server refuses it.
    return request


def sampling_params(sampling: dict[str, Any]) -> pb.SamplingParams:
    """``sampling`` by field name; None is "not set"; one string is a list of one."""
    params = pb.SamplingParams()
    fields = pb.SamplingParams.DESCRIPTOR.fields_by_name
    for name, value in sampling.items():
        if name not in fields:
            raise TypeError(_unknown(name, list(fields)))
        if value is None:
            continue
        listed = isinstance(value, str) and fields[name].is_repeated
        _set(params, name, [value] if listed else value)
    return params


def retry_id(request_id: str) -> str:
    """Another id for another try: the server keeps the first one taken for a minute."""
    suffix = f"~{secrets.token_hex(4)}"
    return request_id[: MAX_REQUEST_ID_LENGTH - len(suffix)] + suffix


def _set(message: Any, name: str, value: Any, shown_as: str = "") -> None:
    try:
        message.MergeFrom(type(message)(**{name: value}))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{shown_as or name} = {_shortened(value)}: {error}") from error


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
    return f"no sampling field {name!r}; {advice}"


def _shortened(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
