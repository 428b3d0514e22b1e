"""The designed points: within what can be run, and enough to tell all parts of a model apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidField
from core.latency_profile import StepWork, chunk_pairs
from core.shards import ONE_RANK, ParallelShape
from tuner.profile.points import (
    Chunk,
    Effort,
    EngineSetting,
    Limits,
    StepPoint,
    design_engines,
    design_steps,
    design_transfers,
)

ROOMY = Limits(max_positions=8192, chunk_tokens=512, max_num_seqs=32, kv_tokens=100_000)


@given(
    st.sampled_from(Effort),
    st.builds(
        Limits,
        max_positions=st.integers(64, 40_000),
        chunk_tokens=st.integers(16, 9000),
        max_num_seqs=st.integers(1, 300),
        kv_tokens=st.integers(64, 200_000),
    ),
)
def test_no_point_is_more_than_can_be_run(effort: Effort, limits: Limits) -> None:
    points = design_steps(effort, limits)
    assert len({point.name for point in points}) == len(points), "a name tells a point"
    for point in points:
        assert point.decodes <= limits.max_num_seqs
        assert point.context <= limits.max_positions
        assert point.kv_tokens <= limits.kv_tokens
        assert sum(chunk.count for chunk in point.chunks) <= limits.chunk_tokens
        assert all(chunk.start + chunk.count <= limits.max_positions for chunk in point.chunks)


@pytest.mark.parametrize("effort", Effort)
def test_every_part_of_a_step_can_be_told_from_the_others(effort: Effort) -> None:
    works = [point.work for point in design_steps(effort, ROOMY)]
    matrix = np.array(
        [[1, w.rows, w.sampled, w.prefill_pairs, w.decode_context] for w in works], dtype=float
    )
    weighted = matrix / np.linalg.norm(matrix, axis=0)
    assert np.linalg.cond(weighted) < 50
    assert any(work.decodes and work.prefill_pairs for work in works), "both at once"


def test_more_effort_means_more_points() -> None:
    quick, normal, thorough = (len(design_steps(effort, ROOMY)) for effort in Effort)
    assert 20 < quick < normal < thorough


def test_the_work_of_a_point() -> None:
    point = StepPoint((Chunk(100, 64, draws=True), Chunk(0, 8, draws=False)), 4, 50)
    assert point.work == StepWork(
        rows=76,
        sampled=5,
        prefill_pairs=chunk_pairs(100, 64) + chunk_pairs(0, 8),
        decodes=4,
        decode_context=200,
    )
    assert point.name == "prefill 64 after 100, drawn and 8 after 0 beside decode 4 × 50"
    assert point.kv_tokens == 164 + 8 + 200


def test_engines_on_two_cores() -> None:
    """What 1:1, 2:1 and colocated serving on two cores are made of."""
    assert design_engines(Effort.QUICK, 2, [ParallelShape(1, 2), ONE_RANK]) == (
        EngineSetting(ONE_RANK, 1),
        EngineSetting(ONE_RANK, 1, company=1),
        EngineSetting(ONE_RANK, 2),
        EngineSetting(ONE_RANK, 1, core_share=0.5, company=2),
        EngineSetting(ParallelShape(1, 2), 1),
    )


def test_engines_on_other_machines() -> None:
    assert design_engines(Effort.QUICK, 1, [ParallelShape(2, 1)]) == (
        EngineSetting(ONE_RANK, 1),
        EngineSetting(ONE_RANK, 1, core_share=0.5, company=1),
    )
    eight = design_engines(Effort.THOROUGH, 8, [])
    assert [(e.threads, e.company) for e in eight] == [
        (1, 0),
        (1, 7),
        (2, 0),
        (2, 3),
        (4, 0),
        (4, 1),
        (8, 0),
    ]


def test_threads_of_the_config_are_kept() -> None:
    assert [e.threads for e in design_engines(Effort.NORMAL, 8, [ParallelShape(1, 2)], 3)] == [
        3
    ] * 3
    with pytest.raises(InvalidField, match=r"engine\.threads = 9: this process may use 8 cores"):
        design_engines(Effort.NORMAL, 8, [], 9)


def test_transfers_are_whole_blocks_up_to_the_largest() -> None:
    assert design_transfers(12) == (1, 2, 4, 6, 8, 12)
    assert max(design_transfers(128)) == 128
    assert design_transfers(128, few=True) == (1, 6, 16, 48, 128)
    assert design_transfers(6, few=True) == (1, 2, 4, 6)
