"""`crossdock simulate` and `crossdock tune` as commands: what they print, write and refuse."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli.main import new_app
from cluster.cli.tune_run import TuneOptions, read_question
from core.config import ClusterSpec
from core.errors import CrossdockError, InvalidField
from core.latency_profile import EngineProfile, RowCurve, StepModel
from core.shards import ONE_RANK
from tuner.load.metrics import Slo
from tuner.profile import hardware, model_shape
from tuner.profile.modelled import modelled_profile
from tuner.profile.profile_file import read_profile, write_profile
from tuner.search.space import Limits
from tuner.search.tune import bounded_candidates

TRAFFIC = """\
rate: 4
duration: 20s
prompts: [{tokens: 200-1500}]
answers: 10-40
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile and traffic for it."""
    folder = tmp_path_factory.mktemp("tune")
    (folder / "traffic.yaml").write_text(TRAFFIC)
    profile = modelled_profile(
        hardware.BUILT_IN["l4"], model_shape.BUILT_IN["llama-3.1-8b"], "bfloat16", "2026-11-21"
    )
    write_profile(profile, folder / "l4.json")
    return folder


def run(*args: object) -> str:
    """stdout; raises what the command raises."""
    result = CliRunner().invoke(new_app(), [str(arg) for arg in args], catch_exceptions=True)
    if isinstance(result.exception, CrossdockError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.thorough
def test_simulate_says_what_the_cluster_would_do(folder: Path) -> None:
    options = ("--profile", folder / "l4.json", "--prefill", 1, "--decode", 2)
    pictures = folder / "sim.html"
    command = ("simulate", folder / "traffic.yaml", *options, "--plot", pictures)
    told = json.loads(run(*command, "--output", "json"))
    summary = told["summary"]
    assert told["profile_origin"] == "modelled"
    assert summary["completed"] == summary["requests"] > 40
    assert summary["ttft_s"]["p50"] > 0
    assert {pool["role"] for pool in summary["pools"]} == {"prefill", "decode"}
    assert "<svg" in pictures.read_text()
    again = json.loads(run(*command, "--output", "json"))
    assert told == again
    assert "goodput requests/s" in run(*command)


def test_a_higher_rate_is_answered_later(folder: Path) -> None:
    def ttft(rate: float) -> float:
        command = ("simulate", folder / "traffic.yaml", "--profile", folder / "l4.json")
        told = json.loads(run(*command, "--rate", rate, "--output", "json"))
        return float(told["summary"]["ttft_s"]["p90"])

    assert ttft(0.5) < ttft(50)


def test_workers_on_one_host_need_a_profile_of_its_cores(folder: Path) -> None:
    command = ("simulate", folder / "traffic.yaml", "--profile", folder / "l4.json", "--one-host")
    with pytest.raises(InvalidField, match="measured on CPU cores"):
        run(*command)


@pytest.mark.thorough
def test_three_workers_on_two_cores_are_slower_than_on_three(folder: Path) -> None:
    step = StepModel(RowCurve(((0, 10**13), (256, 10**14))), 0, 0, 0)
    twice = StepModel(RowCurve(((0, 2 * 10**13), (256, 2 * 10**14))), 0, 0, 0)
    profile = replace(
        read_profile(folder / "l4.json"),
        device="cpu",
        engines=(
            EngineProfile(ONE_RANK, 1, 1.0, step, 10_000),
            EngineProfile(ONE_RANK, 1, 0.5, twice, 10_000, company=2),
        ),
        cores=2,
    )
    write_profile(profile, folder / "cpu.json")
    (folder / "shared.yaml").write_text("engine: {threads: 1}\npools: {prefill: {replicas: 2}}\n")

    def tpot(*options: str) -> float:
        command = ("simulate", folder / "traffic.yaml", "--profile", folder / "cpu.json")
        config = ("--config", folder / "shared.yaml", "--rate", 1, "--output", "json")
        return float(json.loads(run(*command, *config, *options))["summary"]["tpot_s"]["p50"])

    assert tpot() < tpot("--one-host") < 2 * tpot()


@pytest.mark.thorough
def test_tune_answers_and_writes_a_cluster_that_loads(folder: Path) -> None:
    command = ("tune", folder / "traffic.yaml", "--profile", folder / "l4.json", "--gpus", 3)
    slo = ("--ttft", "4s", "--tpot", "150ms")
    told = json.loads(
        run(*command, *slo, "--out", folder, "--plot", folder / "t.png", "--output", "json")
    )
    verdict = told["verdict"]
    assert verdict["winner"]["rate"] > 0
    assert verdict["winner"]["gpus"] <= 3
    assert any(candidate["colocated"] for candidate in told["candidates"])
    spec = ClusterSpec.model_validate(yaml.safe_load((folder / "cluster.yaml").read_text()))
    values = yaml.safe_load((folder / "values.yaml").read_text())
    assert ClusterSpec.model_validate(values["cluster"]) == spec
    winner = verdict["winner"]["pools"]
    assert spec.pools.decode.replicas == winner[-1]["replicas"]
    assert (folder / "t.png").stat().st_size > 10_000
    assert not list(folder.glob("*.part"))


@pytest.mark.thorough
def test_tune_for_a_rate_takes_no_more_than_it_needs(folder: Path) -> None:
    command = ("tune", folder / "traffic.yaml", "--gpus", "l4:4", "--model", "llama-3.1-8b")
    slo = ("--ttft", "4s", "--tpot", "150ms", "--gpu-hour-price", "l4=0.8")
    told = json.loads(run(*command, *slo, "--rate", 0.3, "--output", "json"))
    assert told["verdict"]["winner"]["gpus"] == 1
    assert told["verdict"]["winner"]["hour_price"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        pytest.param(
            ("--ttft", "10ms", "--tpot", "150ms"),
            "meets TTFT 0.01 s and TPOT 150 ms",
            marks=pytest.mark.thorough,
        ),
        (("--ttft", "4s", "--tpot", "1ms"), "meets TTFT 4 s and TPOT 1 ms"),
        pytest.param(
            ("--ttft", "4s", "--tpot", "1ms", "--rate", 3),
            "requests at 3 requests/s",
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_an_slo_that_nobody_meets_names_the_nearest(
    folder: Path, tmp_path: Path, options: tuple[object, ...], told: str
) -> None:
    command = ("tune", folder / "traffic.yaml", "--profile", folder / "l4.json", "--gpus", 2)
    result = CliRunner().invoke(
        new_app(), [str(a) for a in (*command, *options, "--out", tmp_path)]
    )
    assert result.exit_code == 1, result.output
    assert "no cluster of these GPUs" in result.stdout
    assert told in result.stdout
    assert "nearest: " in result.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "field"),
    [
        ((), "--gpus"),
        (("--gpus", "h999:3"), "--gpus"),
        (("--gpus", "0"), "--gpus"),
        (("--gpus", "many"), "--gpus"),
        (("--gpus", "2", "--prefill-gpus", "1"), "--gpus"),
        (("--prefill-gpus", "1"), "--gpus"),
        (("--gpus", "2", "--percentile", "0"), "--percentile"),
        (("--gpus", "2", "--percentile", "nan"), "--percentile"),
        (("--gpus", "2", "--ttft", "soon"), "--ttft"),
        (("--gpus", "2", "--tpot", "-1"), "--tpot"),
        (("--gpus", "2", "--rate", "-1"), "--rate"),
        (("--gpus", "2", "--gpu-hour-price", "cheap"), "--gpu-hour-price"),
        (("--gpus", "2", "--plot", "x.gif"), "--plot"),
        (("--gpus", "2", "--plot", "/nowhere/x.png"), "--plot"),
        (("--gpus", "2", "--out", "/nowhere/x"), "--out"),
        (("--gpus", "l4:2"), "--gpus"),
        (("--gpus", "65", "--rate", "1"), "gpus"),
        (("--gpus", "2", "--decode-profile", "x.json"), "--decode-profile"),
        (("--gpus", "2", "--decode-nodes", "zone=a"), "--decode-nodes"),
        (
            ("--prefill-gpus", "1", "--decode-gpus", "1", "--prefill-nodes", "zone: a"),
            "--prefill-nodes",
        ),
        (
            ("--prefill-gpus", "1", "--decode-gpus", "1", "--decode-nodes", "zone=a,"),
            "--decode-nodes",
        ),
        (("--gpus", "1025"), "--gpus"),
        (("--gpus", "2", "--gpu-hour-price", "l40=2"), "--gpu-hour-price"),
        (("--gpus", "2", "--profile", "/nowhere/x.json"), "profile"),
        (("--gpus", "2", "--config", "/nowhere/x.yaml"), "config"),
    ],
)
def test_bad_options_are_refused_by_name(folder: Path, args: tuple[str, ...], field: str) -> None:
    command = ("tune", folder / "traffic.yaml", "--profile", folder / "l4.json")
    with pytest.raises(InvalidField) as caught:
        run(*command, *args)
    assert caught.value.metadata["field"] == field


@pytest.mark.thorough
def test_a_rate_that_nobody_serves_names_the_nearest(folder: Path) -> None:
    command = ("tune", folder / "traffic.yaml", "--profile", folder / "l4.json", "--gpus", 1)
    slo = ("--ttft", "4s", "--tpot", "150ms", "--rate", 50)
    result = CliRunner().invoke(new_app(), [str(a) for a in (*command, *slo)])
    assert result.exit_code == 1, result.output
    assert "at 50 requests/s" in result.stdout
    assert "nearest: colocated 1" in result.stdout


def test_prompts_that_nothing_can_hold(folder: Path) -> None:
    (folder / "long.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9,9000000,10\n"
    )
    with pytest.raises(InvalidField, match=r"9000010.*at most 131072 tokens"):
        run("tune", folder / "long.csv", "--profile", folder / "l4.json", "--gpus", 2)


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
MOONCAKE = '{"timestamp": 0, "input_length": %s, "output_length": 5, "hash_ids": [1]}\n'


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        (
            "t.csv",
            "TIMESTAMP,ContextTokens\n2023-11-16 18:17:03.9,10\n",
            "no column GeneratedTokens",
        ),
        ("t.csv", AZURE + "2023-11-16 18:17:03.9,-5,10\n", "have 0 tokens or more"),
        ("t.csv", AZURE + "2023-11-16 18:17:03.9,five,10\n", "line 2"),
        ("t.csv", AZURE + "2023-11-16 18:17:04,5,9\n2023-11-16 18:17:03,5,9\n", "line 3.*sort"),
        ("t.csv", AZURE, "holds no request"),
        ("t.csv", "", "is empty"),
        ("t.csv", AZURE + "2023-11-16 18:17:03.9,99999999999999999999,1\n", "no request has more"),
        ("t.jsonl", '{"timestamp": 0, "input_length": 10}\n', "output_length"),
        ("t.jsonl", MOONCAKE % -10, "have 0 tokens or more"),
        ("t.jsonl", MOONCAKE % "NaN", "line 1"),
        ("t.jsonl", "", "is empty"),
        ("t.yaml", "rate: 4\n", "duration"),
        ("t.yaml", TRAFFIC.replace("rate: 4", "rate: -4"), "rate = -4"),
        ("t.yaml", TRAFFIC.replace("200-1500", "200--5"), "tokens"),
    ],
)
@pytest.mark.parametrize("command", ["tune", "simulate"])
def test_bad_traffic_is_refused_and_nothing_is_written(
    folder: Path, tmp_path: Path, command: str, name: str, content: str, told: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / name).write_text(content)
    files = ("--plot", out / "t.png", *(("--gpus", 2, "--out", out) if command == "tune" else ()))
    with pytest.raises(InvalidField, match=told):
        run(command, tmp_path / name, "--profile", folder / "l4.json", *files)
    assert not list(out.iterdir())


@pytest.mark.parametrize("count", [1, 3])
def test_requests_at_one_moment_have_no_rate_to_tune_for(folder: Path, count: int) -> None:
    """They are refused before anything is computed; simulated as they are they can be."""
    trace, profile = folder / "burst.csv", ("--profile", folder / "l4.json")
    trace.write_text(AZURE + count * "2023-11-16 18:17:03.9,900,10\n")
    with pytest.raises(InvalidField, match=r"^TRACE = 'burst\.csv'.* at one moment"):
        bounded_candidates(read_question(TuneOptions(trace, gpus="l4:2", model="llama-3.1-8b"))[0])
    with pytest.raises(InvalidField, match=r"^rate = 2\.0: burst\.csv has all"):
        run("simulate", trace, *profile, "--rate", 2)
    assert f"{count} request" in run("simulate", trace, *profile)


def test_a_model_that_these_gpus_can_not_hold(folder: Path) -> None:
    command = ("tune", folder / "traffic.yaml", "--model", "llama-3.1-70b")
    with pytest.raises(InvalidField, match=r"gpus = 2: a replica of llama-3\.1-70b.* takes \d+"):
        run(*command, "--gpus", "l4:2")


def test_a_model_that_nobody_knows(folder: Path) -> None:
    with pytest.raises(InvalidField, match=r"--model = 'mine'.*llama-3\.1-8b.*no model folder"):
        run("tune", folder / "traffic.yaml", "--model", "mine", "--gpus", "l4:2")


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (
            "pools: {decode: {max_num_batched_tokens: 8, max_num_seqs: 16}}",
            "pools.decode.max_num_batched_tokens",
        ),
        ("pools: {decode: {replicas: 5000}}", "pools.decode.replicas"),
        ("pools: {decode: {max_num_seq: 5}}", "pools.decode.max_num_seq"),
        ("kv: {memory: 1KiB}", "TRACE"),
        ("kv: {num_blocks: 10}", "TRACE"),
        ("kv: {num_blocks: 100000000}", "TRACE"),
        ("max_model_len: 10", "max_model_len"),
    ],
)
def test_configs_that_serve_nothing(folder: Path, tmp_path: Path, config: str, field: str) -> None:
    (tmp_path / "c.yaml").write_text(config)
    command = ("tune", folder / "traffic.yaml", "--profile", folder / "l4.json", "--gpus", 2)
    with pytest.raises(InvalidField) as caught:
        run(*command, "--config", tmp_path / "c.yaml")
    assert caught.value.metadata["field"] == field


def test_the_cluster_that_is_written_promises_the_limits_it_was_tuned_for(folder: Path) -> None:
    options = TuneOptions(
        trace=folder / "traffic.yaml", gpus="h100:1", model="llama-3.1-8b", ttft="3s", tpot="20ms"
    )
    base = read_question(options)[0].base
    assert (base.slo.ttft, base.slo.tpot) == (3.0, 0.02)


def test_limits_that_are_not_stated_are_those_of_the_config(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("slo: {ttft: 3, tpot: 0.02}\n")
    trace, config = folder / "traffic.yaml", tmp_path / "c.yaml"
    options = TuneOptions(trace, gpus="h100:1", model="llama-3.1-8b", tpot="30ms", config=config)
    assert read_question(options)[0].goal.slo == Slo(3.0, 0.03)


def test_a_search_begins_with_the_limits_and_prices_of_the_config(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(
        "pools:\n"
        "  prefill: {max_num_batched_tokens: 1024, gpu_hour_price: 3}\n"
        "  decode: {max_num_seqs: 48, gpu_hour_price: 2}\n"
    )
    question, _ = read_question(
        TuneOptions(
            trace=folder / "traffic.yaml",
            prefill_gpus="h100:1",
            decode_gpus="l40s:1",
            model="llama-3.1-8b",
            config=tmp_path / "c.yaml",
        )
    )
    assert question.prefill_limits == Limits(256, 1024)
    assert question.limits == Limits(48, 2048)
    assert [kind.hour_price for kind in question.budget.kinds] == [3.0, 2.0]
    names = {str(candidate) for candidate, _ in bounded_candidates(question)}
    assert names == {
        "1P:1D, tp 1/tp 1",
        "colocated 1 h100, tp 1",
        "colocated 1 l40s, tp 1",
        "colocated 1 h100+1 l40s, tp 1/tp 1",
    }


@pytest.mark.parametrize(
    ("args", "field"),
    [
        (("--validate",), "--profile"),
        (("--configurations", "2"), "--configurations"),
        (("--rates", "1"), "--rates"),
        (("--replay-time", "10s"), "--replay-time"),
        (("--records", "."), "--records"),
        (("--validate", "--rates", "fast"), "--rates"),
        (("--validate", "--rates", "0"), "--rates"),
        (("--validate", "--replay-time", "-1"), "--replay-time"),
    ],
)
def test_bad_options_of_validation_are_refused_by_name(
    folder: Path, args: tuple[str, ...], field: str
) -> None:
    """The profile is modelled: it says nothing of this machine."""
    command = ("tune", folder / "traffic.yaml", "--profile", folder / "l4.json", "--gpus", "2")
    with pytest.raises(InvalidField) as caught:
        run(*command, *args)
    assert caught.value.metadata["field"] == field


def test_clusters_of_two_kinds_of_hardware_are_not_validated(folder: Path) -> None:
    pools = ("--prefill-gpus", "l4:1", "--decode-gpus", "l40s:1", "--model", "llama-3.1-8b")
    with pytest.raises(InvalidField, match="use --gpus"):
        run("tune", folder / "traffic.yaml", *pools, "--validate")
