"""What `crossdock simulate` tells: cost, hit rate, and the pools over time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cluster.cli.main import new_app
from core.errors import CrossdockError, InvalidField
from tuner.profile import hardware, model_shape
from tuner.profile.modelled import modelled_profile
from tuner.profile.profile_file import write_profile

# Chats that share a system prompt and repeat what was said.
TRAFFIC = """\
rate: 1
duration: 20s
prompts: [{tokens: 200-1500}]
answers: 10-40
system_prompts: {tokens: 512, count: 1}
turns: 2-3
pause: 3s
"""
PRICES = "pools: {prefill: {gpu_hour_price: 0.5}, decode: {gpu_hour_price: 1.5}}\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulate")
    (folder / "traffic.yaml").write_text(TRAFFIC)
    (folder / "prices.yaml").write_text(PRICES)
    profile = modelled_profile(
        hardware.BUILT_IN["l4"], model_shape.BUILT_IN["llama-3.1-8b"], "bfloat16", "2026-11-21"
    )
    write_profile(profile, folder / "l4.json")
    return folder


def run(folder: Path, *options: object) -> str:
    args = ["simulate", folder / "traffic.yaml", "--profile", folder / "l4.json", *options]
    result = CliRunner().invoke(new_app(), [str(arg) for arg in args])
    if isinstance(result.exception, CrossdockError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def told(folder: Path, *options: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(folder, *options, "--output", "json"))
    return found


def test_queues_and_pools_are_told_over_time(folder: Path) -> None:
    found = told(folder, "--prefill", 1, "--decode", 2)
    assert [pool["role"] for pool in found["pools_over_time"]] == ["prefill", "decode"]
    for pool, summary in zip(found["pools_over_time"], found["summary"]["pools"], strict=True):
        moments = len(pool["at_s"])
        assert moments > 50
        parts = [part for name in ("waiting", "running", "used_blocks") for part in pool[name]]
        assert parts == ["mean", "most"] * 3
        for name in ("busy", "waiting", "running", "used_blocks"):
            assert {len(values) for values in pool[name].values()} == {moments}
        assert max(pool["waiting"]["most"]) == summary["waiting_max"]
        assert 0 < max(pool["busy"]["mean"]) <= 1
    assert found["summary"]["hit_rate"] > 0.2


def test_cost_is_that_of_all_pools_in_use(folder: Path) -> None:
    prices = ("--config", folder / "prices.yaml")
    split = told(folder, *prices, "--prefill", 2, "--decode", 1)
    assert split["hour_price"] == pytest.approx(2 * 0.5 + 1.5)
    tokens_per_s = split["summary"]["output_tokens_per_s"]
    by_hand = 2.5 / (3600 * tokens_per_s) * 1e6
    assert split["cost_per_million_tokens"] == pytest.approx(by_hand)
    assert told(folder, *prices, "--prefill", 0, "--decode", 1)["hour_price"] == 1.5
    assert f"{by_hand:.3f}" in run(folder, *prices, "--prefill", 2, "--decode", 1)


def test_without_prices_there_is_no_cost_and_the_text_says_why(folder: Path) -> None:
    found = told(folder)
    assert found["hour_price"] is found["cost_per_million_tokens"] is None
    text = run(folder)
    assert "the config has no gpu_hour_price" in text
    for words in ("prompt tokens from cache", "waiting mean", "busy", "KV transfers under way"):
        assert words in text


def test_goodput_goes_by_the_limits_of_the_config_unless_others_are_stated(folder: Path) -> None:
    (folder / "slo.yaml").write_text("slo: {ttft: 2.5, tpot: 0.02}\n")
    slo = told(folder, "--config", folder / "slo.yaml", "--slo-tpot", "70ms")["slo"]
    assert slo == {"ttft_s": 2.5, "tpot_s": 0.07}


def test_a_picture_that_can_not_be_written_costs_no_simulation(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.cli.simulate_run.simulate", None)
    with pytest.raises(InvalidField, match=r"--plot.*can't be written"):
        run(folder, "--plot", "/proc/picture.png")
