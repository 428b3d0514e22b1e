"""The gRPC door, over real sockets, with fake workers behind it."""

import asyncio
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from fake_worker import FakeWorker, cache_events, sequence_output, some_logprobs
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from core.block_hash import block_hashes
from crossdock.client import AsyncClient, Client, ServerError
from crossdock.v1 import inference_pb2, inference_pb2_grpc, worker_pb2
from router.flow.retries import RetryLimits
from router.metrics.metrics import RouterState

SCRIPT = ((10, "hello"), (11, " world"))


def prefill(name: str = "p0", **options: Any) -> FakeWorker:
    return FakeWorker(name, "prefill", **options)


def decode(name: str = "d0", **options: Any) -> FakeWorker:
    return FakeWorker(name, "decode", **options)


async def collect(client: AsyncClient, *args: Any, **options: Any) -> tuple[str, Any]:
    text, complete = "", None
    async for response in client.generate(*args, **options):
        text += response.chunk.text
        if response.WhichOneof("event") == "complete":
            complete = response.complete
    return text, complete


async def responses(client: AsyncClient, *args: Any, **options: Any) -> list[Any]:
    return [response async for response in client.generate(*args, **options)]


async def refused(client: AsyncClient, *args: Any, **options: Any) -> ServerError:
    with pytest.raises(ServerError) as caught:
        await collect(client, *args, **options)
    return caught.value


async def test_a_handed_off_answer_streams_from_the_decode_worker(start_cluster: Any) -> None:
    cluster = await start_cluster(prefill(), decode(script=SCRIPT))
    text, complete = await collect(cluster.client, "hello world", max_tokens=5, seed=3)
    assert text == "hello world"
    assert complete.finish_reason == "stop"
    assert (complete.completion_tokens, complete.cached_tokens) == (2, 16)
    assert complete.prompt_tokens > 0
    timings = complete.timings
    assert (timings.prefill_worker, timings.decode_worker, timings.attempts) == ("p0", "d0", 1)

    opened = await cluster["d0"].got("open")
    assert opened.mode == worker_pb2.Open.HANDOFF
    assert opened.token_ids == b""
    sent = await cluster["p0"].got("prefill")
    assert len(sent.token_ids) == 4 * complete.prompt_tokens
    assert (sent.decode_worker, sent.decode_endpoint) == ("d0", cluster["d0"].endpoint)
    assert (sent.decode_epoch, sent.salt) == (1, opened.salt)
    assert (sent.sampling.max_tokens, sent.sampling.seed, sent.sampling.temperature) == (5, 3, 1.0)


async def test_without_prefill_workers_the_answer_is_local(start_cluster: Any) -> None:
    cluster = await start_cluster(FakeWorker("m0", "mixed", script=SCRIPT))
    _, complete = await collect(cluster.client, token_ids=[5, 6, 7])
    assert complete.timings.prefill_worker == ""
    opened = await cluster["m0"].got("open")
    assert opened.mode == worker_pb2.Open.LOCAL
    assert np.frombuffer(opened.token_ids, "<i4").tolist() == [5, 6, 7]
    assert opened.sampling.max_tokens == 128 - 3


async def test_a_first_token_that_ends_the_request_comes_from_prefill(start_cluster: Any) -> None:
    cluster = await start_cluster(prefill(), decode())
    answer = asyncio.create_task(collect(cluster.client, "hello", max_tokens=1))
    sent = await cluster["p0"].got("prefill")
    cluster["p0"].output(sent.key, [9], "hi", "length")
    text, complete = await answer
    assert (text, complete.finish_reason) == ("hi", "length")
    assert (await cluster["d0"].got("abort")).key == sent.key


async def test_n_answers_stream_side_by_side_and_end_one_by_one(start_cluster: Any) -> None:
    cluster = await start_cluster(prefill(), decode())
    stream = cluster.client.generate("hello", n=2, logprobs=1)
    reading = asyncio.create_task(anext(stream))
    opened = await cluster["d0"].got("open")
    assert (opened.sampling.n, opened.sampling.logprobs) == (2, 1)
    d0, key = cluster["d0"], opened.key
    d0.step(
        sequence_output(key, [7 + i], "ab"[i], cached=16, index=i, logprobs=[some_logprobs(7, 1)])
        for i in (1, 0)
    )
    d0.output(key, [9], "!", "stop", index=1)
    d0.output(key, [9], "?", "length", index=0)
    got = [await reading, *[response async for response in stream]]
    assert [(r.index, r.WhichOneof("event")) for r in got] == [
        (1, "chunk"),
        (0, "chunk"),
        (1, "chunk"),
        (1, "complete"),
        (0, "chunk"),
        (0, "complete"),
    ]
    [logprob] = got[0].chunk.logprobs
    assert (logprob.token_id, logprob.logprob) == (8, -0.5)
    assert [(top.token_id, top.logprob) for top in logprob.top] == [(7, -0.5)]
    completes = [r.complete for r in got if r.HasField("complete")]
    assert [c.finish_reason for c in completes] == ["stop", "length"]
    assert [c.completion_tokens for c in completes] == [2, 2]
    assert [c.cached_tokens for c in completes] == [16, 16]


async def test_first_tokens_that_end_all_answers_come_from_prefill(start_cluster: Any) -> None:
    cluster = await start_cluster(prefill(), decode())
    answer = asyncio.create_task(responses(cluster.client, "hello", n=2, max_tokens=1))
    sent = await cluster["p0"].got("prefill")
    cluster["p0"].step(
        sequence_output(sent.key, [9], "hi", "length", index=index) for index in (0, 1)
    )
    assert [r.index for r in await answer] == [0, 0, 1, 1]
    assert (await cluster["d0"].got("abort")).key == sent.key


async def test_outputs_that_make_no_sense_hurt_nobody(start_cluster: Any) -> None:
    cluster = await start_cluster(decode())
    answer = asyncio.create_task(responses(cluster.client, "hello", n=2))
    opened = await cluster["d0"].got("open")
    for index in (0, 0, 2, 10_000, 1):
        cluster["d0"].output(opened.key, [9], "hi", "stop", index=index)
    assert [r.index for r in await answer] == [0, 0, 1, 1]
    rendered = cluster.router._metrics.render(RouterState()).decode()
    assert "crossdock_worker_defects_total 3.0" in rendered


async def test_logprobs_that_do_not_fit_fail_the_attempt(start_cluster: Any) -> None:
    cluster = await start_cluster(decode())
    answer = asyncio.create_task(collect(cluster.client, "hello", logprobs=0))
    opened = await cluster["d0"].got("open")
    output = sequence_output(opened.key, [9], "hi", logprobs=[some_logprobs(9, 0)] * 2)
    cluster["d0"].step([output])
    again = await cluster["d0"].got("open", count=2)
    cluster["d0"].output(again.key, [9], "done", "stop")
    assert (await answer)[0] == "done"


async def test_all_sampling_fields_reach_both_workers(start_cluster: Any) -> None:
    cluster = await start_cluster(prefill(), decode(script=SCRIPT))
    asked = {
        "n": 2,
        "logprobs": 3,
        "repetition_penalty": 1.5,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.25,
        "min_p": 0.5,
        "seed": 2**40,
    }
    await collect(cluster.client, "hello", logit_bias={5: -100, 7: 1.5}, **asked)
    for message in (await cluster["p0"].got("prefill"), await cluster["d0"].got("open")):
        assert {name: getattr(message.sampling, name) for name in asked} == asked
        assert dict(message.sampling.logit_bias) == {5: -100, 7: 1.5}


async def test_n_goes_to_a_worker_that_runs_as_many(start_cluster: Any) -> None:
    small = decode("d0", script=SCRIPT, max_num_seqs=2)
    large = decode("d1", script=SCRIPT, max_num_seqs=4)
    cluster = await start_cluster(small, large)
    for count in range(1, 5):
        await collect(cluster.client, "hello", n=4)
        await large.got("open", count=count)
    error = await refused(cluster.client, "hello", n=5)
    assert "n = 5: at most 4" in error.message


async def test_closing_the_call_aborts_on_both_workers(start_cluster: Any) -> None:
    cluster = await start_cluster(prefill(), decode())
    stream = cluster.client.generate("hello")
    reading = asyncio.create_task(anext(stream))
    opened = await cluster["d0"].got("open")
    cluster["d0"].output(opened.key, [9], "hi")
    await reading
    await stream.aclose()
    for name in ("p0", "d0"):
        assert (await cluster[name].got("abort")).key == opened.key
    assert cluster.router.dispatcher.idle.is_set()


async def test_the_deadline_reaches_workers_and_client(start_cluster: Any) -> None:
    cluster = await start_cluster(prefill(), decode())
    error = await refused(cluster.client, "hello", timeout=0.3)
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    opened = await cluster["d0"].got("open")
    # On the wire gRPC rounds a deadline up.
    assert 0 < opened.deadline_s <= 0.31
    await cluster["d0"].got("abort")
    await cluster["p0"].got("abort")


async def test_abort_ends_a_running_request(start_cluster: Any) -> None:
    cluster = await start_cluster(prefill(), decode())
    answer = asyncio.create_task(refused(cluster.client, "hello", request_id="mine"))
    await cluster["d0"].got("open")
    await cluster.client.abort("mine")
    error = await answer
    assert (error.code, error.reason) == (grpc.StatusCode.CANCELLED, "ABORTED_BY_CLIENT")
    await cluster["d0"].got("abort")
    with pytest.raises(ServerError, match="NOT_FOUND"):
        await cluster.client.abort("mine")


@pytest.mark.parametrize("victim", ["p0", "d0"])
async def test_a_worker_killed_before_the_first_token_is_replaced(
    start_cluster: Any, victim: str
) -> None:
    cluster = await start_cluster(prefill("p0"), decode("d0"))
    answer = asyncio.create_task(collect(cluster.client, "hello"))
    first = await cluster["p0"].got("prefill")
    spare = prefill("p1") if victim == "p0" else decode("d1")
    cluster.workers[spare.name] = await spare.start()
    await cluster.registry.list(*(worker.record() for worker in cluster.workers.values()))
    await cluster.until(lambda c: spare.name in c.usable())

    await cluster[victim].kill()
    decoder = cluster["d0" if victim == "p0" else "d1"]
    opened = await decoder.got("open", count=2 if victim == "p0" else 1)
    assert opened.key.attempt == first.key.attempt + 1
    sent = await cluster["p1" if victim == "p0" else "p0"].got(
        "prefill", count=1 if victim == "p0" else 2
    )
    assert sent.decode_worker == decoder.name
    decoder.output(opened.key, [9], "done", "stop")
    text, complete = await answer
    assert (text, complete.timings.attempts) == ("done", 2)


async def test_with_the_only_prefill_worker_killed_the_decode_worker_does_it(
    start_cluster: Any,
) -> None:
    cluster = await start_cluster(prefill(), decode())
    answer = asyncio.create_task(collect(cluster.client, "hello"))
    await cluster["p0"].got("prefill")
    await cluster["p0"].kill()
    opened = await cluster["d0"].got("open", count=2)
    assert opened.mode == worker_pb2.Open.LOCAL
    cluster["d0"].output(opened.key, [9], "done", "stop")
    assert (await answer)[0] == "done"


async def test_a_decode_worker_killed_after_tokens_aborts_with_their_number(
    start_cluster: Any,
) -> None:
    cluster = await start_cluster(prefill(), decode("d0"), decode("d1"))
    stream = cluster.client.generate("hello")
    reading = asyncio.create_task(anext(stream))
    sent = await cluster["p0"].got("prefill")
    cluster[sent.decode_worker].output(sent.key, [7, 8, 9], "abc")
    await reading
    await cluster[sent.decode_worker].kill()
    with pytest.raises(ServerError) as caught:
        await anext(stream)
    assert caught.value.code is grpc.StatusCode.ABORTED
    assert caught.value.metadata["tokens_sent"] == "3"


async def test_no_decode_worker_left_is_unavailable_with_a_time_to_retry(
    start_cluster: Any,
) -> None:
    limits = RetryLimits(replacement_patience_s=0.2)
    cluster = await start_cluster(prefill(), decode(), limits=limits)
    answer = asyncio.create_task(refused(cluster.client, "hello"))
    await cluster["d0"].got("open")
    await cluster["d0"].kill()
    error = await answer
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "NO_WORKER")
    assert error.retry_after


async def test_no_room_is_tried_again(start_cluster: Any) -> None:
    cluster = await start_cluster(prefill(), decode())
    answer = asyncio.create_task(collect(cluster.client, "hello"))
    sent = await cluster["p0"].got("prefill")
    cluster["p0"].fail(sent.key, "NO_ROOM")
    opened = await cluster["d0"].got("open", count=2)
    cluster["d0"].output(opened.key, [9], "done", "stop")
    assert (await answer)[0] == "done"


async def test_prompts_go_where_their_prefix_is(start_cluster: Any) -> None:
    p0, p1 = prefill("p0"), prefill("p1")
    cluster = await start_cluster(p0, p1, decode(script=SCRIPT))
    routing = cluster.router.dispatcher.routing
    prompt = list(range(2, 52))
    await collect(cluster.client, token_ids=prompt)
    first = p0 if p0.received else p1
    sent = await first.got("prefill")
    hashes = block_hashes(np.array(prompt, dtype=np.int32), 16, sent.salt)
    events = cache_events(first.epoch, 2, hashes.tolist())
    first.say(worker_pb2.WorkerMessage(cache=events))
    await cluster.until(lambda c: len(routing.caches.index) == 3)
    for count in range(2, 8):
        await collect(cluster.client, token_ids=[*prompt, 5])
        await first.got("prefill", count=count)


async def test_a_request_id_is_taken_while_it_runs_and_after(start_cluster: Any) -> None:
    cluster = await start_cluster(decode())
    answer = asyncio.create_task(collect(cluster.client, "hello", request_id="mine"))
    opened = await cluster["d0"].got("open")
    assert (await refused(cluster.client, "hello", request_id="mine")).code is (
        grpc.StatusCode.ALREADY_EXISTS
    )
    cluster["d0"].output(opened.key, [9], "done", "stop")
    await answer
    error = await refused(cluster.client, "hello", request_id="mine")
    assert error.reason == "REQUEST_ID_TAKEN"


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ({"text": ""}, "text"),
        ({"token_ids": []}, "token_ids"),
        ({"token_ids": [300]}, "token_ids"),
        ({"token_ids": [2**32 - 1]}, "token_ids"),
        ({"token_ids": [5] * 128}, "token_ids"),
        ({"text": "x" * 100_000}, "text"),
        ({"token_ids": [5], "max_tokens": 128}, "max_tokens"),
        ({"token_ids": [5], "max_tokens": 0}, "max_tokens"),
        ({"token_ids": [5], "temperature": -1.0}, "temperature"),
        ({"token_ids": [5], "temperature": float("nan")}, "temperature"),
        ({"token_ids": [5], "n": 0}, "n"),
        ({"token_ids": [5], "n": 17}, "n"),
        ({"token_ids": [5], "n": 2**31 - 1}, "n"),
        ({"token_ids": [5], "logprobs": 21}, "logprobs"),
        ({"token_ids": [5], "presence_penalty": 2.1}, "presence_penalty"),
        ({"token_ids": [5], "logit_bias": {300: 1.0}}, "logit_bias"),
        ({"token_ids": [5], "logit_bias": {5: float("nan")}}, "logit_bias"),
        ({"token_ids": [5], "stop": ["x"] * 10_000}, "stop"),
        ({"token_ids": [5], "stop": [""]}, "stop"),
        ({"token_ids": [5], "stop_token_ids": [300]}, "stop_token_ids"),
        ({"token_ids": [5], "request_id": "x" * 200}, "request_id"),
    ],
)
async def test_bad_input_is_named(start_cluster: Any, call: Any, field: str) -> None:
    cluster = await start_cluster(decode())
    error = await refused(cluster.client, **call)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.metadata["field"] == field
    assert cluster["d0"].received == []


async def test_the_decode_pool_bounds_prompt_and_answer(start_cluster: Any) -> None:
    cluster = await start_cluster(decode(num_blocks=4, script=SCRIPT))
    error = await refused(cluster.client, token_ids=[5] * 20, max_tokens=45)
    assert "64" in error.message
    _, complete = await collect(cluster.client, token_ids=[5] * 20, max_tokens=44)
    assert complete.completion_tokens == 2


async def test_a_token_id_is_shown_as_it_came(start_cluster: Any) -> None:
    cluster = await start_cluster(decode())
    error = await refused(cluster.client, token_ids=[5, 2**32 - 1])
    assert "token_ids = 4294967295: each token id must be between 0 and 299" in error.message


async def test_a_bad_field_comes_with_the_standard_details(start_cluster: Any) -> None:
    cluster = await start_cluster(decode())
    with pytest.raises(ServerError) as caught:
        await collect(cluster.client, "hello", top_p=2.0)
    trailing = dict(caught.value.__cause__.trailing_metadata())
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(bad)
    assert (info.domain, info.reason) == ("crossdock", "INVALID_FIELD")
    assert bad.field_violations[0].field == "top_p"


async def test_an_input_must_be_set(start_cluster: Any) -> None:
    cluster = await start_cluster(decode())
    async with grpc.aio.insecure_channel(cluster.grpc_address) as channel:
        call = inference_pb2_grpc.InferenceStub(channel).Generate(inference_pb2.GenerateRequest())
        with pytest.raises(grpc.aio.AioRpcError, match="either text or token_ids"):
            await call.read()


async def test_model_info(start_cluster: Any) -> None:
    cluster = await start_cluster(decode())
    info = await cluster.client.model_info()
    assert (info.model, info.vocab_size, info.max_model_len) == ("tiny", 300, 128)
    assert (info.block_size, list(info.eos_token_ids)) == (16, [1])


async def test_the_blocking_client(start_cluster: Any) -> None:
    cluster = await start_cluster(decode(script=SCRIPT))

    def use() -> tuple[str, str]:
        with Client(cluster.grpc_address) as client:
            name = client.model_info().model
            text = "".join(r.chunk.text for r in client.generate("hello"))
            with pytest.raises(ServerError, match="top_p"):
                list(client.generate("hello", top_p=2.0))
            return name, text

    assert await asyncio.to_thread(use) == ("tiny", "hello world")


async def test_health_follows_the_workers_and_reflection_is_on(start_cluster: Any) -> None:
    cluster = await start_cluster(prefill(), decode())
    async with grpc.aio.insecure_channel(cluster.grpc_address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        statuses = aiter(watch)
        serving = health_pb2.HealthCheckResponse.SERVING
        while (await anext(statuses)).status != serving:
            pass
        await cluster["d0"].kill()
        assert (await anext(statuses)).status == health_pb2.HealthCheckResponse.NOT_SERVING
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        listing = reflection_pb2.ServerReflectionRequest(list_services="")
        async for reply in stub.ServerReflectionInfo(iter([listing])):
            names = {service.name for service in reply.list_services_response.service}
            assert "crossdock.v1.Inference" in names
            break


async def test_a_draining_worker_gets_no_new_requests(start_cluster: Any) -> None:
    d0, d1 = decode("d0", script=SCRIPT), decode("d1", script=SCRIPT)
    cluster = await start_cluster(d0, d1)
    await cluster.registry.list(d0.record(draining=True), d1.record())
    await cluster.until(lambda c: c.usable() == {"d1"})
    for _ in range(6):
        await collect(cluster.client, "hello")
    assert d0.received == []


async def test_a_draining_worker_keeps_its_streams(start_cluster: Any) -> None:
    cluster = await start_cluster(d0 := decode("d0"))
    answer = asyncio.create_task(collect(cluster.client, "hello"))
    opened = await d0.got("open")
    d1 = await decode("d1", script=SCRIPT).start()
    cluster.workers["d1"] = d1
    await cluster.registry.list(d0.record(draining=True), d1.record())
    await cluster.until(lambda c: c.usable() == {"d1"})
    d0.output(opened.key, [9], "done", "stop")
    assert (await answer)[0] == "done"


async def test_what_crossed_the_news_of_draining_on_the_wire_goes_elsewhere(
    start_cluster: Any,
) -> None:
    d0, d1 = decode("d0"), decode("d1")
    cluster = await start_cluster(prefill(), d0, d1)
    answer = asyncio.create_task(collect(cluster.client, "hello"))
    sent = await cluster["p0"].got("prefill")
    first, other = (d0, d1) if sent.decode_worker == "d0" else (d1, d0)
    first.fail(sent.key, "DRAINING")
    assert (await cluster["p0"].got("abort")).key == sent.key
    again = await other.got("open")
    assert cluster.usable() == {"p0", other.name}
    other.output(again.key, [9], "done", "stop")
    assert (await answer)[0] == "done"


async def test_a_request_waits_for_a_new_worker_that_is_about_to_be_reached(
    start_cluster: Any,
) -> None:
    """Where a replacement is listed in the same moment as the old worker drains."""
    cluster = await start_cluster(d0 := decode("d0"))
    d1 = await decode("d1", script=SCRIPT).start()
    cluster.workers["d1"] = d1
    await cluster.registry.list(d0.record(draining=True), d1.record())
    await cluster.until(lambda c: "d0" not in c.usable())
    assert (await collect(cluster.client, "hello"))[0] == "hello world"
    assert d0.received == []


async def test_a_dead_registry_leaves_the_workers_in_use(start_cluster: Any) -> None:
    cluster = await start_cluster(decode(script=SCRIPT))
    await cluster.registry.stop()
    assert (await collect(cluster.client, "hello"))[0] == "hello world"
    await cluster.registry.start(cluster.registry.port)
    late = await decode("d1", script=SCRIPT).start()
    cluster.workers["d1"] = late
    await cluster.registry.list(cluster["d0"].record(), late.record())
    await cluster.until(lambda c: c.usable() == {"d0", "d1"})


async def test_a_restarted_worker_is_a_new_one(start_cluster: Any) -> None:
    cluster = await start_cluster(decode("d0", cached=[1, 2, 3]))
    pool, routing = cluster.router.dispatcher.pool, cluster.router.dispatcher.routing
    await cluster.until(lambda c: len(routing.caches.index) == 3)
    await cluster["d0"].kill()
    reborn = await decode("d0", epoch=2, script=SCRIPT).start()
    cluster.workers["d0"] = reborn
    await cluster.registry.list(reborn.record())
    await cluster.until(lambda c: [v.worker.epoch for v in pool.candidates()] == [2])
    await cluster.until(lambda c: len(routing.caches.index) == 0)
    assert (await collect(cluster.client, "hello"))[0] == "hello world"


async def test_a_worker_with_another_block_size_gets_no_requests(start_cluster: Any) -> None:
    cluster = await start_cluster(decode("d0", script=SCRIPT))
    odd = await decode("odd", block_size=32).start()
    cluster.workers["odd"] = odd
    await cluster.registry.list(cluster["d0"].record(), odd.record())
    pool = cluster.router.dispatcher.pool
    await cluster.until(lambda c: any("block size" in w for w in pool.excluded().values()))
    assert cluster.usable() == {"d0"}


async def test_stopping_waits_for_running_requests_and_refuses_new_ones(
    start_cluster: Any,
) -> None:
    cluster = await start_cluster(decode())
    answer = asyncio.create_task(collect(cluster.client, "hello"))
    opened = await cluster["d0"].got("open")
    stopping = asyncio.create_task(cluster.router.stop())
    error = await refused(cluster.client, "hello")
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    cluster["d0"].output(opened.key, [9], "done", "stop")
    assert (await answer)[0] == "done"
    await stopping


async def test_a_defect_ends_its_request_and_no_other(
    start_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = await start_cluster(prefill(), decode(script=SCRIPT))
    dispatcher = cluster.router.dispatcher
    with monkeypatch.context() as broken:
        broken.setattr(dispatcher.routing, "place", lambda prompt, avoid: 1 / 0)
        with pytest.raises(ServerError) as caught:
            await cluster.client.answer("hi")
    assert caught.value.code is grpc.StatusCode.INTERNAL
    assert dispatcher.idle.is_set()
    assert (await cluster.client.answer("hi")).text == "hello world"


async def test_a_router_tells_the_controller_that_it_is_there(start_cluster: Any) -> None:
    cluster = await start_cluster(FakeWorker("d0", "decode"))
    await cluster.until(lambda c: len(c.registry.reports) > 0)
    [report] = cluster.registry.reports.values()
    assert (report.grpc_address, report.store, report.peers) == (cluster.grpc_address, "", 0)
