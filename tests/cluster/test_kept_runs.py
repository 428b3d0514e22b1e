"""Measured runs are found again by what they are of, and only by that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.validation.kept_runs import RunKey, keep_run, read_run
from core.config import make_spec
from core.errors import InvalidField
from tuner.load.metrics import RunResult
from tuner.load.records import RequestRecord, Usage
from tuner.profile import hardware, model_shape
from tuner.profile.modelled import modelled_profile
from tuner.simulate.requests import RequestTrace

TRACE = RequestTrace(
    "chats",
    np.array([0.0, 0.3, 1.1]),
    np.array([20, 30, 40], dtype=np.int32),
    np.array([5, 6, 7], dtype=np.int32),
    [np.array(ids, dtype=np.int32) for ids in ([1], [1, 2], [])],
    part_tokens=8,
)
PROFILE = modelled_profile(
    hardware.BUILT_IN["l4"], model_shape.BUILT_IN["llama-3.1-8b"], "bfloat16", "2026-11-21"
)
KEY = RunKey("1P:1D short 2", make_spec({"model": "tiny"}), TRACE, PROFILE)


def test_the_same_run_is_found_again(tmp_path: Path) -> None:
    again = RunKey(
        KEY.name, make_spec({"model": "tiny"}), TRACE.at_rate(1).at_rate(TRACE.rate), PROFILE
    )
    assert again.path(tmp_path) == KEY.path(tmp_path)
    newer = replace(PROFILE, created="2026-11-22", message_s=0.5)
    assert replace(KEY, profile=newer).path(tmp_path) == KEY.path(tmp_path)


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, spec=make_spec({"model": "tiny", "engine": {"threads": 2}})),
        replace(KEY, spec=make_spec({"model": "tiny", "pools": {"prefill": {"replicas": 2}}})),
        replace(KEY, trace=TRACE.at_rate(3.0)),
        replace(KEY, trace=TRACE.first(2)),
        replace(KEY, trace=replace(TRACE, output_tokens=TRACE.output_tokens + 1)),
        replace(KEY, trace=replace(TRACE, prompt_tokens=TRACE.prompt_tokens + 1)),
        replace(KEY, trace=replace(TRACE, shared=[*TRACE.shared[:2], TRACE.shared[0]])),
        replace(KEY, trace=replace(TRACE, part_tokens=16)),
        replace(KEY, profile=replace(PROFILE, model_hash="f00")),
        replace(KEY, profile=replace(PROFILE, hardware="another machine")),
    ],
    ids=lambda key: "",
)
def test_another_run_is_another_file(other: RunKey, tmp_path: Path) -> None:
    """All have the same name."""
    assert other.path(tmp_path) != KEY.path(tmp_path)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "x" * 500, "", "2P:1D, tp 1/1 +\n"])
def test_every_name_makes_a_file_of_the_folder(name: str, tmp_path: Path) -> None:
    path = replace(KEY, name=name).path(tmp_path)
    assert path.parent == tmp_path
    keep_run(RunResult(0, (), 1.0, 1.0), path)
    assert path.exists()


def test_a_kept_run_is_the_run(tmp_path: Path) -> None:
    path = KEY.path(tmp_path)
    assert read_run(path, 2.0) is None
    records = (
        RequestRecord(0, 0, 0.0, 20, 2, 0.01, 0.5, (0.3, 0.5), (1, 1), Usage(20, 2)),
        RequestRecord(0, 1, 0.3, 30, 6, 0.31, 0.4, error="TIMEOUT", detail="too late"),
    )
    keep_run(RunResult(0, records, 2.0, 0.5), path)
    assert read_run(path, 2.0) == RunResult(0, records, 2.0, 0.5)
    path.write_text("{")
    with pytest.raises(InvalidField, match="delete it"):
        read_run(path, 2.0)
