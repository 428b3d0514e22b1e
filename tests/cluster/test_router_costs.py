"""What a router predicts by: a measured profile of the served model, or rough times."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.model_folder import ModelFolder, read_model_shape
from cluster.router_costs import router_costs
from core.config import make_spec
from core.errors import Incompatible, InvalidField
from core.latency_profile import StepWork
from tuner.profile.hardware import BUILT_IN
from tuner.profile.model_shape import read_model_shape as read_sizes
from tuner.profile.modelled import modelled_profile
from tuner.profile.profile_file import write_profile

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 1000,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "dtype": "float32",
}
PROMPT = StepWork(rows=200, sampled=0, prefill_pairs=20_100, decodes=0, decode_context=0)


@pytest.fixture
def model(tmp_path: Path) -> ModelFolder:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return read_model_shape(folder)


@pytest.fixture
def profile(model: ModelFolder, tmp_path: Path) -> Path:
    sizes = read_sizes(model.path)
    path = tmp_path / "profile.json"
    write_profile(modelled_profile(BUILT_IN["l4"], sizes, "float32", "2026-11-22T00:00:00"), path)
    return path


def test_a_profile_gives_the_times_of_its_shapes(model: ModelFolder, profile: Path) -> None:
    pools = {"prefill": {"tensor_parallel_size": 2}, "decode": {"max_num_batched_tokens": 96}}
    engine = {"device": "cuda", "dtype": "float32"}
    spec = make_spec({"engine": engine, "pools": pools, "router": {"profile": str(profile)}})
    costs = router_costs(spec, model)
    assert costs.decode.max_num_batched_tokens == 96
    assert costs.prefill.max_num_batched_tokens == 2048
    assert costs.prefill.step.time(PROMPT) != costs.decode.step.time(PROMPT)
    assert costs.transfer.per_token > 0


def test_a_profile_of_another_model_is_refused_by_name(
    model: ModelFolder, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tuner.profile.profile_file import read_profile

    measured = replace(read_profile(profile), model_hash="0123456789abcdef", model="other-7b")
    write_profile(measured, profile)
    monkeypatch.setattr("cluster.router_costs.model_hash", lambda folder: 1)
    spec = make_spec({"router": {"profile": str(profile)}})
    with pytest.raises(Incompatible, match=r"of other-7b .*, not of tiny"):
        router_costs(spec, model)


def test_a_profile_that_is_not_there_is_refused(model: ModelFolder, tmp_path: Path) -> None:
    spec = make_spec({"router": {"profile": str(tmp_path / "gone.json")}})
    with pytest.raises(InvalidField, match="can't be read"):
        router_costs(spec, model)


def test_without_one_a_rough_guess_follows_the_model_and_the_device(model: ModelFolder) -> None:
    on_cpu, on_gpu = (
        router_costs(make_spec({"engine": {"device": device}}), model) for device in ("cpu", "cuda")
    )
    assert on_cpu.decode.step.time(PROMPT) > on_gpu.decode.step.time(PROMPT) > 0
    peak = {"flops": 1e9, "memory_bandwidth": 1e9}
    slow = router_costs(make_spec({"engine": {"peak": peak}}), model)
    assert slow.prefill.step.time(PROMPT) > on_cpu.prefill.step.time(PROMPT)
    threads = router_costs(make_spec({"engine": {"threads": 8}}), model)
    assert threads.prefill.step.time(PROMPT) < on_cpu.prefill.step.time(PROMPT)
