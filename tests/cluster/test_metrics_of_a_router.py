"""Where the numbers of `status --watch` come from: one router at a time."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cluster.cli.identity import metrics_token, remember_identity
from cluster.cli.router_metrics import RouterMetrics
from cluster.cli.watch import Watched, _intervals, _parse
from core.errors import InvalidField, Unavailable
from core.metric_spec import counter
from crossdock.v1 import admin_pb2

SEEN = counter("seen", "How many")


class Routers(ThreadingHTTPServer):
    """Several behind one address, as behind a Service: each connection is another one's."""

    daemon_threads = True

    def __init__(self, looks_each: int, token: str) -> None:
        super().__init__(("127.0.0.1", 0), OneRouter)
        self.looks_each, self.token = looks_each, token
        self.seen = itertools.count(1)


class OneRouter(BaseHTTPRequestHandler):
    """Ends, without a word, when it was asked so often."""

    protocol_version = "HTTP/1.1"
    server: Routers

    def setup(self) -> None:
        super().setup()
        self.name, self.looks = next(self.server.seen), 0

    def do_GET(self) -> None:
        if self.server.token and self.headers["Authorization"] != f"Bearer {self.server.token}":
            self.send_error(401)
            return
        self.looks += 1
        text = f"# TYPE crossdock_seen counter\ncrossdock_seen_total {self.name}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
        self.close_connection = self.looks == self.server.looks_each

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def routers(
    looks_each: int, *, token: str = "", given: str | None = None
) -> Iterator[RouterMetrics]:
    """Those that ask for a ``token``; ``given``: what is shown to them."""
    with Routers(looks_each, token) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        place = f"127.0.0.1:{server.server_address[1]}"
        yield RouterMetrics(place, None, compare_names=True, token=given)
        server.shutdown()
        thread.join()


def test_one_of_several_routers_is_asked_again_and_again() -> None:
    with routers(looks_each=9) as asked:
        looks = list(itertools.islice(asked.looks(), 3))
    assert looks == [("# TYPE crossdock_seen counter\ncrossdock_seen_total 1\n", False)] * 3


def test_where_the_router_has_ended_another_one_is_asked_and_is_told_apart() -> None:
    with routers(looks_each=2) as asked:
        looks = [(text[-2], other) for text, other in itertools.islice(asked.looks(), 4)]
    assert looks == [("1", False), ("1", False), ("2", True), ("2", False)]


def test_a_token_is_shown_where_one_is_given() -> None:
    with routers(looks_each=9, token="right", given="right") as asked:
        assert "crossdock_seen_total 1" in next(asked.looks())[0]
    for given in (None, "wrong"):
        refused = pytest.raises(Unavailable, match="--metrics-token-file")
        with routers(looks_each=9, token="right", given=given) as asked, refused:
            next(asked.looks())


def test_a_token_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember_identity()
    assert metrics_token() is None
    monkeypatch.setenv("CROSSDOCK_METRICS_TOKEN", "from-there")
    assert metrics_token() == "from-there"
    (tmp_path / "token").write_text("from-a-file\n")
    remember_identity(metrics_token_file=tmp_path / "token")
    assert metrics_token() == "from-a-file"
    for text in ("", "two\nlines", "größer"):
        (tmp_path / "token").write_text(text)
        with pytest.raises(InvalidField, match="metrics-token-file"):
            metrics_token()
    remember_identity()
    monkeypatch.setenv("CROSSDOCK_METRICS_TOKEN", "größer")
    with pytest.raises(InvalidField, match="CROSSDOCK_METRICS_TOKEN") as refused:
        metrics_token()
    assert "größer" not in str(refused.value)


def test_rates_are_never_between_two_routers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.cli.watch.fetch_status", lambda address: admin_pb2.ClusterStatus())
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with routers(looks_each=2) as asked:
        monkeypatch.setattr("cluster.cli.watch._router_metrics", lambda *_: asked)
        found = itertools.islice(_intervals(Watched("127.0.0.1:3", None, 1.0)), 2)
        assert [interval.increase(SEEN) for _, interval in found] == [0.0, 0.0]


def test_what_speaks_no_http_is_not_shown() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        place = f"127.0.0.1:{listening.getsockname()[1]}"
        asked = threading.Thread(target=_answer_garbage, args=(listening,))
        asked.start()
        with pytest.raises(Unavailable, match=r"does not speak HTTP$"):
            next(RouterMetrics(place, None, compare_names=True).looks())
        asked.join()


def _answer_garbage(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(b"\x00\x1b[2J\x04garbage\r\n")


def test_what_is_no_metrics_is_refused() -> None:
    with pytest.raises(Unavailable, match=r"is no metrics .* --router"):
        _parse("<html>Hello!</html>\n")
