"""Reads a line of `crossdock bench` and `crossdock bench engine` as these do until they would begin
to measure: durations, ranges, lists, and what excludes each other.

Does not cover: whether a server, a model, a trace or a GPU that is named is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from unittest import mock

import typer.main

from cluster.cli.bench import app
from tuner.load.traces import TraceEntry

_TRACE = [TraceEntry(0.0, 8, 8)]
_CORES = {0, 1}


class _Begins(Exception):
    """All options are read."""


def read_bench_line(words: Sequence[str]) -> None:
    """``words``: those after `bench`. Raises ``InvalidField`` as the commands do."""
    with (
        contextlib.suppress(_Begins),
        mock.patch("cluster.cli.bench_plans.read_trace", return_value=_TRACE),
        mock.patch("cluster.cli.bench_run._try_to_save", side_effect=_Begins),
        mock.patch("cluster.engine_bench.run.require_gpu"),
        mock.patch("os.sched_getaffinity", return_value=_CORES),
        mock.patch("cluster.engine_bench.run.find_model", side_effect=_Begins),
        mock.patch("cluster.engine_bench.run.ensure_demo_model", side_effect=_Begins),
    ):
        typer.main.get_command(app).main(list(words), "bench", standalone_mode=False)
        raise AssertionError("it would not measure")
