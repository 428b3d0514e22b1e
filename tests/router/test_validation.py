"""Defaults, limits, and refusals that name field, value and fix."""

from typing import Any

import numpy as np
import pytest

from core.errors import InvalidField
from core.tenants import Tenant
from router.intake.model_info import ModelInfo
from router.intake.validation import (
    AskedSampling,
    check_answers,
    check_request_id,
    checked_tokens,
    resolve_priority,
    resolve_sampling,
    room_for_answer,
)

MODEL = ModelInfo("m", vocab_size=300, max_model_len=128, eos_token_ids=(1,))


def resolve(**fields: Any) -> Any:
    return resolve_sampling(AskedSampling(**fields), room=50, random_seed=9, vocab_size=300)


def test_defaults() -> None:
    params = resolve()
    assert (params.max_tokens, params.temperature, params.top_p) == (50, 1.0, 1.0)
    assert (params.top_k, params.min_p, params.min_tokens, params.seed) == (0, 0.0, 0, 9)


def test_zero_is_a_value_and_not_a_default() -> None:
    assert resolve(temperature=0.0).greedy
    assert resolve(seed=0).seed == 0
    with pytest.raises(InvalidField, match="max_tokens = 0"):
        resolve(max_tokens=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", 2.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 1.5),
        ("min_tokens", 51),
        ("seed", -1),
        ("stop", ("",)),
        ("stop", tuple("abcdefghijklmnopq")),
        ("stop_token_ids", (300,)),
        ("stop_token_ids", tuple(range(65))),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 2.1),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", float("nan")),
        ("presence_penalty", float("inf")),
        ("frequency_penalty", -2.1),
        ("n", 0),
        ("n", 129),
        ("n", -(10**30)),
        ("logprobs", -1),
        ("logprobs", 21),
        ("logit_bias", ((300, 1.0),)),
        ("logit_bias", ((2**32 - 1, 1.0),)),
        ("logit_bias", ((5, 100.1),)),
        ("logit_bias", ((5, float("nan")),)),
        ("logit_bias", tuple((5, 1.0) for _ in range(301))),
    ],
)
def test_values_out_of_range_are_named(field: str, value: object) -> None:
    with pytest.raises(InvalidField) as caught:
        resolve(**{field: value})
    assert caught.value.field == field
    assert caught.value.fix


@pytest.mark.parametrize(("field", "high"), [("top_p", 1), ("repetition_penalty", 2)])
@pytest.mark.parametrize("value", [-1.0, 0.0, 2.5, float("nan")])
def test_limits_that_leave_zero_out_say_so(field: str, high: int, value: float) -> None:
    with pytest.raises(InvalidField) as caught:
        resolve(**{field: value})
    assert caught.value.fix == f"must be above 0 and at most {high}"


def test_all_sampling_fields_pass_through() -> None:
    asked = {
        "n": 4,
        "logprobs": 0,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": ((5, -100.0), (7, 1.5)),
    }
    params = resolve(**asked)
    assert {name: getattr(params, name) for name in asked} == asked


def test_a_request_may_ask_for_a_later_class_than_its_tenants() -> None:
    tenant = Tenant("batch", priority=2)
    assert resolve_priority(AskedSampling(), tenant) == 2
    assert resolve_priority(AskedSampling(priority=9), tenant) == 9
    for priority in (1, 10, -1):
        with pytest.raises(InvalidField, match="served first"):
            resolve_priority(AskedSampling(priority=priority), tenant)


def test_more_answers_than_a_worker_runs_are_refused_with_the_limit() -> None:
    check_answers(8, 8)
    check_answers(100, None)
    with pytest.raises(InvalidField, match=r"n = 9: at most 8"):
        check_answers(9, 8)


def room(prompt: int, max_tokens: int | None = None, blocks: int | None = None) -> int:
    return room_for_answer(prompt, AskedSampling(max_tokens=max_tokens), MODEL, blocks, 16)


def test_the_answer_may_take_what_the_context_leaves() -> None:
    assert room(100) == 28
    assert room(100, 28, 1000) == 28


def test_a_default_length_gives_way_to_the_room_that_is_left() -> None:
    assert resolve(default_max_tokens=16).max_tokens == 16
    assert resolve(default_max_tokens=1000).max_tokens == 50
    assert resolve(max_tokens=3, default_max_tokens=16).max_tokens == 3


def test_more_than_the_context_is_refused_with_value_and_limit() -> None:
    with pytest.raises(InvalidField, match=r"max_tokens = 29: must be 1 to 28, .*in 128"):
        room(100, 29)
    with pytest.raises(InvalidField, match=r"prompt = '128 tokens': .*128 \(max_model_len"):
        room(128)


def test_the_decode_pool_limits_as_well() -> None:
    assert room(20, blocks=4) == 44
    with pytest.raises(InvalidField, match="largest decode worker"):
        room(20, 45, blocks=4)


@pytest.mark.parametrize(
    ("tokens", "shown"),
    [
        ([], "''"),
        ([300], "300"),
        ([-1], "-1"),
        ([5, 1000, 2], "1000"),
        ([5, 2**32 - 1], "4294967295"),
        ([-(2**31) - 1, 5], "-2147483649"),
        ([5, 2**70], str(2**70)),
    ],
)
def test_tokens_outside_the_vocabulary_are_shown_as_they_came(
    tokens: list[int], shown: str
) -> None:
    with pytest.raises(InvalidField) as caught:
        checked_tokens(tokens, 300, "prompt")
    assert caught.value.metadata["value"] == shown


def test_tokens_become_an_array() -> None:
    tokens = checked_tokens([5, 299, 0], 300, "prompt")
    assert (tokens.dtype, tokens.tolist()) == (np.int32, [5, 299, 0])


def test_request_ids_are_short_and_printable() -> None:
    check_request_id("")
    check_request_id("a" * 128)
    for bad in ("a" * 129, "a\nb"):
        with pytest.raises(InvalidField, match="request_id"):
            check_request_id(bad)
