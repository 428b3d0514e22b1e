"""Ctrl-C and SIGTERM end a search at once, without a word too many and without a process left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:17:{second:02d}.0000000,{900 + 10 * second},{100 + second}\n"
    for second in range(60)
)


@pytest.mark.processes
@pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="with one core the search starts no processes"
)
@pytest.mark.parametrize(
    ("number", "send", "code"),
    [
        # As a terminal does: the whole group hears it.
        (signal.SIGINT, os.killpg, 130),
        (signal.SIGTERM, os.kill, 143),
        (signal.SIGTERM, os.killpg, 143),
    ],
)
def test_an_interrupted_search_is_quiet_and_leaves_nobody(
    tmp_path: Path, number: signal.Signals, send: Callable[[int, int], None], code: int
) -> None:
    path = tmp_path / "conv.csv"
    path.write_text(TRACE)
    command = [sys.executable, "-c", "from cluster.cli.main import main; main()"]
    options = ["tune", str(path), "--gpus", "h100:16", "--model", "llama-3.1-8b"]
    with subprocess.Popen(
        [*command, *options],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whoever runs the tests in the background may have them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as search:
        assert search.stderr is not None
        first = search.stderr.readline()
        assert "by capacities alone" in first
        children = wait_for_children(search.pid)
        send(search.pid, number)
        rest = search.stderr.read()
        assert search.wait() == code
    assert rest.strip() == "interrupted"
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert gone
    assert not alive


def wait_for_children(parent: int) -> list[psutil.Process]:
    """Those that simulate, as soon as there is one."""
    process = psutil.Process(parent)
    while process.is_running():
        children = process.children(recursive=True)
        if any("spawn_main" in " ".join(child.cmdline()) for child in children):
            return children
    raise AssertionError("the search ended by itself")
