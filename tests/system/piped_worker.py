"""One worker without Ray: `python piped_worker.py SETTINGS`, a JSON object of `WorkerSettings`.

Prints where it is as one line of JSON when it serves; stops when standard input ends.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys

import uvloop

from cluster.worker_host import WorkerHost
from core.request import Role
from core.worker_settings import WorkerSettings


async def main() -> None:
    fields = json.loads(sys.argv[1])
    host = WorkerHost(WorkerSettings(**(fields | {"role": Role(fields["role"])})))
    place = await host.start()
    print(json.dumps(dataclasses.asdict(place)), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await host.stop(drain_s=30.0)


if __name__ == "__main__":
    uvloop.run(main())
