"""The files of a verdict: their names, and what stands in the way of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from search_worlds import LIMITS, profile_of

from core.config import ClusterSpec
from core.errors import InvalidField
from core.shards import ONE_RANK
from tuner.search.outputs import MADE_BY, check_folder, write_outputs
from tuner.search.space import Accelerators, Budget, Candidate, PoolChoice


def named(hardware: str, kind: str = "l4") -> Accelerators:
    return Accelerators(replace(profile_of(kind), hardware=hardware), 2)


def colocated_on(*kinds: Accelerators) -> Candidate:
    return Candidate(None, tuple(PoolChoice(kind, 1, ONE_RANK, LIMITS) for kind in kinds))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("NVIDIA L4 / 24GB", "NVIDIA L40S/48GB"),
        ("l4", "l4"),
        ("../../l4", "/etc/l4"),
        ("L4", "l4 "),
        ("…", "—"),
        ("x" * 300, "x" * 299 + "y"),
    ],
)
def test_clusters_on_any_two_kinds_get_files_of_their_own(
    one: str, other: str, tmp_path: Path
) -> None:
    first, second = named(one), named(other, "l40s")
    check_folder(tmp_path, Budget(first, second))
    written = write_outputs(colocated_on(first, second), ClusterSpec(), "two kinds", tmp_path)
    assert len(set(written)) == 4
    assert sorted(written) == sorted(tmp_path.iterdir())
    for path in written:
        loaded = yaml.safe_load(path.read_text())
        ClusterSpec.model_validate(loaded.get("cluster", loaded))


def test_one_cluster_is_called_cluster(tmp_path: Path) -> None:
    names = [p.name for p in write_outputs(colocated_on(named("l4")), ClusterSpec(), "", tmp_path)]
    assert names == ["cluster.yaml", "values.yaml"]


def test_a_folder_is_made_with_the_files_and_not_before(tmp_path: Path) -> None:
    folder, budget = tmp_path / "tuned", Budget(named("l4"), named("l4"))
    check_folder(folder, budget)
    assert not folder.exists()
    assert write_outputs(colocated_on(named("l4")), ClusterSpec(), "", folder)[0].exists()
    with pytest.raises(InvalidField, match="there is no folder"):
        check_folder(tmp_path / "none" / "tuned", budget)
    with pytest.raises(InvalidField, match="is a file"):
        check_folder(folder / "cluster.yaml", budget)


def test_pods_of_two_kinds_are_led_to_the_nodes_that_were_named(tmp_path: Path) -> None:
    fast = replace(named("h100"), nodes=(("gpu.kind", "h100"), ("zone", "a")))
    cheap = replace(named("l40s"), nodes=(("gpu.kind", "l40s"),))
    pools = [PoolChoice(kind, 1, ONE_RANK, LIMITS) for kind in (fast, cheap)]
    write_outputs(Candidate(pools[0], (pools[1],)), ClusterSpec(), "", tmp_path)
    values = yaml.safe_load((tmp_path / "values.yaml").read_text())
    assert values["prefill"] == {"nodeSelector": {"gpu.kind": "h100", "zone": "a"}}
    assert values["decode"] == {"nodeSelector": {"gpu.kind": "l40s"}}


def test_colocated_clusters_of_two_kinds_each_get_their_nodes(tmp_path: Path) -> None:
    fast = replace(named("h100"), nodes=(("gpu.kind", "h100"),))
    write_outputs(colocated_on(fast, named("l40s")), ClusterSpec(), "", tmp_path)
    of_fast = yaml.safe_load((tmp_path / "values-h100.yaml").read_text())
    assert of_fast["decode"] == {"nodeSelector": {"gpu.kind": "h100"}}
    assert "prefill" not in of_fast
    assert yaml.safe_load((tmp_path / "values-l40s.yaml").read_text()).keys() == {"cluster"}


@pytest.mark.parametrize("name", ["cluster.yaml", "values.yaml", "cluster-l4.yaml"])
def test_what_stands_in_the_way_is_told_before_the_search(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(InvalidField, match="is a folder"):
        check_folder(tmp_path, Budget(named("l4"), named("l40s", "l40s")))


def test_a_folder_that_takes_no_files_is_refused_by_name() -> None:
    one = named("l4")
    with pytest.raises(InvalidField, match="can't be written"):
        check_folder(Path("/proc"), Budget(one, one))


def test_only_files_that_a_search_has_written_are_replaced(tmp_path: Path) -> None:
    one = named("l4")
    write_outputs(colocated_on(one), ClusterSpec(), f"{MADE_BY} today", tmp_path)
    check_folder(tmp_path, Budget(one, one))
    (tmp_path / "cluster.yaml").write_text("model: mine\n")
    with pytest.raises(InvalidField, match=r"has a cluster\.yaml that .* did not write"):
        check_folder(tmp_path, Budget(one, one))
