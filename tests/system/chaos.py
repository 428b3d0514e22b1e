"""What befalls a cluster while clients use it: any of its parts dies, hangs or is taken away.

Does not cover: the router and controller of `serve` itself, with which the cluster ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from random import Random

import grpc
from router_commands import RouterCommand
from served_cluster import ServedCluster

from redis_server import RedisServer

# Shorter than what is taken for death, and longer.
HANGS_S = (0.5, 3.0, 9.0)
OUTAGES_S = (0.2, 4.0)


class Chaos:
    """``routers``: those beside the cluster's own, always as many. All choices are ``random``'s."""

    def __init__(
        self,
        cluster: ServedCluster,
        redis: RedisServer,
        start_router: Callable[[], RouterCommand],
        random: Random,
    ) -> None:
        self._cluster = cluster
        self._redis = redis
        self._start_router = start_router
        self._random = random
        self.routers = [start_router(), start_router()]
        self._left: list[Callable[[], str]] = []
        self._kinds: list[Callable[[], str]] = [
            self._kill_worker,
            self._hang_worker,
            self._drain_worker,
            self._flip_worker,
            self._end_router,
            self._hang_router,
            self._kill_redis,
            self._hang_redis,
            self._empty_redis,
        ]

    def strike(self) -> str:
        """What was done. No kind comes again before all others have come."""
        if not self._left:
            self._left = self._random.sample(self._kinds, len(self._kinds))
        return self._left.pop()()

    def _worker(self) -> tuple[str, int]:
        """Name and process of one that serves."""
        ready = [w for w in self._cluster.status().workers if w.state == "ready" and w.stats.pid]
        chosen = self._random.choice(ready)
        return chosen.worker, chosen.stats.pid

    def _kill_worker(self) -> str:
        name, pid = self._worker()
        os.kill(pid, signal.SIGKILL)
        return f"{name} was killed"

    def _hang_worker(self) -> str:
        name, pid = self._worker()
        os.kill(pid, signal.SIGSTOP)
        time.sleep(self._random.choice(HANGS_S))
        # The controller may have ended it meanwhile.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        return f"{name} hung"

    def _drain_worker(self) -> str:
        name, _ = self._worker()
        return f"{name} was drained{self._asked(lambda: self._cluster.drain(name))}"

    def _flip_worker(self) -> str:
        name, _ = self._worker()
        return f"{name} was flipped{self._asked(lambda: self._cluster.begin_flip(name))}"

    def _asked(self, ask: Callable[[], None]) -> str:
        """The controller may refuse, as when it is at this worker already."""
        try:
            ask()
        except grpc.RpcError as error:
            return f", but {error.details()}"
        return ""

    def _end_router(self) -> str:
        how = self._random.choice([signal.SIGKILL, signal.SIGTERM])
        number = self._random.randrange(len(self.routers))
        ending, self.routers[number] = self.routers[number], self._start_router()
        status = ending.end(how)
        assert status == (-how if how is signal.SIGKILL else 0)
        return f"a router got {how.name}"

    def _hang_router(self) -> str:
        process = self._random.choice(self.routers).process
        process.send_signal(signal.SIGSTOP)
        time.sleep(self._random.choice(HANGS_S))
        process.send_signal(signal.SIGCONT)
        return "a router hung"

    def _kill_redis(self) -> str:
        self._redis.kill()
        time.sleep(self._random.choice(OUTAGES_S))
        self._redis.start()
        return "Redis was killed"

    def _hang_redis(self) -> str:
        self._redis.stop()
        time.sleep(self._random.choice(OUTAGES_S))
        self._redis.go_on()
        return "Redis hung"

    def _empty_redis(self) -> str:
        self._redis.ask("FLUSHALL")
        return "Redis was emptied"
