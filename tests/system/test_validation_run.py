"""A real cluster under the traffic that was simulated. Says nothing of how good predictions are:
the profile is made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.code_digest import code_digest
from cluster.profiling.machine import hardware_name, usable_cores
from cluster.progress import StderrProgress
from cluster.validation.kept_runs import read_run
from cluster.validation.run import Configuration, OfferedLoad, Validation, shares_cores, validate
from core.config import make_spec
from core.latency_profile import (
    EngineProfile,
    LatencyProfile,
    Origin,
    RowCurve,
    StepModel,
    TransferModel,
    TransferProfile,
)
from core.shards import ONE_RANK
from tuner.load.metrics import Slo
from tuner.simulate.synthetic import Description, draw_requests

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

MILLISECOND = 10**12
STEP = StepModel(RowCurve(((0, MILLISECOND), (256, 9 * MILLISECOND))), 0, 0, 0)
SECONDS = 2.0


def made_up_profile() -> LatencyProfile:
    return LatencyProfile(
        origin=Origin.MEASURED,
        hardware=hardware_name("cpu"),
        model="tiny",
        model_hash="",
        dtype="float32",
        created="2026-11-21",
        max_positions=2048,
        weight_bytes=1,
        kv_bytes_per_token=512,
        message_s=1e-3,
        request_s=1e-3,
        engines=tuple(EngineProfile(ONE_RANK, 1, share, STEP, 100_000) for share in (1.0, 0.5)),
        transfers=(TransferProfile("shm", ONE_RANK, ONE_RANK, TransferModel(1, 1)),),
        cores=len(usable_cores()),
    )


def test_a_cluster_is_served_and_measured_and_what_was_measured_is_kept(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec({"model": str(tiny_model), "engine": {"threads": 1}})
    description = Description.model_validate(
        {"rate": 6, "duration": SECONDS, "prompts": [{"tokens": "20-300"}], "answers": "5-20"}
    )
    trace = draw_requests(description, "short")
    validation = Validation(
        configurations=(Configuration("1P:1D", spec),),
        loads=(OfferedLoad("short", 6.0, trace),),
        profile=made_up_profile(),
        slo=Slo(60.0, 60.0),
        records=tmp_path,
        replicates=2,
    )
    [case] = validate(validation, StderrProgress())
    assert (case.configuration, case.traffic, case.rate) == ("1P:1D", "short", 6.0)
    assert case.shares_cores is shares_cores(spec)
    assert case.predicted.share == case.measured.share == 1.0
    assert case.predicted.goodput == pytest.approx(case.measured.goodput)
    assert case.measured.ttft_p50_s is not None
    assert case.measured.ttft_p50_s > 0
    assert set(case.likely) == {
        *("ttft_p50_s", "ttft_p90_s", "tpot_p50_s", "tpot_p90_s", "goodput", "share")
    }
    path = validation.kept_path(validation.configurations[0], validation.loads[0])
    assert path is not None
    assert path.name.startswith("1P-1D-short-6-")
    header, *records = [json.loads(line) for line in path.read_text().splitlines()]
    assert header["code"] == code_digest()
    assert [r["usage"]["prompt_tokens"] for r in records] == trace.prompt_tokens.tolist()
    assert [r["usage"]["completion_tokens"] for r in records] == trace.output_tokens.tolist()
    kept = read_run(path, trace.duration_s)
    assert kept is not None
    assert [record.as_json() for record in kept.run.records] == [
        {**r, "chunk_times_s": tuple(r["chunk_times_s"]), "chunk_tokens": tuple(r["chunk_tokens"])}
        for r in records
    ]
    # What is there is compared again, without a cluster.
    monkeypatch.setattr("cluster.validation.run.served", None)
    assert validate(validation, StderrProgress()) == (case,)
