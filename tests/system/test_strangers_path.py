"""From the wheels in an empty environment to a cluster that has come and gone, step by step.

What is started is the installed `crossdock`, outside of the source tree, with a new home: it
imports the demo model, serves it 1P + 1D, and answers clients that others made or that were made
for others. The steps build on one another. Does not cover: what else each command can do (their own
tests).
"""

from __future__ import annotations

import json
import re
import shlex
import tempfile
import threading
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from served_cluster import assert_none_runs
from stranger import Stranger

from cluster.spec_file import load_spec
from distributions import ROOT, build_wheels
from waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]

GUIDELLM = ROOT / ".venv-guidellm" / "bin" / "guidellm"
DEMO = "SmolLM2-135M-Instruct"
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sorted(build_wheels(tmp_path_factory.mktemp("wheels")).values())


@pytest.fixture(scope="module")
def stranger(wheels: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    return Stranger(tmp_path_factory.mktemp("stranger"), wheels)


class Served:
    """What `crossdock serve` said where it answers, and what lay in /dev/shm before it came."""

    def __init__(self, stranger: Stranger) -> None:
        self.shared_before = set(SHARED_MEMORY.iterdir())
        ports = ("--grpc-port", "0", "--http-port", "0", "--admin-port", "0")
        words = ("serve", "--prefill", "1", "--decode", "1", "--name", "default", *ports)
        self.process = stranger.begin("crossdock", *words)
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        self.notes: list[str] = []
        threading.Thread(target=self.notes.extend, args=(self.process.stderr,), daemon=True).start()
        line = self.process.stdout.readline()
        ready = re.fullmatch(r"ready grpc=(\S+) http=(\S+)\n", line)
        assert ready is not None, f"{line!r} {self.notes}"
        self.grpc, self.url = ready[1], f"http://{ready[2]}"

    def fetch(self, path: str) -> str:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=30) as response:
            return str(response.read().decode())


@pytest.fixture(scope="module")
def served(stranger: Stranger) -> Iterator[Served]:
    served = Served(stranger)
    yield served
    if served.process.poll() is None:
        served.process.terminate()
    served.process.wait(90)


def test_all_of_it_is_in_the_wheels(stranger: Stranger) -> None:
    """Files of the packages, and nothing of the source tree on the import path."""
    for package in wheel_packages():
        for file in (ROOT / package).rglob("*"):
            if file.is_file() and not {"__pycache__", "built"} & set(file.parts):
                assert (stranger.packages / file.relative_to(ROOT)).is_file(), file
    path = json.loads(stranger.run("python", "-c", "import json, sys; print(json.dumps(sys.path))"))
    assert not {str(ROOT), str(ROOT / "protos")} & set(path)


def wheel_packages() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages: list[str] = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    return packages


def test_the_doctor_finds_nothing_wrong(stranger: Stranger) -> None:
    checks = {c["name"]: c for c in json.loads(stranger.crossdock("doctor", "--output", "json"))}
    assert not [check for check in checks.values() if check["status"] == "failed"]
    assert str(stranger.packages) in checks["modules"]["detail"]


def test_openai_s_client_gets_its_answers(served: Served) -> None:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:
        [model] = client.models.list().data
        messages = [{"role": "user", "content": "Name a colour."}]
        asked: dict[str, Any] = {"model": model.id, "messages": messages, "temperature": 0}
        whole = client.chat.completions.create(**asked, max_tokens=12)
        pieces = client.chat.completions.create(**asked, max_tokens=12, stream=True)
        text = "".join(piece.choices[0].delta.content or "" for piece in pieces)
    assert model.id == DEMO
    assert whole.choices[0].message.content == text
    assert text.strip()
    assert whole.usage
    assert 0 < whole.usage.completion_tokens <= 12


def test_the_grpc_client_does_what_its_readme_shows(stranger: Stranger, served: Served) -> None:
    readme = (ROOT / "protos" / "README.md").read_text(encoding="utf-8")
    [program] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert "127.0.0.1:50051" in program
    said = stranger.run("python", "-c", program.replace("127.0.0.1:50051", served.grpc))
    # The answer, why it ended, and then piece by piece.
    assert len(said.split()) > 32


@pytest.mark.skipif(not GUIDELLM.exists(), reason="scripts/test installs guidellm; it is not there")
def test_guidellm_measures_it(stranger: Stranger, served: Served) -> None:
    model = stranger.home / ".cache" / "crossdock" / "models" / DEMO
    replaced = {"http://127.0.0.1:8000": served.url, "FOLDER": str(model)}
    words = shown_command("guidellm run", replaced)
    stranger.run(str(GUIDELLM), *words[1:])
    [report] = json.loads((stranger.folder / "benchmarks.json").read_text())["benchmarks"]
    made = report["metrics"]["request_totals"]
    assert (made["successful"], made["errored"]) == (10, 0)


def shown_command(command: str, replaced: dict[str, str]) -> list[str]:
    """The line of docs/BENCH.md that starts with ``command``, with other words in it."""
    text = (ROOT / "docs" / "BENCH.md").read_text(encoding="utf-8").replace("\\\n", " ")
    [line] = re.findall(rf"^{command} .*$", text, re.MULTILINE)
    for old, new in replaced.items():
        assert old in line
        line = line.replace(old, new)
    return shlex.split(line)


def test_the_status_says_what_moved_and_how(stranger: Stranger, served: Served) -> None:
    status = json.loads(stranger.crossdock("status", "--validate", "--output", "json"))
    assert status["settled"]
    workers = {worker["worker"]: worker for worker in status["workers"]}
    assert workers.keys() == {"prefill-0", "decode-0"}
    [edge] = workers["decode-0"]["stats"]["edges"]
    assert (edge["peer"], edge["transport"]) == ("prefill-0", "shm")
    assert edge["bytes"] > 0


# Told where there is a store, or where there are certificates.
OF_OPTIONS = {
    "crossdock_router_store_shared",
    "crossdock_router_store_failures_total",
    "crossdock_router_peers",
    "crossdock_certificate_expiry_timestamp_seconds",
}


def test_every_metric_of_the_documents_is_told(served: Served) -> None:
    text = (ROOT / "docs" / "METRICS.md").read_text(encoding="utf-8")
    described = set(re.findall(r"^\| `(crossdock_\w+)` \|", text, re.MULTILINE))
    families = list(text_string_to_metric_families(served.fetch("/metrics/cluster")))
    told = {f"{f.name}{'_total' if f.type == 'counter' else ''}" for f in families}
    assert len(described) > 60
    assert described - told == OF_OPTIONS
    assert {
        f.name for f in families if f.name.startswith("crossdock_") and not f.documentation
    } == set()


def test_what_was_measured_tunes_the_cluster(stranger: Stranger, served: Served) -> None:
    load = ("--rate", "2", "--duration", "4s", "--seeds", "0", "--preset", "short")
    answers = ("--output-tokens", "5-20", "--save", "records.jsonl", "--output", "json")
    report = json.loads(stranger.crossdock("bench", *load, *answers))
    assert report["total"]["failed"] == 0
    # Of hardware that is not here: at what this one serves nobody would have to wait for an answer.
    hardware = ("--gpus", "l4:2", "--model", "llama-3.1-8b")
    told = stranger.crossdock("tune", "records.jsonl", *hardware, "--out", ".", "--output", "json")
    names = [Path(file).name for file in json.loads(told)["files"]]
    assert names == ["cluster.yaml", "values.yaml"]
    wanted = load_spec(stranger.folder / "cluster.yaml")
    values = yaml.safe_load((stranger.folder / "values.yaml").read_text())
    assert values["cluster"]["model"] == wanted.model == "llama-3.1-8b"


def test_it_scales_while_it_serves(stranger: Stranger, served: Served) -> None:
    assert stranger.crossdock("scale", "--decode", "2") == "now 1P:2D\n"
    answer = json.loads(
        stranger.crossdock("generate", "Once", "--max-tokens", "4", "--output", "json")
    )
    assert answer["completion_tokens"] == 4


def test_down_leaves_nothing(stranger: Stranger, served: Served) -> None:
    assert stranger.crossdock("down") == "the cluster default has ended\n"
    assert served.process.wait(30) == 0, served.notes
    assert_none_runs(stranger.mark)
    assert not list(Path(tempfile.gettempdir()).glob(f"crossdock-{served.process.pid}-*"))
    # Other tests that run have files there for a moment.
    wait_until(lambda: set(SHARED_MEMORY.iterdir()) <= served.shared_before)
    assert what_is_kept(stranger) == {f".cache/crossdock/models/{DEMO}"}


def what_is_kept(stranger: Stranger) -> set[str]:
    """Folders of their home in which files are left."""
    files = [path for path in stranger.home.rglob("*") if path.is_file()]
    return {str(file.parent.relative_to(stranger.home)) for file in files}
