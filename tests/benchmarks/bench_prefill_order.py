"""Orders of prompts on one prefill worker, simulated: who gets the first token in time?

The production scheduler in virtual time, with its own order and with others in its place. Prompts
are those of `crossdock bench` (80 % of 150 to 250 tokens, 20 % of 1,300 to 1,700), Poisson, all
distinct, each handed over as soon as it is complete. A step takes a fixed time and its FLOPs at
the given rate: 2 × 106 million parameters for each token, and attention over its context in 30
layers of 9 heads of 64 (SmolLM2-135M). Nothing is measured here: it compares decisions.

    PYTHONPATH=. python tests/benchmarks/bench_prefill_order.py --gflops 780 --rates 2,3.3,4,5
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from core.block_pool import BlockPool
from core.prefill_order import PATIENCE, PendingPrefill, PrefillOrder
from core.request import AttemptKey, RequestKey, SamplingParams
from core.step import SampledToken, StepPlan, StepResult
from prefill_worker.scheduler import PrefillScheduler

BLOCK_SIZE = 16
CHUNK = 256
STEP_OVERHEAD_S = 0.004
FLOP_PER_TOKEN = 2 * 106e6
FLOP_PER_TOKEN_OF_CONTEXT = 4 * 30 * 9 * 64

Order = Callable[[list[PendingPrefill], PrefillOrder, float], list[PendingPrefill]]


def first_come(
    pending: list[PendingPrefill], order: PrefillOrder, now: float
) -> list[PendingPrefill]:
    return pending


def shortest_first(
    pending: list[PendingPrefill], order: PrefillOrder, now: float
) -> list[PendingPrefill]:
    """The same aging as ours."""
    aged = [p for p in pending if p.is_aged]
    return [*aged, *sorted((p for p in pending if not p.is_aged), key=lambda p: p.remaining)]


def least_slack(
    pending: list[PendingPrefill], order: PrefillOrder, now: float
) -> list[PendingPrefill]:
    """The same aging; what can't be in time any more comes last."""

    def slack(p: PendingPrefill) -> float:
        return p.deadline - now - p.remaining * order.seconds_per_token

    aged = [p for p in pending if p.is_aged]
    others = [p for p in pending if not p.is_aged]
    in_time = sorted((p for p in others if slack(p) >= 0), key=slack)
    return [*aged, *in_time, *(p for p in others if slack(p) < 0)]


class OtherOrder(PrefillOrder):
    """All that the production order keeps account of, sorted in another way."""

    def __init__(self, ttft: float, rule: Order) -> None:
        super().__init__(ttft)
        self._rule = rule

    def sequence(self, now: float) -> Iterator[PendingPrefill]:
        by_arrival = sorted(super().sequence(now), key=lambda p: p.number)
        return iter(self._rule(by_arrival, self, now))


ORDERS: dict[str, Order | None] = {
    "first come, first served": first_come,
    f"shortest remaining first, patience {PATIENCE}": shortest_first,
    f"least slack first, patience {PATIENCE}": least_slack,
    f"most in time (crossdock), patience {PATIENCE}": None,
}


@dataclass
class Machine:
    """A prefill worker in virtual time (seconds)."""

    flops: float
    ttft: float
    rule: Order | None
    now: float = 0.0
    arrived: dict[int, tuple[float, int]] = field(default_factory=dict)
    waited: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.scheduler = PrefillScheduler(
            BlockPool(20_000, BLOCK_SIZE),
            max_num_seqs=32,
            max_num_batched_tokens=CHUNK,
            eos=frozenset(),
            ttft=self.ttft,
        )
        if self.rule is not None:
            self.scheduler._order = OtherOrder(self.ttft, self.rule)

    def ask(self, number: int, at: float, length: int) -> None:
        self.arrived[number] = (at, length)
        tokens = np.full(length, number, dtype=np.int32)
        key = AttemptKey(RequestKey("default", str(number)), 1)
        self.scheduler.add(key, tokens, SamplingParams(2), 0, at)

    def step(self) -> None:
        for key in self.scheduler.start_next(self.now):
            self.scheduler.ticketed(key)
        plan = self.scheduler.plan_step(self.now)
        assert plan is not None, "a worker with prompts has always something to do"
        seconds = self._seconds(plan)
        self.now += seconds
        drawn = {p.sequence_id: (SampledToken(7),) for p in plan.slices if p.samples}
        for chunk in self.scheduler.complete_step(plan, StepResult(drawn), seconds):
            if chunk.first_tokens:
                self.scheduler.end(chunk.key)
                number = int(chunk.key.request.request_id)
                self.waited[number] = self.now - self.arrived[number][0]

    def _seconds(self, plan: StepPlan) -> float:
        context = sum(len(p.tokens) * (p.start + p.end) / 2 for p in plan.slices)
        flop = FLOP_PER_TOKEN * plan.num_tokens + FLOP_PER_TOKEN_OF_CONTEXT * context
        return STEP_OVERHEAD_S + flop / self.flops


def arrivals(rate: float, duration: float, seed: int) -> list[tuple[float, int]]:
    """(time, prompt tokens) of Poisson arrivals."""
    rng = random.Random(seed)
    out = []
    at = rng.expovariate(rate)
    while at < duration:
        long = rng.random() < 0.2
        out.append((at, rng.randint(1300, 1700) if long else rng.randint(150, 250)))
        at += rng.expovariate(rate)
    return out


def simulate(machine: Machine, load: list[tuple[float, int]]) -> None:
    coming = 0
    while len(machine.waited) < len(load):
        if len(machine.waited) == coming:
            machine.now = max(machine.now, load[coming][0])
        while coming < len(load) and load[coming][0] <= machine.now:
            machine.ask(coming + 1, *load[coming])
            coming += 1
        machine.step()


def row(name: str, machines: list[Machine], ttft: float) -> str:
    waits = np.array([w for m in machines for w in m.waited.values()])
    long = np.array([m.arrived[n][1] > 1000 for m in machines for n in m.waited])
    in_time = waits <= ttft
    shares = [100 * part.mean() for part in (in_time, in_time[~long], in_time[long])]
    times = [np.percentile(waits, 50), np.percentile(waits, 99), waits[long].max()]
    cells = [f"{share:.0f}%" for share in shares] + [f"{1000 * t:,.0f}" for t in times]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gflops", type=float, default=780, help="what prefill reaches")
    parser.add_argument("--rates", default="2,3.3,4,5", help="requests per second")
    parser.add_argument("--ttft", type=float, default=1.0, help="seconds")
    parser.add_argument("--duration", type=float, default=200, help="seconds of arrivals")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    for rate in map(float, args.rates.split(",")):
        machine_and_load = f"{args.gflops:g} GFLOP/s, {rate:g} requests/s"
        print(f"\n{machine_and_load}, first token within {args.ttft:g} s\n")
        print("| order | in time | short | long | TTFT p50 | p99 | longest wait of a long one |")
        print("|---|---|---|---|---|---|---|")
        for name, rule in ORDERS.items():
            machines = [Machine(args.gflops * 1e9, args.ttft, rule) for _ in range(args.seeds)]
            for seed, machine in enumerate(machines):
                simulate(machine, arrivals(rate, args.duration, seed))
            print(row(name, machines, args.ttft))


if __name__ == "__main__":
    main()
