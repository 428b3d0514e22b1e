"""A whole cluster with `tls`: who has a certificate is answered, no stranger is at any port."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import grpc.aio
import psutil
import pytest
from certificates import make_authority, make_worker
from served_cluster import Identity, ServedCluster, served

from core.tls_files import OPERATOR_NAME, TlsFiles
from crossdock.client import AsyncClient, Client, Tls
from crossdock.client.tls import open_async_channel
from crossdock.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    registry_pb2,
    registry_pb2_grpc,
    worker_pb2,
    worker_pb2_grpc,
)

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

PROMPT = [(7 * i) % 250 for i in range(80)]
DOOR_NAME = "llm.example.com"
LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Certificates:
    """``member``, ``operator``: of the cluster's authority; ``door`` and ``client``: of others."""

    folder: Path
    member: TlsFiles
    operator: TlsFiles
    door: TlsFiles
    client: TlsFiles
    stranger: TlsFiles

    @property
    def config(self) -> str:
        settings = {
            "router": {"disaggregation": "prefer"},
            "kv": {"transport": "tcp"},
            "token_streams": {"enabled": True},
            "tls": {
                "ca": self.member.ca,
                "cert": self.member.cert,
                "key": self.member.key,
                "doors": {
                    "cert": self.door.cert,
                    "key": self.door.key,
                    "client_ca": self.client.ca,
                },
            },
        }
        return json.dumps(settings)

    @property
    def to_doors(self) -> Tls:
        return Tls(self.door.ca, self.client.cert, self.client.key, DOOR_NAME)


def shown(files: TlsFiles) -> Tls:
    """By a member's name, whatever it is for itself."""
    return Tls(files.ca, files.cert, files.key, "crossdock")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folders = {name: tmp_path_factory.mktemp(name) for name in ("ours", "doors", "clients", "else")}
    for folder in folders.values():
        make_authority(folder)
    ours = folders["ours"]
    return Certificates(
        ours,
        make_worker(ours, "member", ours),
        make_worker(ours, "operator", ours, OPERATOR_NAME),
        make_worker(folders["doors"], "door", folders["doors"], DOOR_NAME),
        make_worker(folders["clients"], "client", folders["clients"], "somebody"),
        make_worker(folders["else"], "stranger", folders["else"]),
    )


@pytest.fixture(scope="module")
def cluster(tiny_model: Path, certificates: Certificates) -> Iterator[ServedCluster]:
    config = certificates.folder / "cluster.yaml"
    config.write_text(certificates.config)
    identity = Identity(certificates.to_doors, shown(certificates.operator))
    with served(tiny_model, 1, 1, "--config", str(config), identity=identity) as running:
        yield running


def test_prompts_are_handed_off_and_answered(cluster: ServedCluster) -> None:
    assert len(cluster.answer(PROMPT, 8)) == 8
    [decode] = cluster.stats("decode")
    assert [(edge.transport, edge.blocks > 0) for edge in decode.edges] == [("tcp", True)]


def test_the_client_library_and_commands_come_with_certificates(
    cluster: ServedCluster, certificates: Certificates
) -> None:
    with Client(cluster.grpc_address, tls=certificates.to_doors) as client:
        assert client.answer(token_ids=PROMPT, max_tokens=3, ignore_eos=True).completion_tokens == 3
    told = json.loads(operate(cluster, certificates, "status", "--output", "json"))
    assert [worker["state"] for worker in told["workers"]] == ["ready", "ready"]
    assert told["doors_tls"] is True
    scaled = operate(cluster, certificates, "scale", "--decode", "1", "--output", "json")
    assert json.loads(scaled)["settled"] is True


async def test_tokens_are_read_by_ticket_over_tls(
    cluster: ServedCluster, certificates: Certificates
) -> None:
    """The decode worker shows the certificate of the doors."""
    async with AsyncClient(cluster.grpc_address, tls=certificates.to_doors) as client:
        asked = {"token_ids": PROMPT, "max_tokens": 8, "temperature": 0.0, "ignore_eos": True}
        read = await client.answer(by_ticket=True, **asked)
        assert read.token_ids == (await client.answer(**asked)).token_ids
    known = certificates.to_doors.ssl_context()
    told = (await get(f"{cluster.http_url}/metrics", known, DOOR_NAME))[1]
    assert "crossdock_tokens_read_total 8.0" in told.splitlines()


def test_a_command_without_a_certificate_is_told_what_it_lacks(cluster: ServedCluster) -> None:
    result = run_command("status", "--address", cluster.admin_address)
    assert result.returncode == 1
    assert "commands need --tls-ca" in result.stderr


def operate(cluster: ServedCluster, certificates: Certificates, *command: str) -> str:
    """What an operator's command prints."""
    files = certificates.operator
    who = ("--tls-ca", files.ca, "--tls-cert", files.cert, "--tls-key", files.key)
    result = run_command(*who, *command, "--address", cluster.admin_address)
    assert result.returncode == 0, result.stderr
    return result.stdout


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "cluster.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


# Strangers

Call = Callable[[grpc.aio.Channel], Awaitable[object]]


async def watch(channel: grpc.aio.Channel) -> object:
    stub = registry_pb2_grpc.RegistryStub(channel)
    return await stub.Watch(registry_pb2.WatchRequest(), timeout=LIMIT_S).read()


async def ask_worker(channel: grpc.aio.Channel) -> object:
    stub = worker_pb2_grpc.WorkerStub(channel)
    return await stub.GetStats(worker_pb2.GetStatsRequest(), timeout=LIMIT_S)


async def ask_status(channel: grpc.aio.Channel) -> object:
    stub = admin_pb2_grpc.ClusterAdminStub(channel)
    return await stub.GetStatus(admin_pb2.GetStatusRequest(), timeout=LIMIT_S)


async def ask_model(channel: grpc.aio.Channel) -> object:
    stub = inference_pb2_grpc.InferenceStub(channel)
    return await stub.GetModelInfo(inference_pb2.GetModelInfoRequest(), timeout=LIMIT_S)


CALLS: dict[str, Call] = {
    "registry": watch,
    "worker": ask_worker,
    "admin": ask_status,
    "door": ask_model,
}


def listening_ports(cluster: ServedCluster) -> list[int]:
    """Of all processes of the cluster, Ray's among them."""
    parent = psutil.Process(cluster.process.pid)
    ports: set[int] = set()
    for process in (parent, *parent.children(recursive=True)):
        ports |= {
            connection.laddr.port
            for connection in process.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        }
    return sorted(ports)


async def who_answers(ports: list[int], tls: Tls | None) -> list[str]:
    """Which of our services answer a call by this identity, at whatever port."""

    async def answers(name: str, port: int) -> list[str]:
        async with open_async_channel(f"127.0.0.1:{port}", tls, ()) as channel:
            try:
                await CALLS[name](channel)
            except grpc.aio.AioRpcError:
                return []
            return [name]

    tried = await asyncio.gather(*(answers(name, port) for name in CALLS for port in ports))
    return sorted(name for found in tried for name in found)


async def test_every_port_answers_its_own_kind_of_peer_and_no_stranger(
    cluster: ServedCluster, certificates: Certificates
) -> None:
    ports = listening_ports(cluster)
    assert len(ports) > 8
    member, operator = shown(certificates.member), shown(certificates.operator)
    assert await who_answers(ports, member) == ["admin", "registry", "worker", "worker"]
    assert await who_answers(ports, operator) == ["admin"]
    assert await who_answers(ports, certificates.to_doors) == ["door"]
    strange = certificates.stranger
    trusting = Tls(certificates.member.ca, strange.cert, strange.key, "crossdock")
    without = replace(shown(certificates.member), cert=None, key=None)
    for stranger in (None, trusting, without):
        assert await who_answers(ports, stranger) == []


async def get(url: str, context: ssl.SSLContext, name: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, ssl=context, server_hostname=name) as response,
    ):
        return response.status, await response.text()


async def test_http_is_for_who_has_a_certificate_but_for_probes(
    cluster: ServedCluster, certificates: Certificates
) -> None:
    known = certificates.to_doors.ssl_context()
    unknown = Tls(certificates.door.ca).ssl_context()
    url = cluster.http_url
    assert (await get(f"{url}/v1/models", known, DOOR_NAME))[0] == 200
    for path in ("/v1/models", "/metrics", "/metrics/cluster", "/version"):
        status, text = await get(url + path, unknown, DOOR_NAME)
        assert (status, json.loads(text)["error"]["code"]) == (401, "CERTIFICATE_MISSING")
    assert (await get(f"{url}/ready", unknown, DOOR_NAME))[0] == 200


async def test_metrics_of_workers_are_for_who_has_a_certificate(
    cluster: ServedCluster, certificates: Certificates
) -> None:
    known = certificates.to_doors.ssl_context()
    listed = (await get(f"{cluster.http_url}/metrics/targets", known, DOOR_NAME))[1]
    found = [target for target in json.loads(listed) if target["labels"]["process"] != "router"]
    assert [target["labels"]["__scheme__"] for target in found] == ["https"] * 3
    operator = shown(certificates.operator).ssl_context()
    nobody = Tls(certificates.member.ca).ssl_context()
    for target in found:
        [address] = target["targets"]
        status, text = await get(f"https://{address}/metrics", operator, "crossdock")
        assert (status, "crossdock_" in text) == (200, True)
        assert (await get(f"https://{address}/metrics", nobody, "crossdock"))[0] == 401
    status, text = await get(f"{cluster.http_url}/metrics/cluster", known, DOOR_NAME)
    assert all(f'{{process="{name}"}} 1.0' in text for name in ("prefill-0", "decode-0"))
    expiry = "crossdock_certificate_expiry_timestamp_seconds{"
    told = [line for line in text.splitlines() if line.startswith(expiry)]
    # The router's two, and one each of workers and controller.
    assert len(told) == 5, told


def shown_at(address: str) -> str:
    """The certificate of who listens there, as PEM."""
    host, _, port = address.removeprefix("https://").rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((host, int(port)), LIMIT_S) as connection,
        context.wrap_socket(connection) as secured,
    ):
        certificate = secured.getpeercert(binary_form=True)
    assert certificate is not None
    return ssl.DER_cert_to_PEM_cert(certificate)


def test_renewed_certificates_are_taken_up_while_the_cluster_serves(
    cluster: ServedCluster, certificates: Certificates
) -> None:
    """New workers, new connections: all with what is on the disk now, the doors too."""
    doors = Path(certificates.door.cert).parent
    renewed = {
        make_worker(certificates.folder, "member", certificates.folder): [cluster.admin_address],
        make_worker(doors, "door", doors, DOOR_NAME): [cluster.grpc_address, cluster.http_url],
    }
    for files, addresses in renewed.items():
        for address in addresses:
            assert shown_at(address) == Path(files.cert).read_text()
    cluster.scale(decode=2)
    assert len(cluster.answer(PROMPT[::-1], 8)) == 8
    cluster.scale(decode=1)
