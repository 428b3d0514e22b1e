"""Clusters that several files of tests share: SmolLM2 in float32, by ratio."""

from __future__ import annotations

import pytest


def at(*ratios: tuple[int, int]) -> pytest.MarkDecorator:
    """The tests are run at each (prefill, decode), on the cluster of ``float32_cluster``.

    Others have used its caches and counters before. pytest runs all tests of one ratio one after
    the other, so that each cluster is started once.
    """
    names = [f"{prefill}P{decode}D" for prefill, decode in ratios]
    return pytest.mark.parametrize("float32_cluster", ratios, indirect=True, ids=names)
