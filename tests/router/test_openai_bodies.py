"""Bodies of the OpenAI door: each bad one is refused by field, value and limit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amounts import examples
from core.errors import InvalidField
from router.doors.json_bodies import read_object
from router.doors.openai_bodies import ChatBody, CompletionBody, parse
from router.doors.tokenize_door import TokenizeBody
from router.intake.model_info import ModelInfo
from router.intake.validation import resolve_sampling, room_for_answer

MODEL = ModelInfo("m", vocab_size=300, max_model_len=128, eos_token_ids=(1,))
CHAT = [{"role": "user", "content": "hi"}]


def completion(**fields: Any) -> CompletionBody:
    body = parse(CompletionBody, json.dumps({"prompt": "hi", **fields}).encode())
    body.check()
    return body


def chat(**fields: Any) -> ChatBody:
    body = parse(ChatBody, json.dumps({"messages": CHAT, **fields}).encode())
    body.check()
    return body


def refusal(call: Any, **fields: Any) -> InvalidField:
    def use() -> None:
        body = call(**fields)
        body.sampling()
        body.prompts()

    with pytest.raises(InvalidField) as caught:
        use()
    return caught.value


@pytest.mark.parametrize(
    ("raw", "field", "said"),
    [
        (b"", "body", "an empty body"),
        (b"{nope", "body", "'{nope': is not JSON: Expecting property name .*line 1, column 2"),
        (b'{"a": 1,}', "body", "line 1, column 9"),
        (b'{"a": [1, 2}', "body", "column 12"),
        (b"[1]", "body", "must be a JSON object"),
        (b'{"a": NaN}', "body", "NaN"),
        (b'{"a": -Infinity}', "body", "-Infinity"),
        (b'{"a": "\xff"}', "body", "byte 0xff at offset 7.*UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "body", "UTF-8"),
        (b'{"n": 1, "n": 2}', "n", "more than once"),
        (b'{"x": {"k": 1, "k": 1}}', "k", "more than once"),
        (b'{"a": ' + b"[" * 100_000, "body", "at most 1000 levels"),
        (b'{"a": ' + b'{"a":' * 50_000, "body", "at most 1000 levels"),
        (b'{"a": [' + b"{}," * 100_000, "body", "at most 100000"),
        (b'{"n": ' + b"9" * 5000 + b"}", "body", "at most 4300 digits"),
        (b'{"prompt": "a\\ud800b"}', "prompt", r"'a\\ud800b'.*surrogate.*character 1"),
        (b'{"m": [{"c": "\\udc00"}]}', "m.0.c", "surrogate"),
        (b'{"m": {"\\ud800": 1}}', "m", "surrogate"),
    ],
)
def test_what_is_not_proper_json_is_named(raw: bytes, field: str, said: str) -> None:
    with pytest.raises(InvalidField, match=said) as caught:
        read_object(raw)
    assert caught.value.field == field


def test_escaped_pairs_of_surrogates_are_characters() -> None:
    assert read_object(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"prompt": None}, "prompt", "None"),
        ({"prompt": 5}, "prompt", "5"),
        ({"prompt": [5, "a"]}, "prompt.1", "'a'"),
        ({"prompt": [5, True]}, "prompt.1", "True"),
        ({"prompt": ["a", 5]}, "prompt.1", "5"),
        ({"prompt": [[5], [1.5]]}, "prompt.1.0", "1.5"),
        ({"prompt": [[[5]]]}, "prompt.0.0", "token id"),
        ({"prompt": ["a"] * 65}, "prompt", "65 prompts.*at most 64"),
        ({"temperature": "hot"}, "temperature", "'hot'"),
        ({"temperature": "0.5"}, "temperature", "valid number"),
        ({"temperature": True}, "temperature", "True"),
        ({"max_tokens": 1.5}, "max_tokens", "1.5"),
        ({"max_tokens": "5"}, "max_tokens", "valid integer"),
        ({"stream": "yes"}, "stream", "'yes'"),
        ({"stream": 1}, "stream", "valid boolean"),
        ({"model": 5}, "model", "5"),
        ({"stop": 5}, "stop", "5"),
        ({"stop": ["a", 5]}, "stop.1", "5"),
        ({"logprobs": True}, "logprobs", "True"),
        ({"logit_bias": [1]}, "logit_bias", "dictionary"),
        ({"logit_bias": {"abc": 1}}, "logit_bias", "'abc'.*token id"),
        ({"logit_bias": {"-5": 1}}, "logit_bias", "'-5'"),
        ({"logit_bias": {"05": 1}}, "logit_bias", "'05'"),
        ({"logit_bias": {"9" * 5000: 1}}, "logit_bias", "token id"),
        ({"logit_bias": {"5": "x"}}, "logit_bias.5", "'x'"),
        ({"stream_options": {"x": 1}, "stream": True}, "stream_options.x", "1"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream: true"),
        (
            {"stream": True, "stream_options": {"continuous_usage_stats": True}},
            "stream_options.continuous_usage_stats",
            "include_usage",
        ),
        ({"best_of": 2}, "best_of", "only if it equals n"),
        ({"best_of": 1, "n": 2}, "best_of", "only if it equals n"),
        ({"echo": True}, "echo", "not served"),
        ({"suffix": "end"}, "suffix", "not served"),
        ({"what_is_this": 1}, "what_is_this", "not served"),
        ({"what_is_this": [[[[[[[[1]]]]]]]] * 9}, "what_is_this", r"\.\.\."),
    ],
)
def test_bad_completions_are_refused_by_name(fields: dict[str, Any], field: str, said: str) -> None:
    error = refusal(completion, **fields)
    assert error.field == field
    assert pytest.raises(InvalidField, match=said).matches(error)


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "hi"}, "messages", "'hi'"),
        ({"messages": [{"content": "x"}]}, "messages.0.role", "must be set"),
        ({"messages": [{"role": 5}]}, "messages.0.role", "5"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content", "5"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.type",
            "'image_url'",
        ),
        ({"tools": [{"type": "f"}]}, "tools", "not served"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not served"),
        ({"logprobs": 1}, "logprobs", "valid boolean"),
        ({"top_logprobs": 2}, "top_logprobs", "goes only with logprobs: true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "between 0 and 20"),
        ({"logprobs": True, "top_logprobs": -1}, "top_logprobs", "between 0 and 20"),
    ],
)
def test_bad_chats_are_refused_by_name(fields: dict[str, Any], field: str, said: str) -> None:
    error = refusal(chat, **fields)
    assert error.field == field
    assert pytest.raises(InvalidField, match=said).matches(error)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
json_values = (
    scalars
    | st.lists(scalars, max_size=3)
    | st.lists(st.lists(scalars, max_size=2), max_size=2)
    | st.dictionaries(st.text(max_size=3), scalars, max_size=2)
    | st.lists(st.dictionaries(st.sampled_from(["role", "content"]), scalars), max_size=2)
)
fields_of_bodies = st.one_of(
    st.tuples(st.just(kind), st.sampled_from(sorted(kind.model_fields)))
    for kind in (CompletionBody, ChatBody)
)


@given(field=fields_of_bodies, value=json_values)
@settings(max_examples=examples(300), deadline=None)
def test_whatever_a_field_holds_it_is_taken_or_refused_by_its_name(
    field: tuple[type[CompletionBody] | type[ChatBody], str], value: Any
) -> None:
    kind, name = field
    required = {"prompt": "hi"} if kind is CompletionBody else {"messages": CHAT}
    error = refused(kind, json.dumps({**required, name: value}).encode())
    if error is not None:
        top, *_ = error.field.split(".")
        assert top == name or (top == "body" and "no such number" in error.fix)


def refused(kind: type[CompletionBody] | type[ChatBody], raw: bytes) -> InvalidField | None:
    try:
        body = parse(kind, raw)
        body.check()
        asked = body.sampling()
        room = room_for_answer(1, asked, MODEL, None, 16)
        resolve_sampling(asked, room, random_seed=0, vocab_size=300)
    except InvalidField as error:
        return error
    return None


def test_limits_of_the_answer_are_named_as_the_client_wrote_them() -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        for value in (0, 1000):
            with pytest.raises(InvalidField, match=rf"{name} = {value}: .*127"):
                room_for_answer(1, chat(**{name: value}).sampling(), MODEL, None, 16)


def test_a_missing_field_is_not_shown_as_the_whole_body() -> None:
    with pytest.raises(InvalidField, match="prompt = None: must be set"):
        parse(CompletionBody, b'{"model": "tiny"}')


def test_prompts_in_all_four_forms() -> None:
    assert completion(prompt="a").prompts() == {"prompt": "a"}
    assert completion(prompt=[5, 6]).prompts() == {"prompt": [5, 6]}
    assert completion(prompt=["a", "b"]).prompts() == {"prompt.0": "a", "prompt.1": "b"}
    mixed = completion(prompt=[[5], [6, 7], "c"]).prompts()
    assert mixed == {"prompt.0": [5], "prompt.1": [6, 7], "prompt.2": "c"}
    assert completion(prompt=[]).prompts() == {"prompt": []}


def test_null_is_not_set_everywhere() -> None:
    names = ("stream", "stop", "n", "logit_bias", "logprobs", "best_of", "seed", "suffix")
    assert completion(**dict.fromkeys(names)).sampling() == completion().sampling()


def test_fields_that_change_nothing_here_are_accepted() -> None:
    completion(user="me", best_of=1, echo=False, suffix="")
    chat(store=False, metadata={"a": "b"}, top_logprobs=0, tool_choice="none", service_tier="auto")


def test_the_newer_name_of_max_tokens_counts() -> None:
    assert chat(max_tokens=3, max_completion_tokens=5).sampling().max_tokens == 5
    assert chat(max_tokens=3).sampling().max_tokens == 3


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    [message] = chat(messages=[{"role": "user", "content": parts}]).prompts()["prompt"].messages
    assert message == {"role": "user", "content": "ab"}


def test_tokenizing_takes_a_prompt_or_messages() -> None:
    for fields in ({}, {"prompt": "a", "messages": CHAT}):
        with pytest.raises(InvalidField, match="either prompt or messages"):
            parse(TokenizeBody, json.dumps(fields).encode()).content()
