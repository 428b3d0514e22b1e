"""Profiles from a roofline: the numbers follow from the data sheet, nonsense is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import InvalidField
from core.latency_profile import Origin, StepWork, chunk_pairs
from core.shards import ONE_RANK, ParallelShape
from tuner.profile import hardware, model_shape
from tuner.profile.model_shape import read_model_shape
from tuner.profile.modelled import Roofline, modelled_profile
from tuner.profile.spec_file import profile_from_spec

H100 = hardware.BUILT_IN["h100"]
LLAMA_8B = model_shape.BUILT_IN["llama-3.1-8b"]
LLAMA_70B = model_shape.BUILT_IN["llama-3.1-70b"]
TODAY = "2026-11-21"


def seconds(work: StepWork, shape: ParallelShape = ONE_RANK) -> float:
    return Roofline(H100, LLAMA_8B, 2).step(shape).time(work) / 1e15


def decode_of(batch: int, context: int) -> StepWork:
    return StepWork(batch, batch, 0, batch, batch * context)


def test_shapes_have_the_known_number_of_weights() -> None:
    assert LLAMA_8B.stored_weights == pytest.approx(8.03e9, rel=0.01)
    assert LLAMA_70B.stored_weights == pytest.approx(70.6e9, rel=0.01)
    assert model_shape.BUILT_IN["smollm2-135m"].stored_weights == pytest.approx(134.5e6, rel=0.01)


def test_one_decoding_sequence_takes_the_time_to_read_the_weights() -> None:
    reading = (LLAMA_8B.layer_weights + LLAMA_8B.head_weights) * 2 / (3.35e12 * 0.75)
    assert seconds(decode_of(1, 1)) == pytest.approx(reading + H100.step_s, rel=0.02)


def test_a_long_prompt_takes_the_time_of_its_arithmetic() -> None:
    products = 2 * 8192 * LLAMA_8B.layer_weights / (989e12 * 0.6)
    attention = 4 * 32 * 32 * 128 * chunk_pairs(0, 8192) / (989e12 * 0.4)
    prompt = StepWork(8192, 1, chunk_pairs(0, 8192), 0, 0)
    assert seconds(prompt) == pytest.approx(products + attention + H100.step_s, rel=0.1)


def test_context_costs_the_reading_of_its_keys_and_values() -> None:
    more = seconds(decode_of(32, 4000)) - seconds(decode_of(32, 2000))
    assert more == pytest.approx(32 * 2000 * 131072 / (3.35e12 * 0.75), rel=0.01)


def test_tensor_parallel_is_faster_by_less_than_the_number_of_ranks() -> None:
    one, four = seconds(decode_of(8, 1000)), seconds(decode_of(8, 1000), ParallelShape(4, 1))
    assert one / 4 < four < one


def test_shapes_that_cannot_hold_the_model_are_left_out() -> None:
    profile = modelled_profile(H100, LLAMA_70B, "bfloat16", TODAY)
    assert profile.origin is Origin.MODELLED
    assert ONE_RANK not in {engine.shape for engine in profile.engines}
    assert profile.engine(ParallelShape(4, 1)).kv_tokens == pytest.approx(448e3, rel=0.05)
    assert all(engine.kv_tokens > 0 for engine in profile.engines)
    assert len(profile.transfers) == len(profile.engines) ** 2


def test_no_shape_at_all_is_refused_with_every_reason() -> None:
    shapes = (ONE_RANK, ParallelShape(3, 1))
    with pytest.raises(InvalidField, match=r"1×1: 141 GB of weights .* 3×1: 64 heads"):
        modelled_profile(H100, LLAMA_70B, "bfloat16", TODAY, shapes)


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("hardware: h999\nmodel: llama-3.1-8b", "hardware", "known: a100"),
        ("model: llama-3.1-8b", "hardware", "is missing"),
        ("hardware: h100\nmodel: nothing", "model", "nor a model folder"),
        ("hardware: h100\nmodel: llama-3.1-8b\ndtype: int4", "dtype", "must be one of"),
        ("hardware: h100\nmodel: llama-3.1-8b\nshapes: [2]", "shapes", "TENSORxPIPELINE"),
        ("hardware: h100\nmodel: llama-3.1-8b\nshapes: []", "shapes", "must be a list"),
        ("hardware: h100\nmodel: llama-3.1-8b\nspeed: 1", "speed", "unknown entry"),
        ("hardware: {name: x}\nmodel: llama-3.1-8b", "hardware.flops", "required"),
        ("hardware: h100\nmodel: {hidden_size: 64}", "num_hidden_layers", "required"),
        ("- 1", "--from-spec", "must hold"),
        ("a: [", "--from-spec", "is not YAML"),
    ],
)
def test_a_bad_spec_names_the_entry(tmp_path: Path, text: str, field: str, words: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(InvalidField, match=words) as caught:
        profile_from_spec(path, TODAY)
    assert caught.value.metadata["field"] == field


def test_own_hardware_and_model_by_numbers(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        "hardware: {name: mine, flops: 1.0e+14, memory_bandwidth: 1.0e+12, memory: 24GB, "
        "link_bandwidth: 1.6e+10, network_bandwidth: 1.0e+9}\n"
        "model: {hidden_size: 2048, num_hidden_layers: 16, num_attention_heads: 32, "
        "num_key_value_heads: 8, head_dim: 64, intermediate_size: 8192, vocab_size: 128256, "
        "max_position_embeddings: 131072, tie_word_embeddings: true}\n"
        "shapes: ['1x1']\n"
    )
    profile = profile_from_spec(path, TODAY)
    assert (profile.hardware, profile.model) == ("mine", "custom")
    assert [engine.shape for engine in profile.engines] == [ONE_RANK]


def test_a_model_folder_gives_the_same_sizes(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, '
        '"num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152, '
        '"max_position_embeddings": 8192, "tie_word_embeddings": true}'
    )
    shape = read_model_shape(tmp_path)
    assert shape.model_copy(update={"name": "smollm2-135m"}) == model_shape.BUILT_IN["smollm2-135m"]
