"""Commands for clients over TLS: certificates by option, and clusters known by their name."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
from certificates import make_authority, make_worker

from cluster.cli.main import main
from cluster.running import claim_name, find_by_address
from cluster.tls_check import files_for_commands
from core.config import make_spec
from core.tls_files import TlsFiles
from crossdock.client import Tls
from crossdock.v1 import admin_pb2, inference_pb2, inference_pb2_grpc
from tuner.load.grpc_target import GrpcTarget
from tuner.load.openai_target import OpenAIOptions, OpenAITarget

DOOR_NAME = "llm.example.com"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("cluster")
    make_authority(made)
    return made


@pytest.fixture(scope="module")
def door(folder: Path) -> TlsFiles:
    return make_worker(folder, "door", folder, DOOR_NAME)


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster of the user's is found."""
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `crossdock …`: the exit code, and what it printed or said."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["crossdock", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        told = capsys.readouterr()
        code = int(ended.value.code or 0)
        return code, told.err if code else told.out

    return run


# gRPC


class Echo(inference_pb2_grpc.InferenceServicer):
    def Generate(self, request, context) -> Iterator[inference_pb2.GenerateResponse]:
        chunk = inference_pb2.Chunk(token_ids=[1], text=request.text)
        yield inference_pb2.GenerateResponse(chunk=chunk)
        done = inference_pb2.Complete(finish_reason="stop", completion_tokens=1)
        yield inference_pb2.GenerateResponse(complete=done)


@pytest.fixture
def grpc_door(door: TlsFiles) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    inference_pb2_grpc.add_InferenceServicer_to_server(Echo(), server)
    pair = (Path(door.key).read_bytes(), Path(door.cert).read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0).wait()


def test_generate_over_tls_names_authority_and_server(
    run: Run, grpc_door: str, door: TlsFiles
) -> None:
    who = ("--tls-ca", door.ca, "--tls-name", DOOR_NAME)
    assert run(*who, "generate", "hello", "--tls", "--address", grpc_door) == (0, "hello\n")


@pytest.mark.thorough
def test_a_server_that_is_not_trusted_or_not_the_one_is_not_asked(
    run: Run, grpc_door: str, door: TlsFiles
) -> None:
    for who in ((), ("--tls-ca", door.ca), ("--tls-ca", door.ca, "--tls-name", "others")):
        code, told = run(*who, "generate", "hello", "--tls", "--address", grpc_door)
        assert code == 1, told
        assert grpc_door in told


def test_a_certificate_without_its_key_is_wrong_usage(run: Run, door: TlsFiles) -> None:
    code, told = run("--tls-cert", door.cert, "generate", "hello")
    assert (code, "give both --tls-cert and --tls-key" in told) == (2, True)


# HTTP


class Model(BaseHTTPRequestHandler):
    """Tells one model, one answer in a stream, and metrics."""

    def do_GET(self) -> None:
        if self.path == "/metrics/cluster":
            self._say("text/plain", b"")
        else:
            self._say("application/json", json.dumps({"data": [{"id": "tiny"}]}).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        event = {"choices": [{"delta": {"content": "well met"}}]}
        self._say("text/event-stream", f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode())

    def _say(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def http_door(door: TlsFiles) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Model)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(door.cert, door.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_chat_over_https(run: Run, http_door: str, door: TlsFiles) -> None:
    who = ("--tls-ca", door.ca, "--tls-name", DOOR_NAME)
    assert run(*who, "chat", "hello", "--url", f"https://{http_door}") == (0, "well met\n")
    code, told = run("--tls-ca", door.ca, "chat", "hello", "--url", f"https://{http_door}")
    assert (code, "Hostname mismatch" in told or "IP address mismatch" in told) == (1, True)


async def test_benchmarks_send_their_load_over_tls(
    grpc_door: str, http_door: str, door: TlsFiles
) -> None:
    tls = Tls(door.ca, server_name=DOOR_NAME)
    by_grpc = GrpcTarget(grpc_door, tls=tls)
    answer = await by_grpc.check("hello", 1)
    assert answer.usage is not None
    await by_grpc.close()
    by_http = OpenAITarget(OpenAIOptions(f"https://{http_door}", tls=tls))
    assert (await by_http.describe()).name == "tiny"
    await by_http.close()


# Clusters under a name


def test_a_cluster_under_a_name_is_known_with_its_files(
    run: Run, grpc_door: str, http_door: str, door: TlsFiles, folder: Path
) -> None:
    member = make_worker(folder, "member", folder)
    tls = {"ca": member.ca, "cert": member.cert, "key": member.key}
    spec = make_spec({"tls": {**tls, "doors": {"cert": door.cert, "key": door.key}}})
    claim = claim_name("default", 0.0, files=files_for_commands(spec))
    claim.tell_ready(grpc_door, http_door, "127.0.0.1:1")
    found = find_by_address("127.0.0.1:1")
    assert found is not None
    assert (found.tls_name, found.door_name) == ("crossdock", DOOR_NAME)
    assert run("generate", "hello") == (0, "hello\n")
    assert run("chat", "hello") == (0, "well met\n")
    claim.release()


@pytest.mark.thorough
def test_live_status_asks_the_router_over_tls_by_the_name_of_its_door(
    run: Run, http_door: str, door: TlsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operators' port has told the address, which the door's certificate is not for."""
    status = admin_pb2.ClusterStatus(model="tiny", http_address=http_door, doors_tls=True)
    monkeypatch.setattr("cluster.cli.watch.fetch_status", lambda address: status)
    watched = ("status", "--watch", "--refreshes", "1", "--interval", "0.2", "--output", "json")
    for option in ("--tls-ca", "--tls-door-ca"):
        code, told = run(option, door.ca, *watched)
        assert code == 0, told
        assert json.loads(told)["model"] == "tiny"
    code, told = run(*watched)
    assert (code, "certificate verify failed" in told) == (1, True)
    code, told = run("--tls-ca", door.ca, *watched, "--router", http_door)
    assert (code, "mismatch" in told) == (1, True)
