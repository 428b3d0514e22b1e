"""Profiles on disk: what is written comes back, damage and strangers are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.errors import Incompatible, InvalidField
from core.latency_profile import (
    EngineProfile,
    FitError,
    Interference,
    LatencyProfile,
    Origin,
    RowCurve,
    StepModel,
    TransferModel,
    TransferProfile,
)
from core.shards import ONE_RANK, ParallelShape
from tuner.files import check_writable
from tuner.profile.profile_file import (
    FORMAT,
    check_profile_path,
    read_profile,
    require_model,
    to_plain,
    write_profile,
)
from tuner.profile.store import find_newest, profiles_dir, store_profile

STEP = StepModel(RowCurve(((1, 10**13), (512, 2 * 10**14 + 1))), 10**10, 10**7, 10**9)
ALONE = EngineProfile(
    ONE_RANK, 1, 1.0, STEP, 65_536, FitError(0.01, 0.05, 0.1, (0.9, 1.1), "prefill 64")
)
PROFILE = LatencyProfile(
    origin=Origin.MEASURED,
    hardware="a CPU, 2 cores",
    model="tiny",
    model_hash="00c0ffee00c0ffee",
    dtype="bfloat16",
    created="2026-11-21T18:00:00+00:00",
    max_positions=2048,
    weight_bytes=269_000_000,
    kv_bytes_per_token=23_040,
    message_s=0.0003,
    request_s=0.002,
    engines=(
        ALONE,
        replace(ALONE, company=1),
        replace(ALONE, threads=2),
        replace(ALONE, core_share=0.5, company=1, error=None),
        replace(ALONE, shape=ParallelShape(1, 2)),
    ),
    transfers=(
        TransferProfile("shm", ONE_RANK, ParallelShape(1, 2), TransferModel(10**11, 3 * 10**9)),
    ),
    interference=Interference(1.3, 1.05, 1.15, 1.0),
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "profile.json"
    write_profile(PROFILE, path)
    return path


@pytest.fixture(autouse=True)
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees or changes the user's profiles."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def changed(file: Path, *path: str | int, to: Any) -> Path:
    content = json.loads(file.read_text())
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    file.write_text(json.dumps(content))
    return file


def test_what_is_written_comes_back(file: Path) -> None:
    assert read_profile(file) == PROFILE
    assert [path.name for path in file.parent.iterdir()] == [file.name], "no temporary file stays"


def test_engines_are_found_by_shape_share_threads_and_company() -> None:
    assert PROFILE.engine(ONE_RANK) is PROFILE.engines[0]
    assert PROFILE.engine(ONE_RANK, threads=2) is PROFILE.engines[2]
    assert PROFILE.engine(ONE_RANK, threads=1, company=3) is PROFILE.engines[1]
    assert PROFILE.engine(ONE_RANK, 0.5) is PROFILE.engines[3]
    assert PROFILE.engine(ParallelShape(1, 2), company=1) is PROFILE.engines[4]
    with pytest.raises(
        InvalidField, match=r"2×1 of 1 threads with core share 1.*has 1×1, 1 thread each"
    ):
        PROFILE.engine(ParallelShape(2), threads=1)


def test_a_file_of_a_newer_version_says_so(file: Path) -> None:
    with pytest.raises(Incompatible, match="schema 2, this version reads up to 1"):
        read_profile(changed(file, "schema", to=2))


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("profile", "engines", 0, "step", "per_sampled"), -1, "negative time"),
        (("profile", "engines", 0, "step", "per_sampled"), 1.5, "per_sampled"),
        (("profile", "engines", 0, "step", "rows", "points"), [[1, 2]], "two points"),
        (("profile", "engines", 0, "core_share"), 0.0, "core share"),
        (("profile", "engines", 0, "kv_tokens"), 0, "below 1"),
        (("profile", "engines"), [], "no engine"),
        (("profile", "transfers", 0, "model", "per_batch"), -5, "shm"),
        (("profile", "message_s"), -1.0, "message_s"),
        (("profile", "interference", "decode_beside_decode"), 0.5, "interference"),
        (("profile", "message_s"), float("nan"), "message_s"),
        (("profile", "engines", 0, "error", "p95"), float("nan"), "error of the fit"),
        (("profile", "engines", 0, "error", "residuals"), [1.0, 0.0], "residual"),
        (("profile", "engines", 0, "error", "residuals"), [float("inf")], "residual"),
        (("profile", "engines", 0, "step", "per_sampled"), 10**300, "time of days"),
        (("profile", "engines", 0, "step", "rows", "points"), [[1, 9], [2, 5]], "that falls"),
        (("profile", "engines", 0, "step", "rows", "points"), [[1, 0], [2, 0]], "takes no time"),
        (("profile", "engines", 0, "step", "rows", "points"), [[-1, 1], [2, 2]], "rows below 0"),
        (("profile", "engines", 0, "shape", "tensor"), 10**6, "beyond all hardware"),
        (("profile", "engines", 0, "speed"), 1, "profile.engines.0.speed is no field"),
        (("profile", "kv_bytes_per_token"), 0, "kv_bytes_per_token is below 1"),
        (("profile", "cores"), -1, "cores is below 0"),
        (("profile", "dtype"), "int3", "none of float32"),
        (("written_by",), "me", "written_by is no field"),
        (("profile", "origin"), "guessed", "origin"),
        (("profile", "dtype"), None, "dtype"),
        (("profile",), [], "profile"),
        (("schema",), "1", "schema"),
        (("schema",), True, "schema"),
    ],
)
def test_damage_is_named(file: Path, path: tuple[str | int, ...], value: Any, said: str) -> None:
    with pytest.raises(InvalidField, match=f"is damaged.*{said}"):
        read_profile(changed(file, *path, to=value))


def test_other_files_are_no_profiles(tmp_path: Path, file: Path) -> None:
    half = tmp_path / "half.json"
    half.write_text(file.read_text()[:200])
    with pytest.raises(InvalidField, match="not JSON"):
        read_profile(half)
    half.write_text('{"format": "something else"}')
    with pytest.raises(InvalidField, match="no latency profile"):
        read_profile(half)
    for path in (tmp_path / "nowhere.json", tmp_path):
        with pytest.raises(InvalidField, match="can't be read"):
            read_profile(path)
    half.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InvalidField, match="no text file"):
        read_profile(half)
    for text in ("", "[" * 100_000, "\x00", "9" * 5000):
        half.write_text(text)
        with pytest.raises(InvalidField, match="not JSON"):
            read_profile(half)


@pytest.mark.parametrize("field", ["engines", "message_s", "kv_bytes_per_token", "created"])
def test_a_field_that_is_missing_is_named(file: Path, field: str) -> None:
    content = json.loads(file.read_text())
    del content["profile"][field]
    file.write_text(json.dumps(content))
    with pytest.raises(InvalidField, match=rf"is damaged \({field}: Field required\)"):
        read_profile(file)


def test_a_file_that_can_not_be_written_stays_as_it_was(tmp_path: Path, file: Path) -> None:
    before = file.read_bytes()
    with pytest.raises(ValueError, match="JSON compliant"):
        write_profile(replace(PROFILE, message_s=float("nan")), file)
    assert file.read_bytes() == before
    with pytest.raises(InvalidField, match="can't be written"):
        write_profile(PROFILE, tmp_path / "nowhere" / "profile.json")
    check_writable(file)
    with pytest.raises(InvalidField, match="is a folder"):
        check_writable(tmp_path)
    with pytest.raises(InvalidField, match="no folder"):
        check_writable(tmp_path / "nowhere" / "profile.json")


def test_a_profile_of_another_model_is_refused() -> None:
    require_model(PROFILE, PROFILE.model_hash, "tiny")
    require_model(replace(PROFILE, model_hash=""), "0123", "any")
    with pytest.raises(Incompatible, match="is of tiny"):
        require_model(PROFILE, "0123", "other")


def test_the_newest_profile_of_a_model_on_this_hardware_is_found() -> None:
    assert find_newest(PROFILE.model_hash, PROFILE.hardware) is None
    older = replace(PROFILE, created="2026-11-20T18:00:00+00:00", dtype="float32")
    for profile in (PROFILE, older, replace(PROFILE, hardware="another one")):
        store_profile(profile)
    assert find_newest(PROFILE.model_hash, PROFILE.hardware) == PROFILE
    assert find_newest(PROFILE.model_hash, PROFILE.hardware, "float32") == older
    assert find_newest("0123", PROFILE.hardware) is None


def test_a_newer_measurement_replaces_the_older_one_and_damage_is_passed_over() -> None:
    store_profile(PROFILE)
    newer = replace(PROFILE, created="2026-11-22T18:00:00+00:00")
    path = store_profile(newer)
    assert list(profiles_dir().iterdir()) == [path]
    assert find_newest(PROFILE.model_hash, PROFILE.hardware) == newer
    path.write_text("{}")
    assert find_newest(PROFILE.model_hash, PROFILE.hardware) is None


def test_plain_data_has_names_of_enums_and_whole_numbers() -> None:
    plain = to_plain(PROFILE)
    assert plain["origin"] == "measured"
    assert plain["engines"][0]["step"]["rows"]["points"][1] == [512, 2 * 10**14 + 1]


def test_a_profile_replaces_profiles_only(tmp_path: Path) -> None:
    path = tmp_path / "out"
    check_profile_path(path)
    path.write_text(f'{{"format": "{FORMAT}"')
    check_profile_path(path)
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n")
    with pytest.raises(InvalidField, match="is no latency profile: name another file"):
        check_profile_path(path)
