"""A trace on a cluster in virtual time: the production decisions, the durations of a profile.

Covers: putting workers, network and router together, running them, samples, the result.
Does not cover: what to make of the result (``tuner.simulate.summary``).
"""

from __future__ import annotations

from collections.abc import Callable

from core.errors import InvalidField
from core.latency_profile import FEMTOSECONDS, femtoseconds
from core.request import Role
from tuner.simulate.agenda import Agenda
from tuner.simulate.cluster_model import ClusterModel, WorkerModel
from tuner.simulate.decode_replica import DecodeReplica
from tuner.simulate.garbage import rare_collection
from tuner.simulate.miss_limit import MissLimit
from tuner.simulate.network import Network
from tuner.simulate.prefill_replica import PrefillReplica
from tuner.simulate.recorder import GapRecorder, RequestRecorder, SampleTimes
from tuner.simulate.requests import RequestTrace
from tuner.simulate.result import SimulationResult
from tuner.simulate.router_side import SimulatedRouter
from tuner.simulate.run_board import RunBoard
from tuner.simulate.shared_host import SharedHost

_FIRST_SAMPLES = 240
_SHORTEST_SAMPLE_S = 0.1
# How many events happen between two calls of ``progress``.
_EVENTS_PER_REPORT = 4096

Replica = PrefillReplica | DecodeReplica


def simulate(
    trace: RequestTrace,
    cluster: ClusterModel,
    *,
    seed: int = 0,
    step_by_step: bool = False,
    until_s: float | None = None,
    miss_limit: MissLimit | None = None,
    progress: Callable[[float], None] | None = None,
) -> SimulationResult:
    """Runs ``trace`` until every request has an outcome, or for ``until_s`` seconds, or until a
    sample finds that ``miss_limit`` is passed.

    The same (trace, cluster, seed) gives the same result. ``step_by_step`` takes every step of
    every worker by itself, which is slow and gives the same. ``progress`` is told the share of
    requests that have ended, 0 to 1. Raises ``InvalidField`` for a cluster that can't be built.
    """
    with rare_collection():
        simulation = Simulation(
            trace, cluster, seed=seed, step_by_step=step_by_step, miss_limit=miss_limit
        )
        simulation.run(until_s, progress)
        return simulation.result()


class Simulation:
    """The whole of it. ``workers`` in the order of the cluster's groups."""

    def __init__(
        self,
        trace: RequestTrace,
        cluster: ClusterModel,
        *,
        seed: int = 0,
        step_by_step: bool = False,
        miss_limit: MissLimit | None = None,
    ) -> None:
        _check(cluster)
        self._miss_limit = miss_limit
        self._is_decided = False
        self._step_by_step = step_by_step
        self._trace = trace
        self._agenda = Agenda()
        self._gaps = GapRecorder()
        self._requests = RequestRecorder(trace)
        self._network = Network(
            self._agenda, cluster.message_s, cluster.transfer, cluster.block_size
        )
        self._host = SharedHost(self._agenda)
        models = [model for model in cluster.workers for _ in range(model.count)]
        self._board = RunBoard([model.num_blocks for model in models])
        self.workers = tuple(self._new_worker(i, m, cluster) for i, m in enumerate(models))
        self._network.router = SimulatedRouter(
            trace, cluster, self.workers, self._board, self._agenda, self._requests, seed
        )
        interval = max(_SHORTEST_SAMPLE_S, trace.duration_s / _FIRST_SAMPLES)
        self._sample_times = SampleTimes(femtoseconds(interval))
        self._agenda.at_last(self._sample_times.interval, self._sample, None)

    def _new_worker(self, number: int, model: WorkerModel, cluster: ClusterModel) -> Replica:
        host = None if model.share is None else self._host
        parts = (number, model, cluster, self._agenda, self._network, self._gaps)
        if model.role is Role.PREFILL:
            prefill = PrefillReplica(*parts, host)
            self._network.add_prefill(prefill.name, prefill.take)
            return prefill
        decode = DecodeReplica(*parts, self._board, host, step_by_step=self._step_by_step)
        self._network.add_decode(number, decode.name, decode.take)
        return decode

    def run(
        self, until_s: float | None = None, progress: Callable[[float], None] | None = None
    ) -> None:
        """Goes on until nothing is left to happen, or up to ``until_s``."""
        agenda = self._agenda
        end = None if until_s is None else femtoseconds(until_s)
        while not (agenda.is_over or self._is_decided):
            if end is not None and agenda.next_time() > end:
                break
            agenda.happen()
            if progress is not None and agenda.count % _EVENTS_PER_REPORT == 0:
                progress(self._requests.ended / len(self._trace))
        if progress is not None:
            progress(self._requests.ended / len(self._trace))

    @property
    def _ended_s(self) -> float:
        over = self._requests.ended == len(self._trace)
        return self._requests.ended_at_s if over else self._agenda.now / FEMTOSECONDS

    def _sample(self, _: None) -> None:
        for worker in self.workers:
            worker.sample()
        if self._sample_times.taken():
            for worker in self.workers:
                worker.recorder.thin_out()
        if self._miss_limit is not None:
            self._is_decided = self._requests.has_passed(self._miss_limit, self._agenda.now_s)
        time = self._agenda.now + self._sample_times.interval
        self._agenda.at_last(time, self._sample, None)

    def result(self) -> SimulationResult:
        return self._requests.result(
            self._gaps.result(),
            [w.recorder.result(w.brain.counters, w.busy) for w in self.workers],
            self._ended_s,
            self._network.transferred_tokens,
            self._network.transfer_busy / FEMTOSECONDS,
            self._agenda.count,
            self._is_decided,
        )


def _check(cluster: ClusterModel) -> None:
    if not any(model.role.decodes and model.count for model in cluster.workers):
        raise InvalidField("workers", cluster.workers, "one or more must decode")
    if cluster.is_disaggregated and cluster.transfer is None:
        raise InvalidField("transfer", None, "edges from prefill workers need a model")
    if any(m.share is not None and m.engine.shape.pipeline > 1 for m in cluster.workers):
        raise InvalidField("share", cluster.workers, "only workers of one stage share a host")
    names = [(m.role, m.count) for m in cluster.workers if m.count < 0]
    if names:
        raise InvalidField("count", names, "must be 0 or more")
