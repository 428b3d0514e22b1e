"""Traffic as it was simulated, sent to a real cluster as `crossdock bench` would."""

from __future__ import annotations

import secrets
from pathlib import Path

import uvloop

from cluster.interruption import Interrupted
from cluster.stop_signal import StopSignal
from core.errors import InternalError
from tuner.load.arrivals import ArrivalKind
from tuner.load.bench import PromptOptions, run_bench
from tuner.load.metrics import RunResult
from tuner.load.openai_target import OpenAIOptions, OpenAITarget
from tuner.load.plan import Plan, plan_rate
from tuner.load.prompts import PromptFormat
from tuner.load.runner import RunLimits
from tuner.load.workload import PromptPart, TokenRange, Workload
from tuner.simulate.requests import RequestTrace
from tuner.validate.plan import plan_requests

_LIMITS = RunLimits(request_timeout_s=600.0, drain_s=120.0)
_CONTENT_SEEDS = 2**32
# Opens the edges between all workers, and runs every kernel for a first time.
_WARM_UP = Workload((PromptPart(1.0, TokenRange(48, 300)),), TokenRange(8, 16))
_WARM_UP_RATE = 8.0
_WARM_UP_S = 2.0


def warm_up(url: str, tokenizer: Path) -> None:
    """A few requests that nobody measures. ``tokenizer``: the model's folder."""
    plan = plan_rate(ArrivalKind.CONSTANT, _WARM_UP_RATE, _WARM_UP_S, _WARM_UP, seed=0)
    _run(url, tokenizer, plan)


def replay(url: str, tokenizer: Path, trace: RequestTrace) -> RunResult:
    """``trace`` at its own rate. Prompts are new each time, so that no cache of a run before helps.

    Raises ``Interrupted`` if it was, ``InternalError`` if nothing was answered.
    """
    result = _run(url, tokenizer, plan_requests(trace))
    if not any(record.is_complete for record in result.records):
        detail = result.records[0].detail if result.records else "nothing was sent"
        message = f"no request of {trace.name} was answered: {detail}"
        raise InternalError(message, reason="NOTHING_ANSWERED")
    return result


def _run(url: str, tokenizer: Path, plan: Plan) -> RunResult:
    seed = secrets.randbelow(_CONTENT_SEEDS)
    prompts = PromptOptions(PromptFormat.IDS, seed, lambda model: tokenizer)
    stop = StopSignal()
    try:
        result: RunResult = uvloop.run(_measure(url, prompts, plan, stop))
    finally:
        if stop.number is not None:
            raise Interrupted(stop.number)
    return result


async def _measure(url: str, prompts: PromptOptions, plan: Plan, stop: StopSignal) -> RunResult:
    target = OpenAITarget(OpenAIOptions(url))
    stop.install()
    try:
        done = await run_bench(target, prompts, [plan], _LIMITS, stop.drain, lambda text: None)
        return done.runs[0]
    finally:
        await target.close()
        stop.restore()
