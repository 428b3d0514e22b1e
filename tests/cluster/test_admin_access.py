"""The operators' port by certificate and by token, as its commands come there."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from certificates import make_authority, make_worker

from cluster.admin_access import admin_files, admin_interceptors, admin_warning
from cluster.cli.main import main
from core.api_keys import api_key_sha256
from core.config import ClusterSpec, make_spec
from core.tls_files import OPERATOR_NAME, TlsFiles
from crossdock.v1 import admin_pb2, admin_pb2_grpc
from wire.tls_grpc import open_port

TOKEN = "cd-token"
ADMIN = {"token_sha256": [api_key_sha256(TOKEN)]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cluster")
    make_authority(made)
    return made


@pytest.fixture(scope="module")
def member(folder: Path) -> TlsFiles:
    return make_worker(folder, "member", folder)


@pytest.fixture(scope="module")
def operator(folder: Path) -> TlsFiles:
    return make_worker(folder, "operator", folder, OPERATOR_NAME)


@pytest.fixture(scope="module")
def scraper(folder: Path) -> TlsFiles:
    """Of the same authority, and neither member nor operator."""
    return make_worker(folder, "scraper", folder, "prometheus")


def spec_of(tls: TlsFiles | None, **more: Any) -> ClusterSpec:
    files = {} if tls is None else {"tls": {"ca": tls.ca, "cert": tls.cert, "key": tls.key}}
    return make_spec({**files, **more})


class Answering(admin_pb2_grpc.ClusterAdminServicer):
    async def GetStatus(self, request, context):
        return admin_pb2.ClusterStatus(model="tiny", settled=True)


Status = Callable[..., tuple[int, str]]


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Status:
    """Runs `crossdock … status`: the exit code, and the model's name or what was said."""

    def run(address: str, *before: str) -> tuple[int, str]:
        after = ("status", "--address", address, "--output", "json")
        monkeypatch.setattr("sys.argv", ["crossdock", *before, *after])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        code = int(ended.value.code or 0)
        return code, told.err if code else json.loads(told.out)["model"]

    return run


@pytest.fixture
def serve() -> Iterator[Callable[[ClusterSpec], str]]:
    """Opens the port as a cluster of this spec does; gives its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    servers: list[grpc.aio.Server] = []

    async def start(spec: ClusterSpec) -> str:
        server = grpc.aio.server(interceptors=admin_interceptors(spec))
        servers.append(server)
        admin_pb2_grpc.add_ClusterAdminServicer_to_server(Answering(), server)
        port = open_port(server, "127.0.0.1:0", admin_files(spec))
        await server.start()
        return f"127.0.0.1:{port}"

    yield lambda spec: asyncio.run_coroutine_threadsafe(start(spec), loop).result()
    for server in servers:
        asyncio.run_coroutine_threadsafe(server.stop(None), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def shown(files: TlsFiles) -> tuple[str, ...]:
    return ("--tls-ca", files.ca, "--tls-cert", files.cert, "--tls-key", files.key)


def test_without_tls_and_token_who_reaches_it_may_come(
    serve, status: Status, member: TlsFiles
) -> None:
    address = serve(spec_of(None))
    assert status(address) == (0, "tiny")
    # Routers may speak TLS to clients all the same.
    assert status(address, "--tls-door-ca", member.ca) == (0, "tiny")


def test_members_and_operators_may_come_and_others_of_the_authority_not(
    serve, status: Status, member: TlsFiles, operator: TlsFiles, scraper: TlsFiles
) -> None:
    address = serve(spec_of(member))
    assert status(address, *shown(member)) == (0, "tiny")
    assert status(address, *shown(operator)) == (0, "tiny")
    code, told = status(address, *shown(scraper))
    assert code == 1
    assert "for prometheus; here it must be for crossdock or crossdock-operator" in told
    code, told = status(address, "--tls-ca", member.ca)
    assert (code, "commands need --tls-ca" in told) == (1, True)


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_token_opens_the_port(
    serve, status: Status, member: TlsFiles, tmp_path: Path, encrypted: bool
) -> None:
    address = serve(spec_of(member if encrypted else None, admin=ADMIN))
    trusting = ("--tls-ca", member.ca) if encrypted else ()
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    assert status(address, *trusting, "--admin-token-file", str(token)) == (0, "tiny")
    token.write_text("cd-guess")
    code, told = status(address, *trusting, "--admin-token-file", str(token))
    assert (code, "this token is not known here" in told) == (1, True)
    code, told = status(address, *trusting)
    assert (code, "operators need a token here" in told) == (1, True)


def test_a_token_may_stand_in_the_environment(
    serve, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CROSSDOCK_ADMIN_TOKEN", TOKEN)
    assert status(serve(spec_of(None, admin=ADMIN))) == (0, "tiny")


def test_files_and_tokens_that_can_not_be_read_are_named(
    serve, status: Status, tmp_path: Path
) -> None:
    address = serve(spec_of(None, admin=ADMIN))
    code, told = status(address, "--admin-token-file", str(tmp_path / "nowhere"))
    assert (code, "--admin-token-file" in told) == (2, True)
    code, told = status(address, "--tls-ca", str(tmp_path / "nowhere"))
    assert (code, "can't be read: No such file" in told) == (2, True)


def test_a_port_on_a_network_that_is_not_closed_is_told(member: TlsFiles) -> None:
    assert "whoever reaches it can change the cluster" in admin_warning(spec_of(None), "0.0.0.0")
    assert "tokens can be read" in admin_warning(spec_of(None, admin=ADMIN), "10.0.0.1")
    assert admin_warning(spec_of(None), "127.0.0.1") == ""
    assert admin_warning(spec_of(member), "0.0.0.0") == ""
