"""What a worker tells each router of a step's tokens."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence

from core.request import AttemptKey, RequestKey
from crossdock.v1 import worker_pb2 as pb
from wire.attempts import key_to_wire
from worker.router_streams import RouterStreams

LOAD = pb.Load(running=1)


class Handler:
    def __init__(self) -> None:
        self.heard: asyncio.Queue[pb.RouterMessage] = asyncio.Queue()

    def on_router_message(self, message: pb.RouterMessage) -> None:
        self.heard.put_nowait(message)

    def on_router_lost(self, attempts: Iterable[AttemptKey]) -> None: ...

    def greet(self, attach: pb.Attach) -> Sequence[pb.WorkerMessage]:
        return []

    def missed_changes(self, after: int) -> Sequence[pb.CacheEvents]:
        return []


def attempt(number: int) -> AttemptKey:
    return AttemptKey(RequestKey("tenant", f"request-{number}"), 1)


async def router(name: str, *opened: pb.Open) -> AsyncIterator[pb.RouterMessage]:
    yield pb.RouterMessage(attach=pb.Attach(router_id=name))
    for one in opened:
        yield pb.RouterMessage(open=one)
    await asyncio.Event().wait()


def opened(number: int, first_answer: int) -> pb.Open:
    return pb.Open(key=key_to_wire(attempt(number)), first_answer=first_answer)


async def told(stream: AsyncIterator[pb.WorkerMessage]) -> pb.Step:
    return (await anext(stream)).step


async def test_tokens_are_named_by_the_numbers_that_their_router_gave() -> None:
    streams = RouterStreams(handler := Handler())
    a = streams.attach(router("a", opened(0, 7), opened(1, 9)))
    b = streams.attach(router("b", opened(2, 7)))
    first = [asyncio.ensure_future(told(stream)) for stream in (a, b)]
    for _ in range(3):
        await handler.heard.get()
    assert streams.go_on(attempt(1), 0, 10, "x")
    assert streams.go_on(attempt(0), 1, 11, "y")
    assert streams.go_on(attempt(2), 0, 12, "z")
    streams.send_step(LOAD, 0)
    steps = [await step for step in first]
    columns = [(list(s.further.answers), list(s.further.token_ids)) for s in steps]
    assert columns == [([9, 8], [10, 11]), ([7], [12])]
    assert [list(step.further.texts) for step in steps] == [["x", "y"], ["z"]]
    # A step with the same load is told all the same, and has no token of the one before.
    assert streams.go_on(attempt(0), 0, 13, "")
    streams.send_step(LOAD, 0)
    assert list((await told(a)).further.token_ids) == [13]
    for stream in (a, b):
        await stream.aclose()


async def test_without_a_number_or_a_router_there_are_outputs() -> None:
    streams = RouterStreams(handler := Handler())
    stream = streams.attach(router("a", opened(0, 0)))
    reading = asyncio.ensure_future(told(stream))
    await handler.heard.get()
    assert not streams.go_on(attempt(0), 0, 10, "x")
    assert not streams.go_on(attempt(1), 0, 10, "x")
    streams.new_output(attempt(0)).text = "x"
    streams.send_step(LOAD, 0)
    step = await reading
    assert ([output.text for output in step.outputs], step.HasField("further")) == (["x"], False)
    await stream.aclose()


async def test_a_router_that_is_lost_leaves_no_task() -> None:
    streams = RouterStreams(handler := Handler())
    stream = streams.attach(router("a", opened(0, 0)))
    reading = asyncio.ensure_future(told(stream))
    await handler.heard.get()
    reading.cancel()
    # The reader, which is cancelled with it.
    others = asyncio.all_tasks() - {asyncio.current_task(), reading}
    await asyncio.wait({reading, *others}, timeout=5)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert streams.num_routers == 0


async def test_the_stream_ends_when_the_router_says_nothing_more() -> None:
    async def only_attach() -> AsyncIterator[pb.RouterMessage]:
        yield pb.RouterMessage(attach=pb.Attach(router_id="a"))

    streams = RouterStreams(Handler())
    assert [message async for message in streams.attach(only_attach())] == []
    assert streams.num_routers == 0


async def test_what_a_router_says_together_is_taken_one_after_the_other() -> None:
    async def together() -> AsyncIterator[pb.RouterMessage]:
        yield pb.RouterMessage(attach=pb.Attach(router_id="a"))
        said = [pb.RouterMessage(open=opened(number, 0)) for number in range(2)]
        said.append(pb.RouterMessage(abort=pb.Abort(key=key_to_wire(attempt(0)))))
        yield pb.RouterMessage(several=pb.RouterMessages(messages=said))

    streams = RouterStreams(handler := Handler())
    async for _ in streams.attach(together()):
        pass
    heard = [handler.heard.get_nowait() for _ in range(3)]
    assert [message.WhichOneof("message") for message in heard] == ["open", "open", "abort"]
    assert heard[1].open.key.request_id == "request-1"
