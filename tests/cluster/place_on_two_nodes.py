"""Places replicas on a Ray of two nodes of two CPUs each, and prints what became of them as JSON.

A program of its own: Ray reads its environment once per process.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cluster.placement_fit import ReplicaNeed
from cluster.plan import Slot
from core.errors import Unavailable
from core.shards import ParallelShape

FIRST, SECOND = Slot("prefill", 0, "prefill"), Slot("decode", 0, "decode")


def need(tensor: int, pipeline: int, cpus: float) -> ReplicaNeed:
    return ReplicaNeed({"CPU": cpus}, ParallelShape(tensor, pipeline))


async def place_all(address: str) -> dict[str, object]:
    from cluster.ray_cluster import RayCluster

    ray = RayCluster(address)
    await asyncio.to_thread(ray.start)
    told: dict[str, object] = {}

    async def place(name: str, needs: dict[Slot, ReplicaNeed], timeout_s: float = 30.0) -> None:
        try:
            nodes = await ray.place(needs, timeout_s)
            # Which of the nodes, in the order in which they were seen.
            told[name] = [[list(dict.fromkeys(of)).index(n) for n in of] for of in nodes.values()]
        except Unavailable as error:
            told[name] = error.message

    await place("together", {FIRST: need(1, 2, 1.0)})
    await place("tensor ranks beside it", {SECOND: need(2, 1, 1.0)})
    ray.give_back(FIRST)
    ray.give_back(SECOND)
    await place("stages apart", {FIRST: need(2, 2, 1.0)})
    ray.give_back(FIRST)
    await place("no node holds three", {FIRST: need(3, 1, 1.0)})
    ray.give_back(FIRST)
    await place("half of each node", {FIRST: need(1, 2, 1.1)})
    await place("all or none", {SECOND: need(1, 3, 0.6)}, timeout_s=3.0)
    await place("nothing together is left", {SECOND: need(1, 2, 0.9)})
    ray.shutdown()
    return told


def main() -> None:
    with TemporaryDirectory(prefix="ray-") as folder:
        token = Path(folder) / "token"
        token.write_text(secrets.token_hex(32))
        token.chmod(0o600)
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
        from ray.cluster_utils import Cluster

        node: dict[str, Any] = {
            "num_cpus": 2,
            "node_ip_address": "127.0.0.1",
            "object_store_memory": 100 * 2**20,
        }
        node["temp_dir"] = folder
        # Where Ray notes the cluster of this machine: in there, and not for others to find.
        os.environ["RAY_TMPDIR"] = folder
        Path(folder, "ray").mkdir()
        cluster = Cluster(initialize_head=True, head_node_args=node)
        cluster.add_node(**node)
        try:
            print(json.dumps(asyncio.run(place_all(cluster.address))))
        finally:
            cluster.shutdown()


if __name__ == "__main__":
    main()
