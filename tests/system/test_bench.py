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
