"""A real process that is bound like a worker's: all threads on its cores, none of them spins."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from cluster.plan import thread_environment

THREADS = 3
# Works with all threads of torch and of the compiled kernels, and looks at itself while idle.
CHILD = """
import json, os, sys, threading, time
core, threads = int(sys.argv[1]), int(sys.argv[2])
idle = threading.Event()
early = threading.Thread(target=idle.wait, daemon=True)
early.start()
from cluster.process_binding import bind_process
bind_process((core,), threads)
import torch
from kernels.linear import Linear
layer, x = Linear(torch.ones(2048, 256)), torch.ones(64, 256)
for _ in range(20):
    layer(x)
    (torch.ones(1 << 18) + 1).sum()
tasks = [int(name) for name in os.listdir("/proc/self/task")]
time.sleep(0.05)
before = time.process_time()
time.sleep(0.5)
print(json.dumps({
    "cores": sorted({core for task in tasks for core in os.sched_getaffinity(task)}),
    "tasks": len(tasks),
    "threads": torch.get_num_threads(),
    "idle_cpu_s": time.process_time() - before,
}))
"""


@pytest.mark.processes
def test_all_threads_of_a_process_are_on_its_cores_and_idle_ones_sleep() -> None:
    core = max(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(core), str(THREADS)],
        env=os.environ | thread_environment(THREADS),
        stdout=subprocess.PIPE,
        check=True,
    )
    seen = json.loads(done.stdout)
    assert seen["cores"] == [core]
    assert seen["threads"] == THREADS
    assert seen["tasks"] >= 2 + (THREADS - 1)
    # A single thread that spins would take up to 0.5 s.
    assert seen["idle_cpu_s"] < 0.05
