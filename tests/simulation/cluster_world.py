"""A whole cluster in virtual time: clients, routers, workers, and the registry between them.

Routers and workers are the production objects; processes die and hang, connections break, lists
are late. A cluster is one seed: the same one has the same story.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count

import numpy as np
from simulated_clients import Client
from simulated_network import Faults, Network
from simulated_routers import SimRouter
from simulated_store import SimRedis
from simulated_workers import SimDecode, SimMixed, SimPrefill, SimWorker

from core.request import Role, SamplingParams
from crossdock.v1.registry_pb2 import WorkerRecord
from router.access_rules import AccessRules
from router.placement import WorkerId
from router.routing.routing_rules import RoutingRules

_TROUBLE_EVERY_S = 0.1


class World:
    """``pools``: how many workers of each role. ``shares``: routers do, by ``redis``."""

    def __init__(
        self,
        seed: int,
        *,
        routers: int,
        pools: dict[Role, int],
        rules: RoutingRules,
        access: AccessRules | None = None,
        faults: Faults | None = None,
        shares: bool = False,
    ) -> None:
        self.network = Network(seed, faults or Faults())
        self.random = self.network.random
        self.defects: list[str] = []
        asyncio.get_running_loop().set_exception_handler(self._on_defect)
        self._rules, self._access = rules, access or AccessRules()
        self._epochs = count(1)
        self._lives = count(1)
        self.redis = SimRedis(self.network) if shares else None
        self.workers: dict[str, SimWorker] = {}
        self._roles = {f"{role.value}-{i}": role for role, n in pools.items() for i in range(n)}
        for name in self._roles:
            self._start_worker(name)
        self.routers: dict[str, SimRouter] = {}
        for number in range(routers):
            self._start_router(f"router-{number}")
        self.clients: list[Client] = []
        self.network.after(_TROUBLE_EVERY_S, self._make_trouble)

    def _on_defect(self, loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        self.defects.append(f"{loop.time()}: {context.get('exception') or context['message']!r}")

    # Clients

    def ask(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        *,
        n: int = 1,
        tenant: str = "default",
        patience_s: float | None = None,
        after_s: float = 0.0,
    ) -> Client:
        client = Client(
            self.network,
            self.reachable_routers,
            f"r{len(self.clients)}",
            np.array(prompt, dtype=np.int32),
            SamplingParams(max_tokens, n=n),
            tenant,
            patience_s,
        )
        self.clients.append(client)
        self.network.after(after_s, client.ask)
        return client

    def reachable_routers(self) -> list[SimRouter]:
        return [router for router in self.routers.values() if router.is_alive]

    # The registry

    def _start_worker(self, name: str) -> None:
        network, role, epoch = self.network, self._roles[name], next(self._epochs)
        if role is Role.PREFILL:
            self.workers[name] = SimPrefill(network, name, epoch, self._find_decode)
        else:
            kind = SimDecode if role is Role.DECODE else SimMixed
            self.workers[name] = kind(network, name, epoch)

    def _start_router(self, name: str) -> None:
        life = f"{name}.{next(self._lives)}"
        router = SimRouter(self.network, life, self._find, self._rules, self._access, self.redis)
        self.routers[name] = router
        router.hear_list(self._list())

    def _find(self, worker: WorkerId) -> SimWorker | None:
        found = self.workers[worker.name]
        return found if found.is_alive and found.id == worker else None

    def _find_decode(self, worker: WorkerId) -> SimDecode | None:
        found = self._find(worker)
        return found if isinstance(found, SimDecode) else None

    def _list(self) -> list[WorkerRecord]:
        return [
            WorkerRecord(
                worker=worker.id.name,
                endpoint=worker.life,
                epoch=worker.id.epoch,
                role=worker.role.value,
                draining=worker.is_draining,
            )
            for worker in self.workers.values()
            if worker.is_alive
        ]

    def _tell_routers(self) -> None:
        """Each hears of it in its own time, of what is true by then."""
        for router in self.routers.values():
            self.network.after(self.random.random(), self._tell, router)

    def _tell(self, router: SimRouter) -> None:
        router.hear_list(self._list())

    # Trouble

    def _make_trouble(self) -> None:
        self.network.after(_TROUBLE_EVERY_S, self._make_trouble)
        if self.random.random() < self.network.faults.trouble:
            kinds = (
                self._kill_worker,
                self._drain_worker,
                self._stall_worker,
                self._cut_stream,
                self._cut_handoff,
                self._kill_router,
                self._lose_client,
            )
            self.random.choice(kinds)()

    def _some_worker(self) -> SimWorker:
        return self.random.choice([w for w in self.workers.values() if w.is_alive])

    def _kill_worker(self) -> None:
        self.kill(self._some_worker())

    def kill(self, worker: SimWorker, away_s: float | None = None) -> None:
        self.network.note(f"{worker.life} dies")
        worker.die()
        self._tell_routers()
        self.network.after(
            self.random.random() * 3 if away_s is None else away_s, self._restart, worker.id.name
        )

    def _restart(self, name: str) -> None:
        self._start_worker(name)
        self._tell_routers()

    def _drain_worker(self) -> None:
        worker = self._some_worker()
        self.network.note(f"{worker.life} is drained")
        worker.is_draining = True
        self._tell_routers()
        self.network.after(1.0 + 3 * self.random.random(), self._end_drained, worker)

    def _end_drained(self, worker: SimWorker) -> None:
        if worker.is_alive and not worker.is_at_rest:
            self.network.after(0.5, self._end_drained, worker)
        elif worker.is_alive:
            self.kill(worker)

    def _stall_worker(self) -> None:
        worker = self._some_worker()
        self.network.note(f"{worker.life} hangs")
        worker.stalled_until = self.network.now + self.random.choice([0.3, 3.0, 14.0])

    def _cut_stream(self) -> None:
        worker = self._some_worker()
        if worker.attached:
            self.network.note(f"a router loses {worker.life}")
            self.random.choice(worker.attached).cut()

    def _cut_handoff(self) -> None:
        streams = list(self._some_worker().handoffs())
        if streams:
            self.random.choice(streams).cut()

    def _kill_router(self) -> None:
        name = self.random.choice(list(self.routers))
        if self.routers[name].is_alive:
            self.kill_router(name)

    def kill_router(self, name: str) -> None:
        router = self.routers[name]
        self.network.note(f"{router.name} dies")
        router.die()
        for client in self.clients:
            self.network.after(self.network.delay(), client.lose, router)
        self.network.after(self.random.random() * 2, self._start_router, name)

    def _lose_client(self) -> None:
        running = [client for client in self.clients if not client.outcome]
        if running:
            self.random.choice(running).leave()

    # The story

    async def until_all_have_ended(self, limit_s: float = 900.0) -> None:
        end = self.network.now + limit_s
        while not all(client.outcome for client in self.clients):
            lost = [client.name for client in self.clients if not client.outcome]
            assert self.network.now < end, f"lost: {lost}; {self.network.journal[-20:]}"
            assert not self.defects, self.defects
            await asyncio.sleep(0.5)

    async def come_to_rest(self) -> None:
        """No more trouble; leases and tombstones end, and what routers missed is told as with each
        step."""
        self.network.faults = Faults()
        await asyncio.sleep(150.0)
        for _ in range(3):
            for worker in self.workers.values():
                worker.tell_again()
            await asyncio.sleep(2.0)
        assert not self.defects, self.defects
