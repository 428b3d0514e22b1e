"""Objects against the schemas of their kinds, which refuse unknown keys and wrong types."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import jsonschema
import kubernetes_validate
from charts import Manifest, pod_templates

_CUSTOM = {path.stem: path for path in (Path(__file__).parent / "schemas").glob("*.json")}
_KUBERNETES = "1.34"


def check_objects(manifests: list[Manifest]) -> None:
    """These, and the pods that come of them."""
    for manifest in manifests:
        check_object(manifest)
    for _, template in pod_templates(manifests):
        check_object(_as_pod(template))


def check_object(manifest: Manifest) -> None:
    _check(json.dumps(manifest))


@functools.cache
def _check(text: str) -> None:
    """Many are the same in several installations."""
    manifest = json.loads(text)
    custom = _CUSTOM.get(manifest["kind"])
    if custom is not None:
        jsonschema.validate(manifest, json.loads(custom.read_text()))
    else:
        kubernetes_validate.validate(manifest, _KUBERNETES, strict=True)


def _as_pod(template: Manifest) -> Manifest:
    metadata = template.get("metadata", {}) | {"name": "checked"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
