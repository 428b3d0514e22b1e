"""What the client makes of its arguments: everything that the proto has, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor

from crossdock.client import Client
from crossdock.client.answers import AnswerBuilder
from crossdock.client.errors import ServerError
from crossdock.client.requests import generate_request, retry_id, sampling_params
from crossdock.v1 import inference_pb2 as pb

FIELDS = list(pb.SamplingParams.DESCRIPTOR.fields)


def sample_of(field: FieldDescriptor) -> Any:
    """A value that a field can hold and that is not its default."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {7: 2.0}
    one: Any = {
        FieldDescriptor.CPPTYPE_STRING: "word",
        FieldDescriptor.CPPTYPE_BOOL: True,
        FieldDescriptor.CPPTYPE_DOUBLE: 0.5,
        FieldDescriptor.CPPTYPE_FLOAT: 0.5,
    }.get(field.cpp_type, 3)
    return [one] if field.is_repeated else one


def request(text: str | None = None, token_ids: Any = None, **sampling: Any) -> pb.GenerateRequest:
    return generate_request(text, token_ids, "", None, sampling)


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.name)
def test_every_field_of_the_proto_is_a_keyword(field: FieldDescriptor) -> None:
    value = sample_of(field)
    params = sampling_params({field.name: value})
    assert params == pb.SamplingParams(**{field.name: value})
    assert params != pb.SamplingParams()
    assert sampling_params({field.name: None}) == pb.SamplingParams()


def test_one_stop_string_is_a_list_of_one() -> None:
    assert list(sampling_params({"stop": "END"}).stop) == ["END"]


def test_zero_is_not_the_same_as_not_set() -> None:
    assert sampling_params({"temperature": 0}).HasField("temperature")
    assert not sampling_params({}).HasField("temperature")


def test_an_unknown_field_is_refused_with_the_nearest_one_before_anything_is_sent() -> None:
    with (
        Client("127.0.0.1:1") as client,
        pytest.raises(TypeError, match="'temprature'; did you mean 'temperature'"),
    ):
        client.generate("x", temprature=1)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({}, "either text or token_ids"),
        ({"text": "a", "token_ids": [1]}, "either text or token_ids"),
        ({"text": "a\ud800"}, "text = "),
        ({"token_ids": [-1]}, r"token_ids = \[-1\]"),
        ({"token_ids": [2**32]}, "token_ids = "),
        ({"token_ids": [1] * 500 + [2**40]}, "token_ids = .{60,80}…"),
        ({"text": "a", "max_tokens": 2**40}, "max_tokens = 1099511627776"),
        ({"text": "a", "temperature": "hot"}, "temperature = 'hot'"),
    ],
)
def test_values_that_no_message_can_hold_are_named(arguments: Any, shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        request(**arguments)


def test_empty_inputs_are_given_inputs() -> None:
    assert request("").WhichOneof("input") == "text"
    assert request(token_ids=[]).WhichOneof("input") == "token_ids"


def test_a_request_has_an_id_and_a_retry_another_one() -> None:
    assert request("a").request_id != request("a").request_id
    named = generate_request("a", None, "mine", 3, {})
    assert (named.request_id, named.priority) == ("mine", 3)
    first, second = retry_id("mine"), retry_id("mine")
    assert first.startswith("mine~")
    assert first != second
    assert len(retry_id("x" * 128)) == 128


def chunk(index: int, text: str, *token_ids: int) -> pb.GenerateResponse:
    return pb.GenerateResponse(index=index, chunk=pb.Chunk(token_ids=token_ids, text=text))


def complete(index: int, reason: str, tokens: int) -> pb.GenerateResponse:
    end = pb.Complete(
        finish_reason=reason, prompt_tokens=5, completion_tokens=tokens, cached_tokens=4
    )
    return pb.GenerateResponse(index=index, complete=end)


def test_sequences_come_interleaved_and_leave_by_index() -> None:
    builder = AnswerBuilder(2)
    for response in (
        chunk(1, "b", 20),
        chunk(0, "a", 10, 11),
        complete(1, "length", 1),
        chunk(0, "c", 12),
        complete(0, "stop", 3),
    ):
        builder.add(response)
    answer = builder.build("id")
    first, second = answer.outputs
    assert (first.index, first.text, first.token_ids) == (0, "ac", [10, 11, 12])
    assert (second.index, second.text, second.token_ids) == (1, "b", [20])
    assert [output.finish_reason for output in answer.outputs] == ["stop", "length"]
    assert (answer.text, answer.token_ids) == ("ac", [10, 11, 12])
    assert (answer.prompt_tokens, answer.cached_tokens, answer.completion_tokens) == (5, 4, 4)


@pytest.mark.parametrize(
    "responses",
    [[], [chunk(0, "a", 1)], [complete(0, "stop", 1)]],
    ids=["nothing", "no end", "one of two"],
)
def test_a_stream_that_ends_early_is_no_answer(responses: list[pb.GenerateResponse]) -> None:
    builder = AnswerBuilder(2)
    for response in responses:
        builder.add(response)
    with pytest.raises(ServerError, match="INCOMPLETE_ANSWER"):
        builder.build("id")
