"""The command line against doors that live in this process: output, errors, exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
from certificates import make_authority, make_worker
from model_folders import make_model_folder

from cluster.cli.main import main
from cluster.cli.options import check_ray_address
from cluster.running import claim_name
from cluster.shadowing import our_root
from core.errors import NotFound
from crossdock.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc
from native import library
from wire.grpc_errors import to_rpc_status


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["crossdock", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


class Echo(inference_pb2_grpc.InferenceServicer):
    """Answers a prompt with its words; refuses the prompt "bad"."""

    def __init__(self) -> None:
        self.seen: inference_pb2.GenerateRequest | None = None

    def Generate(self, request, context) -> Iterator[inference_pb2.GenerateResponse]:
        self.seen = request
        if request.text == "bad":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "text = 'bad': say it nicely")
        for i, word in enumerate(request.text.split()):
            yield inference_pb2.GenerateResponse(
                chunk=inference_pb2.Chunk(token_ids=[i], text=f"{word} ")
            )
        yield inference_pb2.GenerateResponse(
            complete=inference_pb2.Complete(finish_reason="stop", completion_tokens=i + 1)
        )


@pytest.fixture
def echo() -> Iterator[tuple[Echo, str]]:
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = Echo()
    inference_pb2_grpc.add_InferenceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(0).wait()


def test_generate_streams_the_text(echo, monkeypatch, capsys) -> None:
    servicer, address = echo
    assert run(monkeypatch, "generate", "one two", "--address", address, "--seed", "3") == 0
    assert capsys.readouterr().out == "one two \n"
    assert servicer.seen.sampling.seed == 3
    assert not servicer.seen.sampling.HasField("top_p")


def test_generate_as_json_has_tokens_and_the_reason(echo, monkeypatch, capsys) -> None:
    assert run(monkeypatch, "generate", "one two", "--address", echo[1], "--output", "json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["text"], answer["token_ids"]) == ("one two ", [0, 1])
    assert (answer["finish_reason"], answer["completion_tokens"]) == ("stop", 2)


def test_a_refused_prompt_fails_with_the_servers_words(echo, monkeypatch, capsys) -> None:
    assert run(monkeypatch, "generate", "bad", "--address", echo[1]) == 1
    assert "say it nicely (INVALID_ARGUMENT)" in capsys.readouterr().err


@pytest.mark.thorough
def test_nobody_there_is_said_in_plain_words(monkeypatch, capsys) -> None:
    assert run(monkeypatch, "generate", "x", "--address", "127.0.0.1:1") == 1
    assert run(monkeypatch, "chat", "x", "--url", "http://127.0.0.1:1") == 1
    assert run(monkeypatch, "status", "--address", "127.0.0.1:1") == 1
    assert capsys.readouterr().err.count("is `crossdock serve` running?\n") == 3


@pytest.mark.thorough
def test_who_asks_nobody_hears_the_names_of_clusters_that_run(
    monkeypatch, capsys, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with contextlib.ExitStack() as named:
        for name in ("default", "green", "blue"):
            named.callback(claim_name(name, 0.0).release)
        assert run(monkeypatch, "generate", "x", "--address", "127.0.0.1:1") == 1
        assert run(monkeypatch, "chat", "x", "--url", "http://127.0.0.1:1") == 1
        assert run(monkeypatch, "status", "--address", "127.0.0.1:1") == 1
    told = "is `crossdock serve` running? Here run `--name blue`, `--name green`\n"
    assert capsys.readouterr().err.count(told) == 3


class Admin(admin_pb2_grpc.ClusterAdminServicer):
    """Takes every change on; is settled at the third question, unless it never is."""

    def __init__(self) -> None:
        self.wishes: list = []
        self.asked = 0
        self.never = False
        self.wanted = (1, 2)

    def GetStatus(self, request, context) -> admin_pb2.ClusterStatus:
        self.asked += 1
        settled = self.asked >= 3 and not self.never
        worker = admin_pb2.WorkerStatus(worker="decode-1", state="starting", detail="no room")
        return admin_pb2.ClusterStatus(
            settled=settled,
            workers=[] if settled else [worker],
            prefill_wanted=self.wanted[0],
            decode_wanted=self.wanted[1],
        )

    def Scale(self, request, context) -> admin_pb2.WantedWorkers:
        self.wishes.append(request)
        return admin_pb2.WantedWorkers(prefill=1, decode=2)

    Drain = Scale

    def DrainNode(self, request, context) -> admin_pb2.DrainNodeResponse:
        self.wishes.append(request)
        empty = request.address == "10.0.0.9"
        return admin_pb2.DrainNodeResponse(workers=[] if empty else ["decode-1", "prefill-0"])

    def Flip(self, request, context) -> admin_pb2.WantedWorkers:
        status = to_rpc_status(NotFound("there is no worker 'x'", reason="WORKER_NOT_FOUND"))
        details = (("grpc-status-details-bin", status.SerializeToString()),)
        context.set_trailing_metadata(details)
        context.abort(grpc.StatusCode.NOT_FOUND, status.message)


@pytest.fixture
def admin() -> Iterator[tuple[Admin, str]]:
    server = grpc.server(ThreadPoolExecutor(1))
    servicer = Admin()
    admin_pb2_grpc.add_ClusterAdminServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"127.0.0.1:{port}"
    server.stop(0).wait()


@pytest.mark.thorough
def test_scale_returns_when_it_is_done(admin, monkeypatch, capsys) -> None:
    servicer, address = admin
    assert run(monkeypatch, "scale", "--decode", "2", "--address", address) == 0
    assert capsys.readouterr().out == "now 1P:2D\n"
    assert servicer.wishes == [admin_pb2.ScaleRequest(decode=2)]
    assert servicer.asked == 3


@pytest.mark.thorough
def test_a_change_that_another_one_overtook_does_not_claim_to_be_there(
    admin, monkeypatch, capsys
) -> None:
    servicer, address = admin
    servicer.wanted = (1, 1)
    assert run(monkeypatch, "scale", "--decode", "2", "--address", address) == 1
    shown = capsys.readouterr()
    assert "1P:1D serve now, and this one wanted 1P:2D" in shown.err
    assert shown.out == ""


def test_drain_returns_at_once_if_that_is_wanted(admin, monkeypatch, capsys) -> None:
    servicer, address = admin
    options = ("--no-replace", "--limit", "5", "--no-wait", "--output", "json")
    assert run(monkeypatch, "drain", "decode-0", *options, "--address", address) == 0
    wanted = {"prefill": 1, "decode": 2, "settled": False}
    assert json.loads(capsys.readouterr().out) == wanted
    assert servicer.wishes == [
        admin_pb2.DrainRequest(worker="decode-0", no_replace=True, limit_s=5.0)
    ]


@pytest.mark.thorough
def test_a_node_is_empty_when_none_of_its_workers_is_there_any_more(
    admin, monkeypatch, capsys
) -> None:
    servicer, address = admin
    assert run(monkeypatch, "drain-node", "10.0.0.7", "--limit", "5", "--address", address) == 0
    assert capsys.readouterr().out == "decode-1, prefill-0 have ended\n"
    assert servicer.wishes == [admin_pb2.DrainNodeRequest(address="10.0.0.7", limit_s=5.0)]
    assert servicer.asked == 3


def test_a_node_that_does_not_become_empty_in_time_is_told(admin, monkeypatch, capsys) -> None:
    servicer, address = admin
    servicer.never = True
    arguments = ("drain-node", "10.0.0.7", "--timeout", "0", "--address", address)
    assert run(monkeypatch, *arguments) == 1
    assert "decode-1 still there" in capsys.readouterr().err


def test_a_node_without_workers_is_empty_already(admin, monkeypatch, capsys) -> None:
    servicer, address = admin
    assert run(monkeypatch, "drain-node", "10.0.0.9", "--address", address) == 0
    assert capsys.readouterr().out == "no worker is on 10.0.0.9\n"
    assert servicer.asked == 0


def test_what_takes_too_long_is_told_with_what_is_missing(admin, monkeypatch, capsys) -> None:
    servicer, address = admin
    servicer.never = True
    arguments = ("scale", "--prefill", "0", "--timeout", "0", "--address", address)
    assert run(monkeypatch, *arguments) == 1
    assert "not complete after 0 s: decode-1 starting (no room)" in capsys.readouterr().err


def test_a_refused_change_fails_with_the_servers_words(admin, monkeypatch, capsys) -> None:
    assert run(monkeypatch, "flip", "x", "--address", admin[1]) == 1
    assert capsys.readouterr().err == "error: there is no worker 'x' (NOT_FOUND)\n"


@pytest.mark.thorough
def test_commands_find_the_cluster_that_runs_in_the_background(
    admin, monkeypatch, capsys, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    claim = claim_name("mine", drain_s=1.0)
    assert run(monkeypatch, "scale", "--decode", "2", "--name", "mine") == 1
    assert "still starting" in capsys.readouterr().err
    claim.tell_ready("127.0.0.1:1", "127.0.0.1:2", admin[1])
    assert run(monkeypatch, "scale", "--decode", "2", "--name", "mine") == 0
    claim.release()
    assert run(monkeypatch, "scale", "--decode", "2", "--name", "mine") == 1
    assert "no cluster named 'mine' runs" in capsys.readouterr().err


class OpenAIDoor(BaseHTTPRequestHandler):
    """Streams the last message back, letter by letter; refuses "bad"."""

    bodies: list[dict]

    def do_GET(self) -> None:
        assert self.path == "/v1/models"
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"object": "list", "data": [{"id": "tiny"}]}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(body)
        text = body["messages"][-1]["content"]
        self.send_response(400 if text == "bad" else 200)
        self.end_headers()
        if text == "bad":
            self.wfile.write(json.dumps({"error": {"message": "say it nicely"}}).encode())
            return
        for letter in text:
            event = {"choices": [{"index": 0, "delta": {"content": letter}}]}
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def door() -> Iterator[tuple[list[dict], str]]:
    bodies: list[dict] = []
    handler = type("Door", (OpenAIDoor,), {"bodies": bodies})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield bodies, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_chat_streams_one_answer(door, monkeypatch, capsys) -> None:
    bodies, url = door
    assert run(monkeypatch, "chat", "hällo", "--url", url, "--system", "Be brief.") == 0
    assert capsys.readouterr().out == "hällo\n"
    assert bodies[0]["model"] == "tiny"
    assert [message["role"] for message in bodies[0]["messages"]] == ["system", "user"]


def test_a_conversation_remembers_what_was_said(door, monkeypatch, capsys) -> None:
    bodies, url = door
    lines = iter(["one", "", "two"])
    monkeypatch.setattr("cluster.cli.chat._read_line", lambda: next(lines, None))
    assert run(monkeypatch, "chat", "--url", url) == 0
    assert capsys.readouterr().out == "one\ntwo\n"
    assert [message["content"] for message in bodies[1]["messages"]] == ["one", "one", "two"]


def test_a_refused_chat_fails_with_the_servers_words(door, monkeypatch, capsys) -> None:
    assert run(monkeypatch, "chat", "bad", "--url", door[1]) == 1
    assert capsys.readouterr().err == "error: say it nicely\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("serve", "--bogus"),
        ("serve", "--dtype", "int3"),
        ("serve", "--decode", "0"),
        ("serve", "--patience", "5"),
        ("serve", "--config", "/nowhere.yaml"),
        ("generate",),
        ("chat", "x", "--url", "nonsense"),
        ("status", "--output", "xml"),
        ("scale",),
        ("scale", "--decode", "0"),
        ("scale", "--prefill", "-1"),
        ("scale", "--prefill", "100000"),
        ("drain",),
        ("drain", "decode-0", "--limit", "-1"),
        ("flip",),
        ("up", "--name", "a/b"),
        ("down", "--name", ".."),
        ("model", "import"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments, monkeypatch, capsys) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.thorough
@pytest.mark.parametrize(
    "words",
    [
        ("status", "--address"),
        ("status", "--watch", "--router"),
        ("scale", "--decode", "2", "--address"),
        ("generate", "hi", "--address"),
        ("serve", "--ray-address"),
        ("router", "--config", "c.yaml", "--registry"),
        ("controller", "--config", "c.yaml", "--ray-head"),
    ],
)
@pytest.mark.parametrize("given", ["here", "1.2.3.4", "http://1.2.3.4:1", "host:0", "host:70000"])
def test_a_place_without_host_or_port_is_told_what_it_must_be(
    words: tuple[str, ...], given: str, monkeypatch, capsys
) -> None:
    assert run(monkeypatch, *words, given) == 2
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert f"'{words[-1]}'" in told
    assert f"'{given}'" in told
    assert "HOST:PORT, such as" in told


@pytest.mark.parametrize(
    "words",
    [
        ("--interval", "3"),
        ("--refreshes", "3"),
        ("--router", "127.0.0.1:8000"),
        ("--validate", "--watch"),
    ],
)
def test_no_option_of_status_is_ignored_in_silence(
    words: tuple[str, ...], monkeypatch, capsys
) -> None:
    assert run(monkeypatch, "status", *words) == 2
    told = capsys.readouterr().err
    assert words[0] in told
    assert "--watch" in told


@pytest.mark.parametrize("given", ["auto", "10.0.0.1:6379", "[fd00::1]:6379", "ray://head:10001"])
def test_a_ray_cluster_is_named_by_its_place_or_found(given: str) -> None:
    assert check_ray_address(given) == given


@pytest.mark.thorough
def test_doctor_reports_each_check_as_json(monkeypatch, capsys, tmp_path: Path) -> None:
    folder = make_model_folder(tmp_path / "tiny")
    assert run(monkeypatch, "doctor", "--model", str(folder), "--output", "json") == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert {"python", "package torch", "modules", "cores", "memory", "kernels"} <= checks.keys()
    assert checks["block hashes"]["status"] == ("ok" if library.is_available() else "warning")
    assert checks["model"]["detail"].endswith("(bfloat16, 3 layers)")


@pytest.mark.thorough
def test_doctor_goes_by_a_config(monkeypatch, capsys, tmp_path: Path) -> None:
    folder, config = make_model_folder(tmp_path / "tiny"), tmp_path / "cluster.yaml"
    config.write_text(f"model: {folder}\nengine: {{kernels: torch}}\n")
    assert run(monkeypatch, "doctor", "--config", str(config), "--output", "json") == 0
    checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert checks["model"]["detail"].endswith("(bfloat16, 3 layers)")
    assert checks["kernels"]["detail"] == "torch (chosen): engine.kernels"


@pytest.mark.thorough
def test_doctor_tells_of_a_store_in_the_clear_beside_tls(
    monkeypatch, capsys, tmp_path: Path
) -> None:
    make_authority(tmp_path)
    files, config = make_worker(tmp_path, "one", tmp_path), tmp_path / "cluster.yaml"
    tls = f"tls: {{ca: {files.ca}, cert: {files.cert}, key: {files.key}}}\n"
    for store, status in (("redis://cache", "warning"), ("rediss://cache", "ok")):
        config.write_text(f"store: {store}\nengine: {{kernels: torch}}\n{tls}")
        assert run(monkeypatch, "doctor", "--config", str(config), "--output", "json") == 0
        checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
        assert checks["store"]["status"] == status
        assert "rediss://cache:6379/0" in checks["store"]["detail"]


@pytest.mark.thorough
def test_doctor_fails_for_a_broken_model(monkeypatch, capsys, tmp_path: Path) -> None:
    assert run(monkeypatch, "doctor", "--model", str(tmp_path)) == 1
    assert "failed" in capsys.readouterr().out


def test_grpc_notes_no_broken_connections_unless_it_is_told_to(monkeypatch) -> None:
    monkeypatch.delenv("GRPC_VERBOSITY")
    assert run(monkeypatch, "--help") == 0
    assert os.environ["GRPC_VERBOSITY"] == "ERROR"
    monkeypatch.setenv("GRPC_VERBOSITY", "INFO")
    assert run(monkeypatch, "--help") == 0
    assert os.environ["GRPC_VERBOSITY"] == "INFO"


def test_shadowed_modules_stop_every_command(monkeypatch, capsys) -> None:
    from cluster.shadowing import Shadowed

    impostor = Shadowed("kernels", "/site-packages/kernels/__init__.py")
    monkeypatch.setattr("cluster.cli.main.find_shadowed", lambda: [impostor])
    for command in ("status", "doctor"):
        assert run(monkeypatch, command) == 1
        shown = capsys.readouterr().err
        assert "`kernels` is shadowed by /site-packages/kernels" in shown
        assert "PYTHONPATH" in shown


def test_doctor_where_our_modules_are_hidden_says_by_what(tmp_path: Path) -> None:
    for name in ("core", "router"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("x = 1\n")
    path = os.pathsep.join([str(tmp_path), str(our_root()), str(our_root() / "protos")])
    command = [sys.executable, "-P", "-m", "cluster.cli.main", "doctor"]
    ended = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert f"`core` is shadowed by {tmp_path / 'core'}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_help_loads_neither_torch_nor_ray() -> None:
    code = (
        "import sys; sys.argv = ['crossdock', '--help']\n"
        "from cluster.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'grpc', 'pydantic'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("option", "size", "words"),
    [
        ("--prefill-tp", "3", "pools.prefill.tensor_parallel_size = 3: a model of 4 heads and 2 KV "
         "heads can be split into 1, 2, 4"),
        ("--decode-tp", "8", "pools.decode.tensor_parallel_size = 8"),
        ("--prefill-pp", "4", "pools.prefill.pipeline_parallel_size = 4: a model of 3 layers can "
         "be split into 1 to 3 stages"),
        ("--decode-pp", "0", "pools.decode.pipeline_parallel_size = 0"),
    ],
)  # fmt: skip
def test_a_shape_that_the_model_can_not_have_is_named_before_anything_starts(
    option: str, size: str, words: str, monkeypatch, capsys, tmp_path: Path
) -> None:
    monkeypatch.setattr("cluster.ray_cluster.RayCluster.start", lambda self: pytest.fail("Ray"))
    model = make_model_folder(tmp_path / "tiny")
    ports = ("--grpc-port", "0", "--http-port", "0", "--admin-port", "0")
    assert run(monkeypatch, "serve", "--model", str(model), option, size, *ports) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"threads": 100_000}, "engine.threads = 100000: may be "),
        ({"device": "cuda"}, "engine.device = 'cuda': "),
    ],
)
def test_what_this_machine_has_not_is_named_before_anything_starts(
    engine: dict, words: str, monkeypatch, capsys, tmp_path: Path
) -> None:
    monkeypatch.setattr("cluster.ray_cluster.RayCluster.start", lambda self: pytest.fail("Ray"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = tmp_path / "cluster.yaml"
    config.write_text(json.dumps({"engine": engine}))
    ports = ("--grpc-port", "0", "--http-port", "0", "--admin-port", "0")
    assert run(monkeypatch, "serve", "--config", str(config), *ports) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.out == ""


def test_up_passes_the_shapes_on(monkeypatch) -> None:
    given: list[str] = []
    monkeypatch.setattr("cluster.detached.start_detached", lambda name, args: given.extend(args))
    monkeypatch.setattr("cluster.cli.background._told", lambda cluster: {})
    shapes = ("--prefill-tp", "3", "--prefill-pp", "2", "--decode-tp", "9", "--decode-pp", "5")
    with monkeypatch.context() as patch:
        patch.setattr("signal.signal", lambda number, handler: None)
        assert run(patch, "up", *shapes, "--output", "json") == 0
    assert [given[given.index(word) + 1] for word in shapes[::2]] == ["3", "2", "9", "5"]


def test_a_taken_port_is_found_before_anything_starts(monkeypatch, capsys) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), OpenAIDoor) as server:
        arguments = ["serve", "--http-port", str(server.server_port)]
        assert run(monkeypatch, *arguments, "--grpc-port", "0", "--admin-port", "0") == 2
    shown = capsys.readouterr()
    assert f"--http-port = {server.server_port}: can't be used on 127.0.0.1" in shown.err
    assert shown.out == ""
