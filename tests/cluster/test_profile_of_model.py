"""A profile of another model than the one that would be served is refused, by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from model_folders import make_model_folder

from cluster.cli.profile_choice import choose_profile
from cluster.cli.profile_of_model import require_served_model
from cluster.demo_model import DEMO_NAME
from cluster.model_folder import models_dir
from core.config import ClusterSpec, make_spec
from core.errors import Incompatible, InvalidField, NotFound
from core.latency_profile import LatencyProfile, Origin
from engine.model_hash import model_hash
from tuner.profile.hardware import BUILT_IN
from tuner.profile.model_shape import read_model_shape
from tuner.profile.modelled import modelled_profile
from tuner.profile.profile_file import write_profile
from tuner.simulate.from_spec import PoolProfiles


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No imported models but the tests' own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return make_model_folder(tmp_path / "tiny")


def modelled(folder: Path) -> LatencyProfile:
    return modelled_profile(BUILT_IN["l4"], read_model_shape(folder), "bfloat16", "2026-11-21")


def measured(folder: Path) -> LatencyProfile:
    return replace(
        modelled(folder), origin=Origin.MEASURED, model_hash=f"{model_hash(folder):016x}"
    )


def spec(folder: Path | None, dtype: str = "auto") -> ClusterSpec:
    stated = {} if folder is None else {"model": str(folder)}
    return make_spec({**stated, "engine": {"dtype": dtype}})


def test_the_profile_of_the_served_model(tiny: Path, tmp_path: Path) -> None:
    write_profile(measured(tiny), tmp_path / "p.json")
    chosen = choose_profile(tmp_path / "p.json", spec(tiny))
    assert chosen.profile == measured(tiny)


def test_other_files_of_the_same_name(tiny: Path, tmp_path: Path) -> None:
    other = make_model_folder(tmp_path / "elsewhere" / "tiny", num_hidden_layers=2)
    write_profile(measured(tiny), tmp_path / "p.json")
    with pytest.raises(Incompatible, match=r"the profile is of tiny \(\w+\), not of tiny \(\w+\)"):
        choose_profile(tmp_path / "p.json", spec(other))


def test_without_a_model_in_the_config_the_demo_model_is_served(tiny: Path) -> None:
    with pytest.raises(Incompatible, match=f"of tiny, not of {DEMO_NAME}, .* with --model"):
        require_served_model(measured(tiny), spec(None))
    demo = make_model_folder(models_dir() / DEMO_NAME, num_hidden_layers=2)
    with pytest.raises(Incompatible, match=r"of tiny \(\w+\), not of " + DEMO_NAME):
        require_served_model(measured(tiny), spec(None))
    require_served_model(measured(demo), spec(None))


def test_a_model_that_is_on_another_machine_is_compared_by_name(tiny: Path) -> None:
    require_served_model(replace(measured(tiny), model="far-8b"), spec(Path("models/far-8b")))
    with pytest.raises(NotFound, match="far-70b"):
        require_served_model(replace(measured(tiny), model="far-8b"), spec(Path("far-70b")))


def test_another_dtype_than_is_served(tiny: Path) -> None:
    other = replace(measured(tiny), dtype="float32")
    with pytest.raises(Incompatible, match=r"in float32, and bfloat16 .* engine.dtype to float32"):
        require_served_model(other, spec(tiny))
    with pytest.raises(Incompatible, match="in float32, and bfloat16"):
        require_served_model(other, spec(tiny, "bfloat16"))
    require_served_model(other, spec(tiny, "float32"))


def test_a_computed_profile_suits_models_of_its_sizes(tiny: Path, tmp_path: Path) -> None:
    require_served_model(modelled(tiny), spec(tiny))
    require_served_model(modelled(tiny), spec(None))
    other = make_model_folder(tmp_path / "other", num_hidden_layers=2)
    with pytest.raises(Incompatible, match=r"other, which has 256 bytes of KV .* profile's 384"):
        require_served_model(modelled(tiny), spec(other))


def test_both_pools_serve_one_model(tiny: Path) -> None:
    one = measured(tiny)
    PoolProfiles(one, replace(one, hardware="another"))
    PoolProfiles(one, modelled(tiny))
    for other in (
        replace(one, model_hash="0" * 16),
        replace(one, dtype="float32"),
        replace(one, model="other"),
    ):
        with pytest.raises(InvalidField, match="both pools serve one model"):
            PoolProfiles(one, other)
