"""`crossdock up` and `down` as people use them: found by other commands, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from served_cluster import assert_none_runs, new_mark

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

PORTS = ("--grpc-port", "0", "--http-port", "0", "--admin-port", "0")


class Shell:
    """A user with a runtime folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = new_mark()

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "cluster.cli.main", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"XDG_RUNTIME_DIR": str(self.folder)} | self.mark,
            # It may be ignored where tests run in the background, and that is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        process = self.begin(*arguments)
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err

    def files(self) -> set[str]:
        return {file.name for file in (self.folder / "crossdock").iterdir()}


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    if "default.json" in shell.files():
        shell.run("down")
    assert_none_runs(shell.mark)
    assert shell.files() <= {"default.log"}


def test_a_cluster_in_the_background(shell: Shell, tiny_model: Path) -> None:
    code, out, err = shell.run("up", "--model", str(tiny_model), *PORTS)
    assert code == 0, err
    assert out.startswith("ready grpc=127.0.0.1:")
    code, _, err = shell.run("up", "--model", str(tiny_model))
    assert (code, "runs already" in err) == (1, True)

    code, out, _ = shell.run("status", "--output", "json")
    assert code == 0
    assert json.loads(out)["settled"]
    code, out, _ = shell.run("generate", "hello", "--max-tokens", "3", "--output", "json")
    assert (code, json.loads(out)["completion_tokens"]) == (0, 3)
    code, out, _ = shell.run("chat", "hello", "--max-tokens", "3")
    assert code == 0
    code, out, _ = shell.run("scale", "--prefill", "0")
    assert (code, out) == (0, "now 0P:1D\n")

    code, out, _ = shell.run("down", "--output", "json")
    assert (code, json.loads(out)["name"]) == (0, "default")
    code, _, err = shell.run("down")
    assert code == 1
    assert "no cluster named 'default' runs" in err


def test_a_cluster_that_can_not_start_says_why(shell: Shell, tmp_path: Path) -> None:
    code, out, err = shell.run("up", "--model", str(tmp_path), *PORTS)
    assert (code, out) == (2, "")
    assert "is no model folder: it has no config.json" in err
    assert "default.log" in err


def test_wrong_settings_are_wrong_usage(shell: Shell, tmp_path: Path) -> None:
    config = tmp_path / "cluster.yaml"
    config.write_text("modle: x\n")
    code, _, err = shell.run("up", "--config", str(config))
    assert code == 2
    assert "did you mean `model`?" in err


def test_an_interrupted_start_leaves_nothing(shell: Shell, tiny_model: Path) -> None:
    starting = shell.begin("up", "--model", str(tiny_model), *PORTS)
    log = shell.folder / "crossdock" / "default.log"
    while not log.exists() or "for operators" not in log.read_text():
        assert starting.poll() is None
    starting.send_signal(signal.SIGINT)
    _, err = starting.communicate(timeout=120)
    assert starting.returncode != 0, err
