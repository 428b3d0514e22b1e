"""However `crossdock serve` is told to end: it ends well and leaves nothing behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from served_cluster import served

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_serve_alone(tiny_model: Path, number: signal.Signals) -> None:
    with served(tiny_model, 1, 1) as cluster:
        assert len(cluster.answer([1, 2, 3], 4)) == 4
        cluster.process.send_signal(number)
        assert cluster.process.wait(60) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_which_ends_the_daemons_of_ray_too(
    tiny_model: Path, number: signal.Signals
) -> None:
    with served(tiny_model, 1, 1) as cluster:
        assert len(cluster.answer([1, 2, 3], 4)) == 4
        os.killpg(cluster.process.pid, number)
        assert cluster.process.wait(60) == 0
