"""Measured runs are found again by what they are of, and only by that."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.code_digest import code_digest
from cluster.validation.kept_runs import KeptRun, RunKey, keep_run, read_run
from cluster.validation.run import Configuration, OfferedLoad, Validation, validate
from core.config import make_spec
from core.errors import InvalidField
from tuner.load.metrics import RunResult, Slo
from tuner.load.records import RequestRecord, Usage
from tuner.profile import hardware, model_shape
from tuner.profile.modelled import modelled_profile
from tuner.simulate.requests import RequestTrace
from tuner.validate.compare import Outcome

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
    keep_run(KeptRun(RunResult(0, (), 1.0, 1.0), "c0de", "2026-11-22"), path)
    assert path.exists()


def test_a_kept_run_is_the_run(tmp_path: Path) -> None:
    path = KEY.path(tmp_path)
    assert read_run(path, 2.0) is None
    records = (
        RequestRecord(0, 0, 0.0, 20, 2, 0.01, 0.5, (0.3, 0.5), (1, 1), Usage(20, 2)),
        RequestRecord(0, 1, 0.3, 30, 6, 0.31, 0.4, error="TIMEOUT", detail="too late"),
    )
    kept = KeptRun(RunResult(0, records, 2.0, 0.5), "c0de", "2026-11-22T08:00:00+00:00")
    keep_run(kept, path)
    assert read_run(path, 2.0) == kept


@pytest.mark.parametrize("text", ["", "{", "{}\n", '{"session": 0}\n', "\xff"])
def test_a_file_that_is_no_kept_run_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidField, match="delete it"):
        read_run(path, 2.0)


OUTCOME = Outcome(0.1, 0.2, 0.01, 0.02, goodput=1.0, share=1.0)


class Told:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def step(self, text: str) -> None:
        pass

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_it_is_told_which_runs_other_code_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.validation.run.predict", lambda what: OUTCOME)
    record = RequestRecord(0, 0, 0.0, 20, 2, 0.01, 0.5, (0.3, 0.5), (1, 1), Usage(20, 2))
    configuration = Configuration("1P:1D", make_spec({"model": "tiny"}))
    loads = tuple(OfferedLoad("short", rate, TRACE.at_rate(rate)) for rate in (1.0, 2.0))
    validation = Validation((configuration,), loads, PROFILE, Slo(60, 60), tmp_path, replicates=0)
    for load, code in zip(loads, ("c0de", code_digest()), strict=True):
        path = validation.kept_path(configuration, load)
        assert path is not None
        keep_run(KeptRun(RunResult(0, (record,), 1.0, 0.5), code, "2026-11-22"), path)
    progress = Told()
    assert len(validate(validation, progress)) == 2
    [note] = progress.notes
    assert "1P-1D-short-1-" in note
    assert f"with other code (c0de, here it is {code_digest()})" in note
