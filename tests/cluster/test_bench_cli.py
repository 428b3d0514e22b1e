"""`crossdock bench` as a command: wrong usage, servers that are not there, what it prints."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import tokenizers
from tiny_model import make_tiny_model
from tokenizers.models import WordLevel

from cluster.cli.main import main


def run(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["crossdock", "bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


class Door(BaseHTTPRequestHandler):
    """Answers each completion with as many tokens as were asked for."""

    def do_GET(self) -> None:
        self._send(json.dumps({"data": [{"id": "tiny"}]}).encode(), "application/json")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        count = body["max_tokens"]
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": count}
        events: list[object] = [{"choices": [{"index": 0, "text": "x"}]}] * count
        events.append({"choices": [], "usage": usage})
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        self._send("".join([*lines, "data: [DONE]\n\n"]).encode(), "text/event-stream")

    def _send(self, content: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def door() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Door) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture
def tokenizer(tmp_path: Path) -> str:
    words = {f" w{i}": i for i in range(100)}
    backend = tokenizers.Tokenizer(WordLevel(words, unk_token=" w0"))
    (tmp_path / "tiny").mkdir()
    backend.save(str(tmp_path / "tiny" / "tokenizer.json"))
    return str(tmp_path / "tiny")


LOAD = ("--rate", "50", "--arrivals", "constant", "--duration", "0.1s", "--seeds", "0,1",
        "--input-tokens", "5-9", "--output-tokens", "4")  # fmt: skip


def test_a_run_as_json_with_its_records(door, tokenizer, monkeypatch, capsys, tmp_path) -> None:
    records = tmp_path / "records.jsonl"
    arguments = ("--target", door, "--tokenizer", tokenizer, "--save", str(records))
    assert run(monkeypatch, *LOAD, *arguments, "--output", "json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["model"] == "tiny"
    assert report["total"]["completed"] == 10
    assert report["total"]["output_tokens"] == 40
    assert [one["completed"] for one in report["per_seed"]] == [5, 5]
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    assert [(line["seed"], line["index"]) for line in lines] == [
        (seed, index) for seed in (0, 1) for index in range(5)
    ]
    tokens_in = sum(line["usage"]["prompt_tokens"] for line in lines)
    assert tokens_in == report["total"]["input_tokens"]


def test_a_run_as_a_table(door, tokenizer, monkeypatch, capsys) -> None:
    assert run(monkeypatch, *LOAD, "--target", door, "--tokenizer", tokenizer) == 0
    shown = capsys.readouterr().out
    assert "constant, 50 requests/s, 0.1 s × 2 seeds; prompts 100% 5-9 tokens" in shown
    assert "goodput share         100.0%     100.0%  100.0%" in shown


def test_a_trace_is_replayed(door, tokenizer, monkeypatch, capsys, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    entry = {"timestamp": 1000, "input_length": 600, "output_length": 2, "hash_ids": [1, 2]}
    trace.write_text(f"{json.dumps(entry)}\n{json.dumps(entry | {'timestamp': 3000})}\n")
    arguments = ("--trace", str(trace), "--speed", "100", "--target", door, "--tokenizer")
    assert run(monkeypatch, *arguments, tokenizer, "--output", "json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["total"]["window_s"] == pytest.approx(0.02)
    assert report["total"]["input_tokens"] == 1_200


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--rate", "0"), "--rate"),
        (("--rate", "fast"), "--rate"),
        (("--preset", "huge"), "--preset"),
        (("--arrivals", "never"), "--arrivals"),
        (("--duration", "0"), "--duration"),
        (("--seeds", "1,1"), "--seeds"),
        (("--input-tokens", "9-5"), "--input-tokens"),
        (("--output-tokens", "x"), "--output-tokens"),
        (("--slo-ttft", "soon"), "--slo-ttft"),
        (("--slo-tpot", "0ms"), "--slo-tpot"),
        (("--request-timeout", "x"), "--request-timeout"),
        (("--drain", "x"), "--drain"),
        (("--target", "nonsense"), "--target"),
        (("--target", "grpc://host"), "--target"),
        (("--target", "grpc://h:1", "--model", "x"), "--model"),
        (("--target", "grpc://h:1", "--endpoint", "chat"), "--endpoint"),
        (("--by-ticket",), "--by-ticket"),
        (("--endpoint", "edits"), "--endpoint"),
        (("--prompt-format", "xml"), "--prompt-format"),
        (("--endpoint", "chat", "--prompt-format", "ids"), "--prompt-format"),
        (("--prompt-seed", "-1"), "--prompt-seed"),
        (("--max-concurrency", "0"), "--max-concurrency"),
        (("--speed", "2"), "--speed"),
        (("--limit", "2"), "--limit"),
        (("--trace", "/nowhere.jsonl"), "--trace"),
        (("--trace", "/nowhere.jsonl", "--rate", "2"), "--rate"),
        (("--save", "/nowhere/x"), "--save"),
        (("--output", "xml"), "--output"),
        (("--bogus",), "--bogus"),
        (("engines",), "engines"),
    ],
)
def test_wrong_usage_names_the_option(arguments, named, monkeypatch, capsys) -> None:
    assert run(monkeypatch, *arguments) == 2
    shown = capsys.readouterr()
    assert named in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_is_not_there(scheme, monkeypatch, capsys, unused_tcp_port: int) -> None:
    target = f"{scheme}://127.0.0.1:{unused_tcp_port}"
    assert run(monkeypatch, "--target", target) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("error: can't connect to ")
    assert f"127.0.0.1:{unused_tcp_port}" in shown.err
    assert shown.out == ""


def test_a_tokenizer_folder_without_a_tokenizer(door, monkeypatch, capsys, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    folder = str(tmp_path / "empty")
    assert run(monkeypatch, *LOAD, "--target", door, "--tokenizer", folder) == 2
    assert "tokenizer.json" in capsys.readouterr().err


def test_a_model_that_is_not_imported_needs_a_tokenizer(door, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, *LOAD, "--target", door) == 2
    assert "--tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("engine", "--threads", "99999"), "--threads"),
        (("engine", "--threads", "two"), "--threads"),
        (("engine", "--prompts", "0"), "--prompts"),
        (("engine", "--batches", "4,4"), "--batches"),
        (("engine", "--contexts", ""), "--contexts"),
        (("engine", "--against", "grpc://h:1"), "--against"),
        (("engine", "--api-key", "secret"), "--api-key"),
        (("engine", "--device", "tpu"), "--device"),
        (("engine", "--device", "cuda", "--threads", "1"), "--threads"),
        (("engine", "--random-weights", "--against", "http://h:1"), "--against"),
        (("engine", "--model", "/nowhere"), "/nowhere"),
        (("--rate", "2", "engine"), "--rate"),
        (("--api-key", "secret", "engine"), "--api-key"),
    ],
)
def test_wrong_usage_of_engine_is_named(
    arguments: tuple[str, ...], named: str, monkeypatch, capsys
) -> None:
    assert run(monkeypatch, *arguments) == 2
    said = capsys.readouterr().err
    assert named in said
    assert "secret" not in said


def test_a_server_that_is_not_there_is_named_before_the_engine_is_measured(
    unused_tcp_port: int, tmp_path: Path, monkeypatch, capsys
) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    model = make_tiny_model(tmp_path / "tiny")
    assert run(monkeypatch, "engine", "--model", str(model), "--against", url) == 1
    assert f"can't connect to {url}" in capsys.readouterr().err
