"""The chart rendered by Helm's own code (helm-python-sdk binds it), as objects."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
CHART = ROOT / "helm/crossdock"
CI = sorted((CHART / "ci").glob("*-values.yaml"))

Manifest = dict[str, Any]


def ci_values(name: str) -> dict[str, Any]:
    """Of ci/NAME-values.yaml."""
    values = yaml.safe_load((CHART / f"ci/{name}-values.yaml").read_text())
    assert isinstance(values, dict)
    return values


def render(values: dict[str, Any] | None = None, name: str = "crossdock") -> list[Manifest]:
    """Every object that an installation into the namespace llm creates, sorted by kind and name."""
    found = [m for text in _render(json.dumps(values or {}), name) for m in json.loads(text)]
    return sorted(found, key=lambda m: (m["kind"], m["metadata"]["name"]))


@functools.cache
def _render(values: str, name: str) -> list[str]:
    """Each file's objects, as JSON: whoever asks gets objects of their own."""
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(json.loads(values), name=name, namespace="llm", is_install=True)
    return [_as_json(text) for path, text in files.items() if not path.endswith(".txt")]


@functools.cache
def _as_json(text: str) -> str:
    """Most files say the same whatever the values are, and YAML takes longer to read than JSON."""
    return json.dumps([m for m in yaml.load_all(text, yaml.CSafeLoader) if m])


def one(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    [found] = [m for m in manifests if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    return found


def kinds(manifests: list[Manifest]) -> set[str]:
    return {m["kind"] for m in manifests}


def pod_templates(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    """Every pod that would run: whose it is, and its template or itself."""
    for manifest in manifests:
        name, spec = manifest["metadata"]["name"], manifest.get("spec", {})
        match manifest["kind"]:
            case "Deployment" | "StatefulSet" | "Job":
                yield name, spec["template"]
            case "Pod":
                yield name, manifest
            case "RayCluster":
                yield f"{name}/head", spec["headGroupSpec"]["template"]
                for group in spec["workerGroupSpecs"]:
                    yield f"{name}/{group['groupName']}", group["template"]


def containers(template: Manifest) -> list[Manifest]:
    spec = template["spec"]
    return [*spec.get("initContainers", []), *spec["containers"]]


def groups(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Worker groups of the RayCluster, by name."""
    [cluster] = [m for m in manifests if m["kind"] == "RayCluster"]
    return {group["groupName"]: group for group in cluster["spec"]["workerGroupSpecs"]}
