"""A real Redis of a test's own: on a Unix socket, keeping nothing, ended with the test."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

needs_redis = pytest.mark.skipif(
    not shutil.which("redis-server"), reason="redis-server is not installed"
)


class RedisServer:
    """``start`` it as often as it was ended: each time it is empty."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.socket = folder / "redis.sock"
        self._command = ["redis-server", "--port", "0", "--unixsocket", str(self.socket)]
        self._command += ["--save", "", "--appendonly", "no", "--dir", str(folder), *options]
        # Of `redis-cli`, such as a password.
        self.environment: dict[str, str] = {}
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> None:
        process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        self._process = process
        said = []
        for line in process.stdout:
            said.append(line)
            if "ready to accept connections at" in line.lower():
                return
        raise AssertionError(said)

    def stop(self) -> None:
        """It keeps its connections and answers nobody."""
        self._running.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._running.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._running.kill()
        self._running.communicate()
        self._process = None

    def ask(self, *words: str) -> str:
        """What `redis-cli` prints."""
        command = ["redis-cli", "-s", str(self.socket), *words]
        environment = os.environ | self.environment
        return subprocess.check_output(command, text=True, env=environment).strip()

    @property
    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None
        return self._process


@contextlib.contextmanager
def redis_server(folder: Path, *options: str) -> Iterator[RedisServer]:
    server = RedisServer(folder, *options)
    server.start()
    try:
        yield server
    finally:
        if server._process is not None:
            server.go_on()
            server.kill()
