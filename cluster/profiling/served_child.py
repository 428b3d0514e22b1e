"""A worker that serves as in a cluster, and tells how busy it was outside of its engine.

    python -m cluster.profiling.served_child

Reads a ``ServedTask``, says where it serves; answers each line of its stdin with the seconds of CPU
that the engine's thread and all other threads have used so far; ends with its stdin.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

from cluster.profiling.in_child import end_with_stdin, leave, run_task, say
from cluster.profiling.tasks import ServedTask
from cluster.worker_host import WorkerHost

_ENGINE_THREAD = "engine-loop"


def serve(task: ServedTask) -> None:
    end_with_stdin(lambda _: _say_busy())
    asyncio.run(_serve(task))


async def _serve(task: ServedTask) -> None:
    host = WorkerHost(task.worker)
    host.prepare()
    place = await host.start()
    say(endpoint=place.endpoint, epoch=place.epoch, pid=place.pid)
    await host.wait_closed()


def _say_busy() -> None:
    """``schedstat``: the first number is nanoseconds on a core (Linux, sched-stats)."""
    engine = next(thread for thread in threading.enumerate() if thread.name == _ENGINE_THREAD)
    told = Path(f"/proc/self/task/{engine.native_id}/schedstat").read_text().split()
    engine_s = int(told[0]) / 1e9
    say(engine_s=engine_s, other_s=time.process_time() - engine_s)


if __name__ == "__main__":
    leave(run_task(ServedTask, serve))
