"""What the measuring process does, on a tiny shape: all of it but the calls into CUDA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cluster.engine_bench import child
from cluster.engine_bench.cases import Cases
from cluster.engine_bench.child import ChildTask
from cluster.engine_bench.device_rates import RateSizes, measure_device_rates
from cluster.engine_bench.results import EngineResult
from cluster.engine_bench.roofline import MachineRates, ModelWork
from cluster.gpu import require_gpu
from core.errors import InvalidField
from engine.model_config import read_model_config
from engine.random_weights import random_weights
from engine.weight_shapes import expected_shapes

SHAPE_8B = Path(__file__).parents[1] / "benchmarks" / "llama-3.1-8b"
TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 200,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The config.json of the 8B shape with smaller numbers, and nothing else."""
    config = json.loads((SHAPE_8B / "config.json").read_text()) | TINY
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture
def measured(folder: Path, monkeypatch: pytest.MonkeyPatch) -> EngineResult:
    monkeypatch.setattr(child, "_rates", lambda task, config: MachineRates(1e9, 1e12, "", ""))
    cases = Cases(prompts=(40,), batches=(1, 3), contexts=(32, 80), runs=2, steps=4, chunk=16)
    return child.measure(ChildTask(str(folder), "float32", "cpu", True, 1, (0,), cases))


def test_a_folder_without_weights_is_measured_with_random_ones(measured: EngineResult) -> None:
    assert [(one.context, one.batch) for one in measured.decode] == [
        (32, 1), (32, 3), (80, 1), (80, 3),
    ]  # fmt: skip
    timed = [one.timing for one in (*measured.prefill, *measured.decode)]
    assert all(timing is not None and timing.median_s > 0 for timing in timed)
    assert measured.overhead is None


def test_the_floor_is_weights_and_kv_over_the_bandwidth(
    measured: EngineResult, folder: Path
) -> None:
    config = read_model_config(folder)
    weights = 4 * sum(
        torch.Size(shape).numel()
        for name, shape in expected_shapes(config).items()
        if len(shape) == 2 and "embed" not in name
    )
    last = measured.decode[-1]
    # K and V of 2 layers, 2 heads of 16 numbers.
    kv = 3 * last.mean_context * 2 * 2 * 2 * 16 * 4
    assert last.floor_s == pytest.approx((weights + kv) / 1e9)


def test_the_8b_shape_is_that_of_eight_billion() -> None:
    config = read_model_config(SHAPE_8B)
    assert sum(torch.Size(s).numel() for s in expected_shapes(config).values()) == 8_030_261_248
    assert ModelWork(config, 2).weight_bytes == pytest.approx(15.0e9, rel=1e-2)


def test_random_weights_depend_on_the_seed_alone(folder: Path) -> None:
    config = read_model_config(folder)
    one, same, other = (
        random_weights(config, torch.bfloat16, "cpu", seed=seed) for seed in (3, 3, 4)
    )
    assert {name: weight.shape for name, weight in one.items()} == expected_shapes(config)
    assert all(torch.equal(weight, same[name]) for name, weight in one.items())
    matrices = [name for name, weight in one.items() if weight.ndim == 2]
    assert not any(torch.equal(one[name], other[name]) for name in matrices)


def test_rates_of_a_device() -> None:
    rates = measure_device_rates(torch.bfloat16, torch.device("cpu"), RateSizes(1 << 20, 64))
    assert rates.read_bytes_per_s > 1e6
    assert rates.flops_per_s > 1e6
    assert rates.read_by == "a copy of 1 MiB, read and written"


def test_a_gpu_that_is_not_there_is_named() -> None:
    if torch.cuda.is_available():
        require_gpu("engine.device")
        return
    with pytest.raises(InvalidField, match=r"engine\.device = 'cuda': torch .* choose cpu"):
        require_gpu("engine.device")
