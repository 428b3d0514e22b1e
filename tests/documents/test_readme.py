"""What README.md, docs/QUICKSTART.md and docs/OPERATIONS.md show is carried out as it stands.

By one reader after another, against a cluster of a tiny model that the documents' own `up` starts,
that the commands find by themselves, and that the documents' own `down` ends.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from served_cluster import assert_none_runs, new_mark
from shown import ROOT, blocks, commands
from tiny_model import make_tiny_model

from cluster.cli.main import main
from cluster.model_folder import ModelFolder
from cluster.plan import check_shapes
from core.config import ClusterSpec
from core.shards import ONE_RANK

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

README = ROOT / "README.md"
LINES = commands(README)
READ_IN_ORDER = ["README.md", "docs/QUICKSTART.md", "docs/OPERATIONS.md"]
PROGRAMS = ["docs/QUICKSTART.md", "protos/README.md"]
MODEL = "SmolLM2-135M-Instruct"
PORTS = ("--grpc-port", "0", "--http-port", "0", "--admin-port", "0")
UP = ("crossdock", "up", "--prefill", "1", "--decode", "1")

# Commands that take minutes: what they do is replaced, how they are called is not.
MINUTES = {
    "profile": "cluster.profiling.run.measure_profile",
    "simulate": "cluster.cli.simulate_run.run",
    "tune": "cluster.cli.tune_run.run",
}


class Reader:
    """Somebody with a shell: this interpreter, folders of their own, whatever ports are free."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = new_mark()
        self.http = ""
        self.grpc = ""
        (folder / "run").mkdir(mode=0o700)
        self._environment = os.environ | self.mark
        self._environment |= {"XDG_RUNTIME_DIR": str(folder / "run")}
        self._environment |= {"XDG_CACHE_HOME": str(folder / "cache")}

    def start(self) -> None:
        make_tiny_model(self.folder / "cache" / "crossdock" / "models" / MODEL)
        out = self.run([*UP, *PORTS, "--model", MODEL])
        ready = re.fullmatch(r"ready grpc=(\S+) http=(\S+)\n", out)
        assert ready is not None, out
        self.grpc, self.http = ready[1], ready[2]

    def follow(self, line: str) -> str:
        """What it prints. Fails if it fails, or prints nothing."""
        out = self.run(shlex.split(self._here(line)))
        assert out.strip(), f"{line} printed nothing"
        assert '"error"' not in out, f"{line}: {out}"
        return out

    def python(self, text: str) -> str:
        return self.run([sys.executable, "-c", self._here(text)])

    def run(self, words: list[str]) -> str:
        if words[0].rpartition("/")[2] == "crossdock":
            words = [sys.executable, "-P", "-m", "cluster.cli.main", *words[1:]]
        environment, cwd = self._environment, self.folder
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=120, cwd=cwd, env=environment
        )
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
        return done.stdout

    def _here(self, text: str) -> str:
        return text.replace("127.0.0.1:8000", self.http).replace("127.0.0.1:50051", self.grpc)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    if (tmp_path / "run" / "crossdock" / "default.json").exists():
        reader.run(["crossdock", "down"])
    assert_none_runs(reader.mark)


def test_what_the_documents_show_works(reader: Reader) -> None:
    reader.start()
    for line in followed():
        reader.follow(line)
    for program in PROGRAMS:
        for block in blocks("python", ROOT / program):
            assert reader.python(block.text).strip()
    reader.follow("crossdock status --validate")
    assert "default" in json.loads(reader.follow("crossdock down --output json"))["name"]


def followed() -> list[str]:
    """All that can be done in seconds on one machine, up to the end of the cluster; what is shown
    twice once."""
    shown = [line for document in READ_IN_ORDER for line in commands(ROOT / document)]
    unique = dict.fromkeys(line.removeprefix(".venv/bin/") for line in shown)
    left_out = {"serve", "up", "down", *MINUTES}
    return [
        line
        for line in unique
        if line.startswith(("crossdock ", "curl ")) and not set(line.split()) & left_out
    ]


def test_the_documents_start_and_end_a_cluster() -> None:
    assert len(followed()) >= 12
    for document in READ_IN_ORDER[1:]:
        shown = [tuple(line.split()) for line in commands(ROOT / document)]
        assert UP in shown
        assert ("crossdock", "down") in shown


def test_the_two_commands_exist_and_are_executable() -> None:
    scripts = [ROOT / line.split()[0] for line in LINES if line.startswith("./scripts/")]
    assert {script.name for script in scripts} == {"demo", "test"}
    for script in scripts:
        assert script.stat().st_mode & 0o111
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_what_is_served_in_the_readme_suits_the_demo_model(monkeypatch) -> None:
    demo = ModelFolder(Path("/models/SmolLM2-135M-Instruct"), 30, 9, 3, 64, "bfloat16", 8192)
    served_specs: list[ClusterSpec] = []
    take = lambda options, progress: served_specs.append(options.spec)  # noqa: E731
    monkeypatch.setattr("cluster.launch.run_serve", take)
    lines = [line for line in LINES if line.startswith(".venv/bin/crossdock serve")]
    for line in lines:
        monkeypatch.setattr(sys, "argv", ["crossdock", *shlex.split(line)[1:]])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, line
    assert {spec.pools.prefill.shape for spec in served_specs} > {ONE_RANK}
    for spec in served_specs:
        check_shapes(spec, demo)


@pytest.mark.parametrize("name", MINUTES)
def test_what_takes_minutes_is_called_as_it_can_be(name: str, monkeypatch) -> None:
    """Its files are there, or made by a line before."""

    class Called(Exception):
        pass

    def instead(*arguments: object) -> None:
        raise Called

    monkeypatch.setattr(MINUTES[name], instead)
    monkeypatch.chdir(ROOT)
    (line,) = [line for line in LINES if f"crossdock {name} " in line]
    monkeypatch.setattr(sys, "argv", ["crossdock", *shlex.split(line)[1:]])
    with pytest.raises(Called):
        main()
    for example in re.findall(r"examples/\S+", line):
        assert (ROOT / example).is_file()
