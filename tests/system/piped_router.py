"""A real router over given workers, without Ray: `python piped_router.py MODEL PLACES`.

PLACES is a JSON list of what `piped_worker.py` prints. Prints "ready", then answers lines of JSON
on standard input with lines of JSON: {"prompt": […], "max_tokens": n} with the tokens, {"worker":
name} with its statistics, checked. For tests outside the router's network namespace, into which
only pipes lead.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from crossdock.v1 import (
    inference_pb2,
    inference_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)
from router.placement import Disaggregation
from router.routing.routing_rules import RoutingRules
from router.settings import RouterSettings, settings_to_json

HOST = "127.0.0.1"


class FixedRegistry(registry_pb2_grpc.RegistryServicer):
    """The same workers for ever."""

    def __init__(self, places: list[dict[str, Any]]) -> None:
        names = ("worker", "endpoint", "epoch", "role")
        self._list = registry_pb2.WorkerList(
            workers=[
                registry_pb2.WorkerRecord(**{name: place[name] for name in names})
                for place in places
            ]
        )

    async def Watch(
        self, request: object, context: object
    ) -> AsyncIterator[registry_pb2.WorkerList]:
        yield self._list
        await asyncio.Event().wait()


async def main(model: str, places: list[dict[str, Any]]) -> None:
    server = grpc.aio.server()
    registry_pb2_grpc.add_RegistryServicer_to_server(FixedRegistry(places), server)
    port = server.add_insecure_port(f"{HOST}:0")
    await server.start()
    router = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "router.main"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert router.stdin is not None
    assert router.stdout is not None
    rules = RoutingRules(Disaggregation.PREFER)
    router.stdin.write(settings_to_json(RouterSettings(f"{HOST}:{port}", Path(model), rules=rules)))
    router.stdin.close()
    found = re.fullmatch(rb"ready grpc=(\S+) http=(\S+)\n", await router.stdout.readline())
    assert found is not None, "the router did not start"
    await asyncio.to_thread(wait_ready, found[2].decode())
    endpoints = {place["worker"]: place["endpoint"] for place in places}
    print("ready", flush=True)
    await answer_lines(found[1].decode(), endpoints)
    router.terminate()
    await router.wait()
    await server.stop(None)


def wait_ready(http_address: str) -> None:
    while True:
        try:
            urllib.request.urlopen(f"http://{http_address}/ready").close()
            return
        except urllib.error.HTTPError:
            continue


async def answer_lines(grpc_address: str, endpoints: dict[str, str]) -> None:
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        if "worker" in asked:
            answer: object = await statistics(endpoints[asked["worker"]])
        else:
            answer = await generate(grpc_address, asked["prompt"], asked["max_tokens"])
        print(json.dumps(answer), flush=True)


async def generate(address: str, prompt: list[int], max_tokens: int) -> list[int]:
    sampling = inference_pb2.SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    request = inference_pb2.GenerateRequest(
        token_ids=inference_pb2.TokenIds(ids=prompt), sampling=sampling
    )
    async with grpc.aio.insecure_channel(address) as channel:
        call = inference_pb2_grpc.InferenceStub(channel).Generate(request)
        return [token async for response in call for token in response.chunk.token_ids]


async def statistics(endpoint: str) -> dict[str, Any]:
    async with grpc.aio.insecure_channel(endpoint) as channel:
        request = worker_pb2.GetStatsRequest(validate=True)
        found = await worker_pb2_grpc.WorkerStub(channel).GetStats(request)
    return MessageToDict(
        found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
