"""Routing policies on a recorded trace, in the simulator: what each reuses, and what users wait.

By default as Dynamo's replay of Mooncake's conversation trace: 16 colocated workers that hold
1,048,576 tokens each, in blocks of 64, about as fast as an H100 with a model of 8 billion
parameters. `--against` names the policy to compare with.

    PYTHONPATH=.:protos python tests/benchmarks/bench_policies.py mooncake_conversation.jsonl
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import numpy as np
from bench_simulator import make_cluster, make_trace, trace_and_cluster

from router.routing.policies.policy import PolicyName
from tuner.simulate.result import SimulationResult
from tuner.simulate.simulator import simulate


@dataclass(frozen=True)
class Told:
    """Of one policy; times in ms."""

    reused: float
    ttft_mean: float
    ttft_p50: float
    ttft_p99: float
    tpot_p50: float
    good: float


def tell(result: SimulationResult, ttft_s: float, tpot_s: float) -> Told:
    met = (result.ttft_s <= ttft_s) & ~(result.tpot_s > tpot_s)
    p50, p99 = np.nanpercentile(result.ttft_s, [50, 99]) * 1e3
    return Told(
        float(result.cached_tokens.sum() / result.prompt_tokens.sum()),
        float(np.nanmean(result.ttft_s)) * 1e3,
        float(p50),
        float(p99),
        float(np.nanmedian(result.tpot_s)) * 1e3,
        float(met.mean()),
    )


def main() -> None:
    arguments = parse_arguments()
    trace = make_trace(arguments.trace, arguments.requests)
    cluster = make_cluster(arguments.workers, arguments.prefill, arguments.blocks)
    names = [PolicyName(name) for name in arguments.policies.split(",")]
    against = PolicyName(arguments.against)
    told = {
        name: tell(simulate(trace, replace(cluster, policy=name)), cluster.ttft_s, cluster.tpot_s)
        for name in dict.fromkeys([against, *names])
    }
    print("policy           reused  TTFT mean       p50       p99   TPOT p50  in time")
    for name, row in told.items():
        base = told[against]
        print(
            f"{name.value:15} {row.reused:7.1%} {row.ttft_mean:7.0f} ms {row.ttft_p50:6.0f} ms "
            f"{row.ttft_p99:6.0f} ms {row.tpot_p50:7.2f} ms {row.good:8.2%}   against "
            f"{against.value}: mean {row.ttft_mean / base.ttft_mean - 1:+.0%}, "
            f"p99 {row.ttft_p99 / base.ttft_p99 - 1:+.0%}"
        )


def parse_arguments() -> argparse.Namespace:
    parser = trace_and_cluster(__doc__)
    parser.add_argument("--against", default="round_robin")
    parser.add_argument("--policies", default=",".join(name.value for name in PolicyName))
    return parser.parse_args()


if __name__ == "__main__":
    main()
