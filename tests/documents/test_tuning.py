"""The commands that docs/TUNING.md shows are called as they stand, on files like those it shows."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from shown import ROOT, blocks, commands
from typer.testing import CliRunner

from cluster.cli.main import new_app
from cluster.demo_model import DEMO_NAME
from cluster.profiling.machine import hardware_name
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
from tuner.profile.profile_file import read_profile, write_profile

DOCUMENT = ROOT / "docs" / "TUNING.md"
LINES = commands(DOCUMENT)
SHOWN_FILES = [block.text for block in blocks("yaml", DOCUMENT)]
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:17:{second:02}.5,{200 + 7 * second},{20 + second}\n" for second in range(40)
)
MOONCAKE = "".join(
    f'{{"timestamp": {300 * i}, "input_length": 600, "output_length": 9, "hash_ids": [0, {i}]}}\n'
    for i in range(20)
)
# What takes minutes is not done, only begun.
WORK = {
    "profile": "cluster.profiling.subject.choose_subject",
    "tune": "cluster.cli.tune_run.tune",
}


class Begun(Exception):
    pass


def begin(*arguments: object) -> None:
    raise Begun


def made_up_profile() -> LatencyProfile:
    """Of this machine, as if it had been measured."""
    step = StepModel(RowCurve(((0, 10**12), (256, 9 * 10**12))), 0, 0, 0)
    return LatencyProfile(
        origin=Origin.MEASURED,
        hardware=hardware_name("cpu"),
        model=DEMO_NAME,
        model_hash="",
        dtype="float32",
        created="2026-11-21",
        max_positions=8192,
        weight_bytes=1,
        kv_bytes_per_token=512,
        message_s=1e-3,
        request_s=1e-3,
        engines=tuple(EngineProfile(ONE_RANK, 1, share, step, 100_000) for share in (1.0, 0.5)),
        transfers=(TransferProfile("shm", ONE_RANK, ONE_RANK, TransferModel(10**9, 10**6)),),
        cores=2,
    )


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files that the commands name."""
    monkeypatch.chdir(tmp_path)
    # Neither profiles nor models of whoever runs the tests.
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    [spec] = [text for text in SHOWN_FILES if text.startswith("hardware:")]
    [traffic] = [text for text in SHOWN_FILES if text.startswith("rate:")]
    contents = {
        "h100.yaml": spec,
        "traffic.yaml": traffic,
        "cluster.yaml": "engine: {threads: 1}\n",
        "trace.csv": AZURE,
        "trace.jsonl": MOONCAKE,
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "tuned").mkdir()
    write_profile(made_up_profile(), tmp_path / "profile.json")
    return tmp_path


def test_every_command_is_shown() -> None:
    assert {line.split()[1] for line in LINES} == {"profile", "simulate", "tune"}
    assert len(LINES) >= 8


@pytest.mark.parametrize("line", LINES)
def test_a_command_of_the_document_does_what_it_says(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, command, *options = shlex.split(line)
    assert program == "crossdock"
    for work in WORK.values():
        monkeypatch.setattr(work, begin)
    result = CliRunner().invoke(new_app(), [command, *options])
    if command in WORK and "--from-spec" not in options:
        assert isinstance(result.exception, Begun), f"{result.exception!r}\n{result.output}"
        return
    assert result.exit_code == 0, f"{result.exception!r}\n{result.output}"
    for option in ("--plot", "--out"):
        if option in options:
            assert (folder / options[options.index(option) + 1]).stat().st_size > 0


def test_the_spec_that_is_shown_makes_the_profile_that_it_names(folder: Path) -> None:
    made = folder / "made.json"
    result = CliRunner().invoke(
        new_app(), ["profile", "--from-spec", "h100.yaml", "--out", str(made)]
    )
    assert result.exit_code == 0, result.output
    profile = read_profile(made)
    assert (profile.hardware, profile.origin) == ("h100", Origin.MODELLED)
    assert {str(engine.shape) for engine in profile.engines} == {"1×1", "2×1"}
