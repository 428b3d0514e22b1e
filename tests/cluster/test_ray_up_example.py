"""examples/ray-cluster.yaml: Ray's launcher takes it, and what is to be served fits on it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer.main
import yaml

from cluster.cli.main import new_app
from cluster.placement_fit import ReplicaNeed, check_fit
from cluster.plan import list_slots, replica_need
from cluster.spec_file import read_spec

ROOT = Path(__file__).resolve().parent.parent.parent
MACHINES = ROOT / "examples/ray-cluster.yaml"
SERVING = ROOT / "examples/ray-serving.yaml"

# As `ray up` does before it asks the cloud for anything. In a process of its own: Ray reads its
# environment when it is imported.
PREPARE = """
import json, sys, yaml
from ray.autoscaler._private.util import prepare_config, validate_config
config = prepare_config(yaml.safe_load(open(sys.argv[1])))
validate_config(config)
print(json.dumps(config))
"""


def machines() -> dict[str, Any]:
    content = yaml.safe_load(MACHINES.read_text())
    assert isinstance(content, dict)
    return content


def prepare(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", PREPARE, str(path)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ, check=False)


def test_the_launcher_of_ray_takes_it() -> None:
    done = prepare(MACHINES)
    assert done.returncode == 0, done.stderr
    # Ray says on stdout that files to copy are not there yet.
    prepared = json.loads(done.stdout.splitlines()[-1])
    assert prepared["available_node_types"].keys() == {"head", "prefill", "decode"}
    assert not prepared["docker"]


def test_a_slip_in_it_would_be_noticed(tmp_path: Path) -> None:
    wrong = machines()
    wrong["available_node_types"]["decode"]["min_worker"] = 2
    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(wrong))
    done = prepare(tmp_path / "wrong.yaml")
    assert done.returncode != 0
    assert "min_worker" in done.stderr


def test_every_replica_finds_room_and_no_node_is_left_over() -> None:
    types = machines()["available_node_types"]
    nodes = [dict(t["resources"]) for t in types.values() for _ in range(t.get("min_workers", 0))]
    spec = read_spec(SERVING)
    wanted: dict[str, list[ReplicaNeed]] = {}
    for slot in list_slots(spec):
        wanted.setdefault(slot.pool, []).append(replica_need(spec, slot, False))
    check_fit(nodes, wanted)
    assert sum(map(len, wanted.values())) == len(nodes) == machines()["max_workers"]
    # The head has no work.
    assert types[machines()["head_node_type"]]["resources"] == {"CPU": 0}


def test_the_files_that_it_copies_are_there_or_made_by_the_commands_shown() -> None:
    mounts = machines()["file_mounts"]
    assert mounts.pop("/home/ubuntu/wheels") == "wheels"
    assert mounts.pop("/home/ubuntu/.ray/auth_token") == "~/.ray/auth_token"
    assert mounts == {"/home/ubuntu/cluster.yaml": "examples/ray-serving.yaml"}
    shown = (ROOT / "docs/OPERATIONS.md").read_text()
    for command in ("pip wheel --no-deps --wheel-dir wheels", "ray get-auth-token --generate"):
        assert command in shown
    model = read_spec(SERVING).model
    assert model is not None
    assert any(
        model.replace("/home/ubuntu", "~") in command for command in machines()["setup_commands"]
    )


def test_the_commands_of_ours_exist() -> None:
    commands = typer.main.get_command(new_app()).commands
    lines = "\n".join(machines()["setup_commands"])
    used = set(re.findall(r"crossdock/bin/crossdock (\w+)", lines))
    assert used == {"model"}
    assert used <= commands.keys()
