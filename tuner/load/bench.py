"""One benchmark from end to end: reach the server, learn its model, run every plan.

Covers what lies between the options of `crossdock bench` and its report. Does not cover the
command line itself, nor printing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from core.errors import InvalidField, RequestCancelled, Unavailable
from text.tokenizer import Tokenizer
from tuner.load.metrics import RunResult
from tuner.load.plan import Plan
from tuner.load.prompts import PromptFormat, PromptMaker
from tuner.load.records import INTERRUPTED, TIMEOUT
from tuner.load.runner import RunLimits, run_plan
from tuner.load.target import ServedModel, Target
from tuner.load.vocabulary import ids_below, ordinary_ids

# Of the request that is sent before any is measured.
_CHECK_PROMPT_TOKENS = 32
_CHECK_OUTPUT_TOKENS = 2

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """``find_tokenizer``: the folder of a tokenizer for a served model, None if there is none."""

    format: PromptFormat
    content_seed: int
    find_tokenizer: Callable[[str], Path | None]


@dataclass(frozen=True, slots=True)
class BenchResult:
    """``overhead``: tokens that the server adds to each prompt by itself."""

    model: ServedModel
    overhead: int
    runs: tuple[RunResult, ...]


async def run_bench(
    target: Target,
    prompts: PromptOptions,
    plans: Sequence[Plan],
    limits: RunLimits,
    stop: asyncio.Event,
    progress: Callable[[str], None],
) -> BenchResult:
    """Raises ``CrossdockError`` if the server can't be measured like this; a request that fails
    later is part of the result. ``stop`` ends the run with what was measured so far."""
    meeting = _meet(target, prompts, limits.request_timeout_s)
    model, maker, overhead = await _unless_stopped(meeting, stop)
    runs = []
    for plan in plans:
        if stop.is_set():
            break
        progress(f"seed {plan.seed}: {len(plan.requests)} requests in {plan.window_s:.0f} s")
        runs.append(await run_plan(target, maker.make, plan, limits, stop))
    return BenchResult(model, overhead, tuple(runs))


async def _meet(
    target: Target, prompts: PromptOptions, timeout_s: float
) -> tuple[ServedModel, PromptMaker, int]:
    """The model, what makes prompts for it, and the tokens that the server adds to them."""
    try:
        async with asyncio.timeout(timeout_s):
            model = await target.describe()
            maker = await asyncio.to_thread(_new_maker, model, prompts)
            overhead = await _check(target, maker)
    except TimeoutError:
        message = f"the server gave no answer within {timeout_s:g} s"
        raise Unavailable(message, reason=TIMEOUT) from None
    return model, maker.with_overhead(overhead), overhead


async def _unless_stopped(work: Coroutine[Any, Any, Result], stop: asyncio.Event) -> Result:
    tasks = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if tasks[0].done():
            return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    raise RequestCancelled("stopped before any request was measured", reason=INTERRUPTED)


def _new_maker(model: ServedModel, options: PromptOptions) -> PromptMaker:
    folder = options.find_tokenizer(model.name)
    if folder is not None:
        tokenizer = Tokenizer.load(folder)
        as_text = options.format is PromptFormat.TEXT
        vocabulary = ordinary_ids(tokenizer)
        if model.vocab_size is not None:
            vocabulary = vocabulary[vocabulary < model.vocab_size]
        return PromptMaker(vocabulary, options.content_seed, tokenizer if as_text else None)
    if model.vocab_size is None or options.format is PromptFormat.TEXT:
        fix = f"name the folder that holds the tokenizer.json of model {model.name!r}"
        raise InvalidField("--tokenizer", None, fix)
    vocabulary = ids_below(model.vocab_size, without=model.eos_token_ids)
    return PromptMaker(vocabulary, options.content_seed)


async def _check(target: Target, maker: PromptMaker) -> int:
    """Send one request to see that they are welcome; how many tokens the server adds to it."""
    prompt = maker.sample(_CHECK_PROMPT_TOKENS)
    answer = await target.check(prompt, _CHECK_OUTPUT_TOKENS)
    if answer.usage is None:
        return 0
    return max(0, answer.usage.prompt_tokens - maker.count(prompt))
