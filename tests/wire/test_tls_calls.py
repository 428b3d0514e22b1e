"""gRPC and HTTP over TLS between real ports: who is let in, and renewal while they listen."""

from __future__ import annotations

import os
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiohttp
import grpc
import grpc.aio
import pytest
from certificates import make_authority, make_expired, make_worker

from core.tls_files import ServerFiles, TlsFiles
from crossdock.client.tls import Tls, open_async_channel
from crossdock.v1 import registry_pb2, registry_pb2_grpc, worker_pb2, worker_pb2_grpc
from wire.metrics_door import MetricsDoor
from wire.peer_check import members_only
from wire.tls_contexts import new_client_context
from wire.tls_grpc import open_channel, open_port

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cluster")
    make_authority(made)
    return made


@pytest.fixture(scope="module")
def member(folder: Path) -> TlsFiles:
    return make_worker(folder, "worker", folder)


@pytest.fixture(scope="module")
def operator(folder: Path) -> TlsFiles:
    return make_worker(folder, "operator", folder, "crossdock-operator")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    made = tmp_path_factory.mktemp("elsewhere")
    make_authority(made)
    return make_worker(made, "stranger", made)


class Listing(registry_pb2_grpc.RegistryServicer):
    """One list, as a generator."""

    async def Watch(self, request, context):
        yield registry_pb2.WorkerList(metrics_address="here")


class Conversing(worker_pb2_grpc.WorkerServicer):
    """One answer for each message, as a generator; and a unary call."""

    async def Attach(self, request_iterator, context):
        async for _ in request_iterator:
            yield worker_pb2.WorkerMessage()

    async def GetStats(self, request, context):
        return worker_pb2.WorkerStats(worker="here")


@asynccontextmanager
async def listening(tls: TlsFiles | None) -> AsyncIterator[str]:
    server = grpc.aio.server(interceptors=members_only(tls))
    registry_pb2_grpc.add_RegistryServicer_to_server(Listing(), server)
    worker_pb2_grpc.add_WorkerServicer_to_server(Conversing(), server)
    port = open_port(server, f"{HOST}:0", tls.as_server if tls else None)
    await server.start()
    yield f"{HOST}:{port}"
    await server.stop(None)


async def ask(address: str, tls: TlsFiles | None) -> str:
    """Who answers, or how the call was refused."""
    async with open_channel(address, tls) as channel:
        try:
            stats = await worker_pb2_grpc.WorkerStub(channel).GetStats(
                worker_pb2.GetStatsRequest(), timeout=10
            )
            return stats.worker
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name}: {error.details()}"


@pytest.mark.parametrize("kind", ["URI", "email"])
async def test_a_name_of_another_kind_makes_no_member(
    folder: Path, member: TlsFiles, kind: str
) -> None:
    other = make_worker(folder, f"{kind}-named", folder, member.name, kind)
    async with listening(member) as address:
        # It can be sure of the server, and shows what it has.
        assert (await ask(address, other)).startswith("UNAUTHENTICATED")


async def test_members_call_each_other(member: TlsFiles) -> None:
    async with listening(member) as address, open_channel(address, member) as channel:
        assert await ask(address, member) == "here"
        listed = registry_pb2_grpc.RegistryStub(channel).Watch(registry_pb2.WatchRequest())
        assert [each.metrics_address async for each in listed] == ["here"]
        call = worker_pb2_grpc.WorkerStub(channel).Attach()
        for _ in range(2):
            await call.write(worker_pb2.RouterMessage())
            assert await call.read() == worker_pb2.WorkerMessage()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_strangers_are_refused(member: TlsFiles, stranger: TlsFiles, folder: Path) -> None:
    """In the clear, by another authority, without a certificate, after its time."""
    async with listening(member) as address:
        assert (await ask(address, None)).startswith("UNAVAILABLE")
        trusting = TlsFiles(member.ca, stranger.cert, stranger.key)
        assert (await ask(address, trusting)).startswith("UNAVAILABLE")
        expired = make_expired(folder, "expired", folder)
        assert (await ask(address, expired)).startswith("UNAVAILABLE")
        nobody = Tls(member.ca, server_name=member.name)
        async with open_async_channel(address, nobody, ()) as channel:
            stub = worker_pb2_grpc.WorkerStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.GetStats(worker_pb2.GetStatsRequest(), timeout=10)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_member_does_not_trust_what_is_none(
    member: TlsFiles, operator: TlsFiles, stranger: TlsFiles
) -> None:
    async with listening(stranger) as address:
        assert "CERTIFICATE_VERIFY_FAILED" in await ask(address, member)
    async with listening(operator) as address:
        assert "Hostname Verification Check failed" in await ask(address, member)


async def test_an_operators_certificate_opens_no_members_port(
    member: TlsFiles, operator: TlsFiles
) -> None:
    async with listening(member) as address:
        told = await ask(address, replace(operator, name=member.name))
        assert told == (
            "UNAUTHENTICATED: the certificate that was shown is for crossdock-operator; here it "
            "must be for crossdock"
        )


async def test_ports_and_channels_take_up_renewed_files(
    member: TlsFiles, stranger: TlsFiles, tmp_path: Path
) -> None:
    """Both change to another authority while the port listens."""
    files = TlsFiles(*(str(tmp_path / name) for name in ("ca.pem", "cert.pem", "key.pem")))
    put(member, files)
    async with listening(files) as address:
        assert await ask(address, files) == "here"
        assert (await ask(address, stranger)).startswith("UNAVAILABLE")
        put(stranger, files)
        assert await ask(address, stranger) == "here"
        assert await ask(address, files) == "here"
        assert (await ask(address, member)).startswith("UNAVAILABLE")


def put(source: TlsFiles, target: TlsFiles) -> None:
    for old, new in ((source.ca, target.ca), (source.cert, target.cert), (source.key, target.key)):
        shutil.copy(old, f"{new}.new")
        os.replace(f"{new}.new", new)


# Metrics


@asynccontextmanager
async def metrics_door(tls: ServerFiles | None) -> AsyncIterator[str]:
    async def render() -> bytes:
        return b"crossdock_up 1\n"

    door = MetricsDoor(render)
    await door.start(HOST, 0, tls)
    yield door.address
    await door.stop()


async def get(url: str, context: ssl.SSLContext | bool, name: str | None = None) -> int:
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, ssl=context, server_hostname=name) as response,
    ):
        return response.status


async def test_metrics_are_for_who_has_a_certificate_and_probes_for_all(
    member: TlsFiles, operator: TlsFiles, stranger: TlsFiles
) -> None:
    nobody = ssl.create_default_context(cafile=member.ca)
    async with metrics_door(member.as_server) as address:
        for shown in (member, operator):
            known = new_client_context(shown)
            assert await get(f"https://{address}/metrics", known, member.name) == 200
        assert await get(f"https://{address}/metrics", nobody, member.name) == 401
        assert await get(f"https://{address}/health", nobody, member.name) == 200
        mixed = new_client_context(TlsFiles(member.ca, stranger.cert, stranger.key))
        with pytest.raises(aiohttp.ClientError):
            await get(f"https://{address}/health", mixed, member.name)
        with pytest.raises(aiohttp.ClientError):
            await get(f"http://{address}/metrics", True)


async def test_without_tls_metrics_are_for_all() -> None:
    async with metrics_door(None) as address:
        assert await get(f"http://{address}/metrics", True) == 200
