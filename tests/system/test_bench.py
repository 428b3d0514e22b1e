"""`crossdock bench` against a served cluster, over HTTP and over gRPC."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served_cluster import ServedCluster, served

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

LOAD = ("--rate", "4", "--duration", "2s", "--arrivals", "constant", "--seeds", "0,1",
        "--input-tokens", "20-200", "--output-tokens", "5-20")  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tiny_model: Path) -> Iterator[ServedCluster]:
    with served(tiny_model, 1, 1) as cluster:
        yield cluster


def bench(target: str, tokenizer: Path, records: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", "cluster.cli.main", "bench", "--target", target, *LOAD]
    command += ["--tokenizer", str(tokenizer), "--save", str(records), "--output", "json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.mark.parametrize("way", ["completions", "chat", "grpc"])
def test_the_report_agrees_with_the_records_and_the_cluster(
    way: str, cluster: ServedCluster, tiny_model: Path, tmp_path: Path
) -> None:
    before = decoded_tokens(cluster)
    target = f"grpc://{cluster.grpc_address}" if way == "grpc" else cluster.http_url
    options = () if way == "grpc" else ("--endpoint", way)
    report = bench(target, tiny_model, tmp_path / "records.jsonl", *options)
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    total = report["total"]
    assert (total["planned"], total["completed"], total["failed"]) == (16, 16, 0)
    assert total["errors"] == {}
    assert total["output_tokens"] == sum(line["usage"]["completion_tokens"] for line in lines)
    assert total["output_tokens"] == sum(line["wanted_output_tokens"] for line in lines)
    assert total["input_tokens"] == sum(line["usage"]["prompt_tokens"] for line in lines)
    assert total["input_tokens"] == sum(line["wanted_prompt_tokens"] for line in lines)
    assert sum(seed["output_tokens"] for seed in report["per_seed"]) == total["output_tokens"]
    for line in lines:
        assert line["planned_s"] <= line["sent_s"] <= line["chunk_times_s"][0]
        assert line["chunk_times_s"] == sorted(line["chunk_times_s"])
        assert line["chunk_times_s"][-1] <= line["ended_s"]
    # The cluster answered these and the one request before them, whose answer is not measured.
    assert decoded_tokens(cluster) - before >= total["output_tokens"] - total["completed"]


def decoded_tokens(cluster: ServedCluster) -> int:
    return sum(stats.decode_tokens for stats in cluster.stats("decode"))


def test_the_engine_alone_beside_the_cluster_that_serves_the_same_model(
    cluster: ServedCluster, tiny_model: Path
) -> None:
    sizes = ("--prompts", "20,300", "--batches", "1,3", "--contexts", "24", "--threads", "1")
    command = [sys.executable, "-P", "-m", "cluster.cli.main", "bench", "engine", "--quick", *sizes]
    command += ["--model", str(tiny_model), "--against", cluster.http_url, "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    report = json.loads(done.stdout)
    [engine], [server] = report["engine"], report["servers"]
    assert len(engine["cores"]) == engine["threads"] == 1
    assert engine["machine"]["read_bytes_per_s"] > 0
    assert engine["machine"]["flops_per_s"] > 0
    for side in (engine, server):
        assert [case["tokens"] for case in side["prefill"]] == [20, 300]
        assert [case["batch"] for case in side["decode"]] == [1, 3]
        for case in (*side["prefill"], *side["decode"]):
            assert case["timing"] is not None, case["failure"]
            assert case["timing"]["p10_s"] <= case["timing"]["p90_s"]
            assert len(case["times_as_fast"]) == 1
    for case in (*engine["prefill"], *engine["decode"]):
        assert case["share"] == case["floor_s"] / case["timing"]["median_s"]
    overhead = engine["overhead"]
    assert overhead["batch"] == 32
    assert 0 < overhead["outside_s"] < overhead["step_s"]
    # What the command cut off is gone from the server.
    cluster.assert_nothing_is_held()
