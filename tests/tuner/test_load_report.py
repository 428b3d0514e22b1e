"""A whole benchmark against a server in this process: the report, and what it warns of."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from aiohttp import web
from openai_events import StartServer, answer_well, sse, start_events, text_event

from core.errors import CrossdockError, InvalidField, RequestCancelled, Unavailable
from tuner.load.arrivals import ArrivalKind
from tuner.load.bench import BenchResult, PromptOptions, run_bench
from tuner.load.metrics import RunResult, Slo
from tuner.load.openai_target import OpenAIOptions, OpenAITarget
from tuner.load.plan import Plan, plan_rate
from tuner.load.prompts import PromptFormat
from tuner.load.records import INTERRUPTED, RequestRecord, Usage
from tuner.load.report import Report, Settings, make_report
from tuner.load.runner import RunLimits
from tuner.load.target import ServedModel
from tuner.load.workload import PromptPart, TokenRange, Workload

WORKLOAD = Workload((PromptPart(1.0, TokenRange(20, 30)),), TokenRange(3, 5))
PLANS = [plan_rate(ArrivalKind.CONSTANT, 100.0, 0.05, WORKLOAD, seed) for seed in (4, 9)]
LIMITS = RunLimits(request_timeout_s=60.0, drain_s=60.0)


def settings(max_concurrency: int | None = None) -> Settings:
    return Settings(
        target="http://server",
        protocol="completions",
        prompt_format="ids",
        arrivals="constant",
        workload=str(WORKLOAD),
        content_seed=1,
        slo=Slo(100.0, 100.0),
        max_concurrency=max_concurrency,
    )


async def measure(
    url: str,
    tokenizer: Path | None,
    kind: PromptFormat = PromptFormat.IDS,
    stop: asyncio.Event | None = None,
    timeout_s: float = 60.0,
) -> BenchResult:
    target = OpenAITarget(OpenAIOptions(url))
    prompts = PromptOptions(kind, 1, lambda model: tokenizer)
    limits = RunLimits(timeout_s, 60.0)
    steps: list[str] = []
    try:
        stop = stop or asyncio.Event()
        return await run_bench(target, prompts, PLANS, limits, stop, steps.append)
    finally:
        await target.close()


async def test_every_request_of_every_seed_is_measured(
    openai_server: StartServer, word_tokenizer: Path
) -> None:
    result = await measure(await openai_server(answer_well), word_tokenizer)
    report = make_report(settings(), PLANS, result)
    planned = [request for plan in PLANS for request in plan.requests]
    total = report.total
    assert (total.planned, total.completed, total.failed) == (10, 10, 0)
    assert total.input_tokens == sum(request.prompt_tokens for request in planned)
    assert total.output_tokens == sum(request.output_tokens for request in planned)
    assert total.goodput.share == 1.0
    assert [summary.completed for summary in report.per_seed] == [5, 5]
    data = json.loads(json.dumps(report.as_json()))
    assert [one["seed"] for one in data["per_seed"]] == [4, 9]
    assert data["total"]["ttft_s"].keys() == {"mean", "p50", "p90", "p99", "max"}
    columns, rows = report.table()
    assert columns == ("", "all seeds", "seed 4", "seed 9")
    assert ("completed", "10", "5", "5") in rows
    assert {len(row) for row in rows} == {4}


async def test_tokens_that_the_server_adds_are_taken_off_the_prompts(
    openai_server: StartServer, word_tokenizer: Path
) -> None:
    from text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(word_tokenizer)

    async def with_template(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        response = await start_events(request)
        length = len(tokenizer.encode(body["prompt"])) + 7
        usage = {"prompt_tokens": length, "completion_tokens": body["max_tokens"]}
        part = text_event("x" * body["max_tokens"], "length")
        await response.write(sse(part | {"usage": usage}, "[DONE]"))
        return response

    url = await openai_server(with_template)
    result = await measure(url, word_tokenizer, PromptFormat.TEXT)
    assert result.overhead == 7
    for record in result.runs[0].records:
        assert record.usage is not None
        assert record.usage.prompt_tokens == record.wanted_prompt_tokens


async def test_failures_are_listed_by_kind(
    openai_server: StartServer, word_tokenizer: Path
) -> None:
    calls = iter(range(1_000))

    async def every_second(request: web.Request) -> web.StreamResponse:
        if next(calls) % 2:
            return web.json_response({"error": {"message": "full"}}, status=429)
        return await answer_well(request)

    report = make_report(
        settings(), PLANS, await measure(await openai_server(every_second), word_tokenizer)
    )
    assert report.total.completed == 5
    assert report.errors() == [("HTTP_429", "5", "full")]
    assert report.total.goodput.share == 0.5


async def test_a_server_that_refuses_the_first_request_is_not_measured(
    openai_server: StartServer, word_tokenizer: Path
) -> None:
    async def refuse(request: web.Request) -> web.Response:
        return web.json_response({"error": {"message": "no"}}, status=401)

    with pytest.raises(CrossdockError, match="no"):
        await measure(await openai_server(refuse), word_tokenizer)


async def test_a_silent_server_and_a_user_who_gives_up(
    openai_server: StartServer, word_tokenizer: Path
) -> None:
    stop = asyncio.Event()

    async def hang(request: web.Request) -> web.Response:
        stop.set()
        await asyncio.Event().wait()
        raise AssertionError

    url = await openai_server(hang)
    with pytest.raises(Unavailable, match="no answer within"):
        await measure(url, word_tokenizer, timeout_s=0.0)
    with pytest.raises(RequestCancelled):
        await measure(url, word_tokenizer, stop=stop)


async def test_without_a_tokenizer_there_are_no_prompts(openai_server: StartServer) -> None:
    url = await openai_server(answer_well)
    with pytest.raises(InvalidField, match="--tokenizer"):
        await measure(url, None)


def result_of(*records: RequestRecord, interrupted: bool = False) -> BenchResult:
    run = RunResult(4, records, 10.0, 10.0, interrupted)
    return BenchResult(ServedModel("tiny", max_model_len=30), 0, (run,))


def answered(lag_s: float = 0.0, usage: Usage | None = None) -> RequestRecord:
    return RequestRecord(
        seed=4,
        index=0,
        planned_s=0.0,
        wanted_prompt_tokens=20,
        wanted_output_tokens=2,
        sent_s=lag_s,
        ended_s=2.0,
        chunk_times_s=(1.0, 2.0),
        chunk_tokens=(None, None),
        usage=usage,
    )


FINE = Usage(20, 2)
SHORT_PLAN = [Plan(4, 10.0, PLANS[0].requests[:0])]


def warnings(result: BenchResult, plans: list[Plan], cap: int | None = None) -> Report:
    return make_report(settings(cap), plans, result)


def test_a_clean_run_warns_of_nothing() -> None:
    assert warnings(result_of(answered(usage=FINE)), SHORT_PLAN).warnings == ()


@pytest.mark.parametrize(
    ("result", "plans", "cap", "words"),
    [
        (result_of(answered(0.2, FINE)), SHORT_PLAN, None, "could not keep up"),
        (result_of(answered(0.2, FINE)), SHORT_PLAN, 3, "no open loop"),
        (result_of(answered()), SHORT_PLAN, None, "without usage"),
        (result_of(answered(usage=Usage(20, 1))), SHORT_PLAN, None, "1 of 1 answers were shorter"),
        (result_of(answered(usage=Usage(25, 2))), SHORT_PLAN, None, "is --tokenizer the model's"),
        (result_of(answered(usage=FINE)), PLANS[:1], None, "longer than the model's 30 tokens"),
        (result_of(answered(usage=FINE), interrupted=True), SHORT_PLAN, None, "interrupted"),
    ],
)
def test_what_a_reader_must_know(
    result: BenchResult, plans: list[Plan], cap: int | None, words: str
) -> None:
    found = warnings(result, plans, cap).warnings
    assert len(found) == 1
    assert words in found[0]


def test_nothing_measured_is_still_a_report() -> None:
    lost = RequestRecord(4, 0, 0.0, 20, 2, error=INTERRUPTED)
    columns, rows = warnings(result_of(lost), SHORT_PLAN).table()
    assert columns == ("", "seed 4")
    assert ("TTFT p99 ms", "–") in rows
