"""The cluster that is simulated: its workers, what they can hold, and how they are connected.

Plain values. Does not cover: where the times come from (``core.latency_profile``).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from core.config import DEFAULT_TPOT_S
from core.handoff import LeaseTimes
from core.latency_profile import EngineProfile, Interference, StepModel, TransferModel
from core.request import Role
from router.access_rules import AccessRules
from router.flow.retries import RetryLimits
from router.placement import Disaggregation
from router.routing.cost_model import ClusterCosts, EngineCosts
from router.routing.policies.policy import PolicyName
from router.routing.routing_rules import RoutingRules
from router.slo import SloTargets

_NO_TRANSFER = TransferModel(0, 0)


@dataclass(frozen=True, slots=True)
class HostShare:
    """A place on a host where others compute, too. ``core``: the id of one that is shared with
    others, None if there is none. How long steps take while others compute on other cores
    (``beside``), and while another one does on the same core (``crowded``).

    ``interference``: if measured, takes the place of ``beside``; ``part``: of all cores of the host
    but those of one other worker, the share that this one computes on.
    """

    core: int | None
    beside: StepModel
    crowded: StepModel
    interference: Interference | None = None
    part: float = 1.0


@dataclass(frozen=True, slots=True)
class WorkerModel:
    """``count`` equal workers. ``num_blocks``: of the KV pool of each. ``engine``: while nobody
    else computes on its host; ``share``: None if nobody else is there."""

    role: Role
    count: int
    engine: EngineProfile
    num_blocks: int
    max_num_seqs: int
    max_num_batched_tokens: int
    share: HostShare | None = None

    @property
    def costs(self) -> EngineCosts:
        """As the router sees it: while others compute beside it."""
        step = self.engine.step if self.share is None else self.share.beside
        return EngineCosts(step, self.max_num_batched_tokens, self.engine.shape.pipeline)


@dataclass(frozen=True, slots=True)
class ClusterModel:
    """``transfer``: of an edge between a prefill and a decode worker; None where there are no
    prefill workers. ``message_s``, ``request_s``: see ``core.latency_profile.LatencyProfile``.
    ``ttft_s``: what the workers' order of prompts aims at, and with ``tpot_s`` the policy of the
    router, which predicts by the times that are simulated. ``max_model_len``: tokens of a prompt
    and its answer; None: what a pool holds. ``access``: who may ask for how much."""

    workers: tuple[WorkerModel, ...]
    block_size: int
    transfer: TransferModel | None
    message_s: float
    request_s: float
    ttft_s: float
    tpot_s: float = DEFAULT_TPOT_S
    disaggregation: Disaggregation = Disaggregation.AUTO
    policy: PolicyName = PolicyName.KV_AWARE
    times: LeaseTimes = field(default_factory=LeaseTimes)
    limits: RetryLimits = field(default_factory=RetryLimits)
    max_model_len: int | None = None
    access: AccessRules = field(default_factory=AccessRules)

    @property
    def is_disaggregated(self) -> bool:
        return any(worker.role is Role.PREFILL for worker in self.workers)

    @property
    def rules(self) -> RoutingRules:
        """Of the router. Where replicas of a pool differ, it takes them all for the first one."""
        decode = next(worker.costs for worker in self.workers if worker.role.decodes)
        prefill = (w.costs for w in self.workers if w.role is Role.PREFILL)
        transfer = self.transfer or _NO_TRANSFER
        costs = ClusterCosts(next(prefill, decode), decode, transfer, self.message_s)
        slo = SloTargets(self.ttft_s, self.tpot_s)
        return RoutingRules(self.disaggregation, self.policy, slo, costs)
