"""The commands that README.md shows are run as they stand, against a cluster of a tiny model."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from served_cluster import ServedCluster, served
from tiny_model import make_tiny_model

from cluster.cli.main import main
from cluster.model_folder import ModelFolder
from cluster.plan import check_shapes
from core.config import ClusterSpec
from core.shards import ONE_RANK

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parent.parent.parent
SHOWN = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
LINES = [
    line.split(" #")[0].strip()
    for block in SHOWN
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip() and not line.startswith("#")
]


# Commands that take minutes: what they do is replaced, how they are called is not.
MINUTES = {
    "profile": "cluster.profiling.run.measure_profile",
    "simulate": "cluster.cli.simulate_run.run",
    "tune": "cluster.cli.tune_run.run",
}


def run(command: str, cluster: ServedCluster, cwd: Path) -> subprocess.CompletedProcess[str]:
    """As a person would, but with this interpreter and the ports of the test's cluster."""
    replaced = command.replace("http://127.0.0.1:8000", cluster.http_url)
    words = shlex.split(replaced)
    if words[0] == ".venv/bin/crossdock":
        words[0:1] = [sys.executable, "-P", "-m", "cluster.cli.main"]
        words += address_option(words[4], cluster)
    return subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=cwd)


def address_option(command: str, cluster: ServedCluster) -> list[str]:
    return {
        "bench": ["--target", cluster.http_url],
        "chat": ["--url", cluster.http_url],
        "generate": ["--address", cluster.grpc_address],
        "status": ["--address", cluster.admin_address],
        "scale": ["--address", cluster.admin_address],
        "drain": ["--address", cluster.admin_address],
    }.get(command, [])


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


def test_what_the_readme_shows_works(tmp_path: Path) -> None:
    usable = [line for line in LINES if line.startswith((".venv/bin/crossdock", "curl"))]
    shown = [line for line in usable if not set(line.split()) & {"serve", *MINUTES}]
    assert len(shown) >= 5
    model = make_tiny_model(tmp_path / "SmolLM2-135M-Instruct")
    with served(model, 1, 1) as cluster:
        for line in shown:
            # From here `bench` finds the tokenizer by the model's name.
            done = run(line, cluster, tmp_path)
            assert done.returncode == 0, f"{line}: {done.stderr}"
            assert done.stdout.strip(), f"{line} printed nothing"
            assert '"error"' not in done.stdout, f"{line}: {done.stdout}"
