"""What the chart renders is what Kubernetes and the operators take, and is what it was.

Nothing here runs on a Kubernetes: schemas refuse unknown keys and wrong types, no more. After a
change that is meant, `CROSSDOCK_WRITE_GOLDEN=1 pytest tests/helm` writes the golden files anew.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import helm_python
import jsonschema
import kubernetes_validate
import pytest
import yaml
from charts import CHART, CI, ci_values, pod_templates, render
from object_schemas import check_object, check_objects

from amounts import some_of

HERE = Path(__file__).parent

NAMES = [path.stem.removesuffix("-values") for path in CI]
names = pytest.mark.parametrize("name", NAMES)


@pytest.mark.parametrize("name", some_of(NAMES))
def test_every_object_is_what_its_kind_takes(name: str) -> None:
    check_objects(render(ci_values(name)))


WHOLE_DEFINITION = os.environ.get("KUBERAY_CRD")


@pytest.mark.skipif(
    not WHOLE_DEFINITION,
    reason="KUBERAY_CRD does not name KubeRay's ray.io_rayclusters.yaml",
)
@names
def test_kuberay_takes_the_cluster(name: str) -> None:
    definition = yaml.safe_load(Path(str(WHOLE_DEFINITION)).read_text())
    [version] = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
    [cluster] = [m for m in render(ci_values(name)) if m["kind"] == "RayCluster"]
    jsonschema.Draft7Validator(version["schema"]["openAPIV3Schema"]).validate(cluster)
    known = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert cluster["spec"].keys() <= known.keys()
    group = known["workerGroupSpecs"]["items"]["properties"]
    for workers in cluster["spec"]["workerGroupSpecs"]:
        assert workers.keys() <= group.keys()


@names
def test_every_object_is_what_it_was(name: str) -> None:
    rendered = yaml.safe_dump_all(render(ci_values(name)), sort_keys=True, width=100)
    golden = HERE / f"golden/{name}.yaml"
    if os.environ.get("CROSSDOCK_WRITE_GOLDEN"):
        golden.write_text(rendered)
    assert rendered == golden.read_text(), "see the head of this file"


def test_the_checks_find_what_is_wrong() -> None:
    [cluster] = [m for m in render() if m["kind"] == "RayCluster"]
    cluster["spec"]["workerGroups"] = []
    with pytest.raises(jsonschema.ValidationError, match="workerGroups"):
        check_object(cluster)
    [router] = [m for m in render() if m["metadata"]["name"].endswith("-router")][:1]
    router["spec"]["replcas"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="replcas"):
        check_object(router)


@names
def test_objects_have_names_of_their_own_and_say_whose_they_are(name: str) -> None:
    manifests = render(ci_values(name))
    seen: set[tuple[str, str]] = set()
    for manifest in manifests:
        about: dict[str, Any] = manifest["metadata"]
        assert (manifest["kind"], about["name"]) not in seen
        seen.add((manifest["kind"], about["name"]))
        assert about["labels"]["app.kubernetes.io/managed-by"] == "Helm"
        assert len(about["name"]) <= 53


@names
def test_selectors_find_the_pods_that_they_mean(name: str) -> None:
    manifests = render(ci_values(name))
    labels = [template["metadata"]["labels"] for _, template in pod_templates(manifests)]
    for manifest in manifests:
        spec = manifest.get("spec", {})
        selector = {
            "Service": lambda spec=spec: spec["selector"],
            "PodDisruptionBudget": lambda spec=spec: spec["selector"]["matchLabels"],
            "Deployment": lambda spec=spec: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda spec=spec: spec["podSelector"]["matchLabels"],
        }.get(manifest["kind"])
        if selector is not None:
            wanted = selector().items()
            assert any(wanted <= own.items() for own in labels), manifest["metadata"]["name"]


def test_the_packaged_chart_is_the_same(tmp_path: Path) -> None:
    package = helm_python.package(CHART, destination=tmp_path)
    values = ci_values("ha")
    rendered = []
    for source in (CHART, package):
        with helm_python.Chart.load(source) as chart:
            rendered.append(chart.render(values, name="crossdock", namespace="llm"))
    assert rendered[0] == rendered[1]
