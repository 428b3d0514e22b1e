"""Profiles from a roofline: the numbers follow from the data sheet, nonsense is named."""

from __future__ import annotations

import json
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


OWN = (
    "hardware: {name: mine, flops: 1.0e+14, memory_bandwidth: 1.0e+12, memory: 24GB, "
    "link_bandwidth: 1.6e+10, network_bandwidth: 1.0e+9}\n"
    "model: {hidden_size: 2048, num_hidden_layers: 16, num_attention_heads: 32, "
    "num_key_value_heads: 8, head_dim: 64, intermediate_size: 8192, vocab_size: 128256, "
    "max_position_embeddings: 131072, tie_word_embeddings: true}\n"
    "shapes: ['1x1']\n"
)


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
        ("hardware: h100\nmodel: [llama]", "model", "nor a model folder"),
        ("hardware: h100\nmodel: {hidden: 64}", "model.hidden", "unknown entry; valid: name"),
        ("hardware: [h100]\nmodel: llama-3.1-8b", "hardware", "a built-in name, or a section"),
        ("hardware: {speed: 1}\nmodel: llama-3.1-8b", "hardware.speed", "unknown entry"),
        (OWN.replace("1.0e+14", ".inf"), "hardware.flops", "less than or equal to"),
        (OWN.replace("1.0e+14", "1.0e-300"), "hardware.flops", "greater than or equal to"),
        (OWN.replace("24GB", f"{'9' * 400}GB"), "hardware.memory", "must be a size"),
        (OWN.replace("24GB", "[24]"), "hardware.memory", "must be a size"),
        (OWN.replace("mine", "mine, step_s: .inf"), "hardware.step_s", "less than or equal to"),
        (OWN.replace("16,", f"{10**400},"), "num_hidden_layers", "less than or equal to"),
        (OWN.replace("8192", "8192, num_experts: 8"), "model", "belong together"),
        ("hardware: h100\nmodel: llama-3.1-8b\ndtype: [int4]", "dtype", "must be one of"),
        ("hardware: h100\nmodel: llama-3.1-8b\nshapes: [[x]]", "shapes", "TENSORxPIPELINE"),
        ("hardware: h100\nmodel: llama-3.1-8b\nshapes: ['0x1']", "shapes", "TENSORxPIPELINE"),
        ("hardware: h100\nmodel: llama-3.1-8b\nshapes: ['99x99']", "shapes", "at most 256"),
        ("hardware: h100\nmodel: llama-3.1-8b\nshapes: ['1x1', '3x1']", "shapes", "32 heads"),
        ("hardware: l40s\nmodel: llama-3.1-70b\nshapes: ['8x1', '1x1']", "shapes", "no room"),
        ("[" * 1000, "--from-spec", "nested too deeply"),
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
    path.write_text(OWN)
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


# As in the models' own config.json; billions of parameters in all, and of one token, as published.
MIXTURES = {
    "mixtral-8x7b": (
        {
            "hidden_size": 4096,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "intermediate_size": 14336,
            "vocab_size": 32000,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        *(46.7, 12.9),
    ),
    "qwen3-30b-a3b": (
        {
            "hidden_size": 2048,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "intermediate_size": 6144,
            "vocab_size": 151936,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
        *(30.5, 3.3),
    ),
    "qwen2-57b-a14b": (
        {
            "hidden_size": 3584,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "intermediate_size": 18944,
            "vocab_size": 151936,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 2560,
            "shared_expert_intermediate_size": 20480,
        },
        *(57.4, 14.2),
    ),
    "deepseek-moe-16b": (
        {
            "hidden_size": 2048,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "intermediate_size": 10944,
            "vocab_size": 102400,
            "n_routed_experts": 64,
            "num_experts_per_tok": 6,
            "moe_intermediate_size": 1408,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "moe_layer_freq": 1,
        },
        *(16.4, 2.8),
    ),
}


def folder_of(path: Path, **config: object) -> Path:
    (path / "config.json").write_text(json.dumps({"max_position_embeddings": 32768, **config}))
    return path


@pytest.mark.parametrize("name", MIXTURES)
def test_mixtures_of_experts_have_as_many_parameters_as_published(
    tmp_path: Path, name: str
) -> None:
    config, stored, active = MIXTURES[name]
    shape = read_model_shape(folder_of(tmp_path, **config))
    assert shape.stored_weights / 1e9 == pytest.approx(stored, rel=0.01)
    # Published without or with the rows of the vocabulary.
    of_token = shape.active_layer_weights / 1e9
    heads = 2 * shape.head_weights / 1e9
    assert of_token * 0.97 <= active <= (of_token + heads) * 1.03
    # A single token reads its own experts, a large batch all of them.
    assert shape.read_layer_weights(1) == pytest.approx(shape.active_layer_weights)
    assert shape.read_layer_weights(100_000) == pytest.approx(shape.layer_weights)
    dense = model_shape.BUILT_IN["llama-3.1-8b"]
    assert dense.read_layer_weights(1) == dense.layer_weights == dense.active_layer_weights


def test_a_batch_of_a_mixture_reads_more_experts_than_one_token(tmp_path: Path) -> None:
    config, *_ = MIXTURES["qwen3-30b-a3b"]
    shape = read_model_shape(folder_of(tmp_path, **config))
    step = modelled_profile(H100, shape, "bfloat16", TODAY).engine(ONE_RANK).step
    one, some, many = (step.rows.at(rows) / 1e15 - 1e-3 for rows in (1, 16, 256))
    read = (shape.active_layer_weights + shape.head_weights) * 2 / (3.35e12 * 0.75)
    assert one == pytest.approx(read, rel=0.05)
    # Of 128 experts 16 tokens choose 82 on average.
    assert 3 * one < some < many
    everything = (shape.layer_weights + shape.head_weights) * 2 / (3.35e12 * 0.75)
    assert many == pytest.approx(everything, rel=0.05)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"moe_num_experts": 64}, "moe_num_experts"),
        ({"num_experts": 16, "expert_layer_period": 2}, "expert_layer_period"),
        ({"kv_lora_rank": 512}, "kv_lora_rank"),
        ({"num_experts": 8, "moe_intermediate_size": 64}, "model"),
    ],
)
def test_mixtures_that_are_not_understood_are_refused(
    tmp_path: Path, config: dict[str, object], field: str
) -> None:
    sizes, *_ = MIXTURES["mixtral-8x7b"]
    left = {k: v for k, v in sizes.items() if k not in ("num_local_experts", "num_experts_per_tok")}
    with pytest.raises(InvalidField) as caught:
        read_model_shape(folder_of(tmp_path, **left, **config))
    assert caught.value.metadata["field"] == field


def test_some_layers_of_a_mixture_are_dense(tmp_path: Path) -> None:
    sizes, *_ = MIXTURES["qwen3-30b-a3b"]
    every_second_but_one = {"decoder_sparse_step": 2, "mlp_only_layers": [1, 2]}
    shape = read_model_shape(folder_of(tmp_path, **{**sizes, **every_second_but_one}))
    assert shape.num_moe_layers == 23
    all_listed = {"mlp_only_layers": list(range(48))}
    dense = read_model_shape(folder_of(tmp_path, **{**sizes, **all_listed}))
    assert dense.num_moe_layers == dense.num_experts == 0
    assert dense.layer_weights == dense.active_layer_weights
