"""The clusters and loads of `scripts/tune-validate`."""

from __future__ import annotations

import pytest

from cluster.validation.grid import grid_configurations, grid_loads
from tuner.load.workload import PRESETS


def test_loads_are_those_of_the_presets_at_their_rates() -> None:
    loads = grid_loads(200.0)
    assert [(load.traffic, load.rate) for load in loads] == [
        *(("short", 1.0), ("short", 2.0)),
        *(("mixed", 0.5), ("mixed", 1.0)),
    ]
    for load in loads:
        assert len(load.trace) == pytest.approx(200 * load.rate, rel=0.25)
        lengths = [part.tokens for part in PRESETS[load.traffic].workload.prompts]
        for tokens in load.trace.prompt_tokens.tolist():
            assert any(length.low <= tokens <= length.high for length in lengths)


def test_clusters_have_the_workers_of_their_names() -> None:
    pools = {
        c.name: (c.spec.pools.prefill.replicas, c.spec.pools.decode.replicas, c.spec.engine.threads)
        for c in grid_configurations(None)
    }
    assert pools["colocated, 2 threads"] == (0, 1, 2)
    assert pools["1P:2D on 2 cores"] == (1, 2, 1)
    assert len(pools) == 6
