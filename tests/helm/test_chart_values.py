"""What the chart's schema takes and refuses, and that it is as fresh as what it is made from."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from charts import CHART, CI, ROOT, render

from core.config import make_spec
from core.errors import InvalidField

# Severities of helm lint.
INFO = 1


def refusal(values: dict[str, Any]) -> str:
    with pytest.raises(helm_python.HelmError) as refused:
        render(values)
    return str(refused.value)


def test_schema_and_readme_are_fresh() -> None:
    command = [sys.executable, str(ROOT / "scripts/helm-values"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", CI, ids=lambda path: path.stem)
def test_helm_lint_has_nothing_to_say(path: Path) -> None:
    report = helm_python.lint(CHART, yaml.safe_load(path.read_text()), strict=True)
    assert not report["errors"]
    assert not [m for m in report["messages"] if m["severity"] > INFO]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replicaCount": 2}, "replicaCount"),
        ({"router": {"replica": 2}}, "replica"),
        ({"router": {"service": {"port": 1}}}, "port"),
        ({"cluster": {"modle": "x"}}, "modle"),
        ({"cluster": {"pools": {"decode": {"replica": 2}}}}, "replica"),
        ({"model": {"source": "s3"}}, "source"),
        ({"router": {"replicas": "2"}}, "replicas"),
        ({"cluster": {"pools": {"decode": {"tensor_parallel_size": 0}}}}, "tensor_parallel_size"),
        ({"cluster": {"engine": {"device": "tpu"}}}, "device"),
        ({"cluster": {"tenants": {"a b": {}}}}, "a b"),
        ({"cluster": {"tenants": {"a": {"wieght": 2}}}}, "wieght"),
        ({"resources": {"request": {"cpu": 1}}}, "request"),
        ({"redis": {"resources": {"limits": {"cpu": ["1"]}}}}, "cpu"),
        ({"decode": {"affinity": {"podAntiAfinity": {}}}}, "podAntiAfinity"),
        ({"head": {"podAnnotations": {"sidecar": True}}}, "sidecar"),
        ({"nodeSelector": {"gpus": 8}}, "gpus"),
        ({"podSecurityContext": {"runAsUsr": 1}}, "runAsUsr"),
        ({"securityContext": {"readOnlyRootFs": True}}, "readOnlyRootFs"),
        ({"prefill": {"tolerations": [{"ky": "nvidia.com/gpu"}]}}, "ky"),
        ({"imagePullSecrets": ["registry"]}, "imagePullSecrets/0"),
        ({"extraEnv": [{"name": "DEBUG", "value": 1}]}, "extraEnv/0/value"),
        ({"extraVolumeMounts": [{"name": "a", "path": "/a"}]}, "path"),
        ({"networkPolicy": {"clients": ["monitoring"]}}, "clients/0"),
        ({"decode": {"topologySpreadConstraints": [{"skew": 1}]}}, "skew"),
        ({"ingress": {"hosts": [{"host": "a"}]}}, "hosts/0"),
        ({"gateway": {"parentRefs": ["public"]}}, "parentRefs/0"),
        ({"prefill": {"drainSeconds": 100_000}}, "drainSeconds"),
        ({"controller": {"patienceSeconds": 100_000}}, "patienceSeconds"),
        ({"router": {"service": {"httpPort": 80_000}}}, "httpPort"),
    ],
)
def test_what_nobody_knows_is_refused_by_name(values: dict[str, Any], named: str) -> None:
    assert named in refusal(values)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("podSecurityContext", "podsecuritycontext"),
        ("securityContext", "securitycontext"),
        ("resources", "resourcerequirements"),
        ("affinity", "affinity"),
        ("imagePullSecrets/items", "localobjectreference"),
        ("tolerations/items", "toleration"),
        ("prefill/properties/topologySpreadConstraints/items", "topologyspreadconstraint"),
        ("extraEnv/items", "envvar"),
        ("extraVolumeMounts/items", "volumemount"),
        ("networkPolicy/properties/clients/items", "networkpolicypeer-networking"),
    ],
)
def test_keys_of_kubernetes_own_are_all_known(path: str, kind: str) -> None:
    at = json.loads((CHART / "values.schema.json").read_text())["properties"]
    for name in path.split("/"):
        at = at[name]
    known = json.loads((of_kubernetes() / f"{kind}-v1.json").read_text())
    assert at["properties"].keys() == known["properties"].keys()


def of_kubernetes() -> Path:
    """Schemas of the newest Kubernetes that is known here."""
    package = Path(str(files("kubernetes_validate")))
    return max(package.glob("kubernetes-json-schema/*-local"))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"cluster": None}, "cluster"),
        ({"router": None}, "router"),
        ({"prefill": {"drainSeconds": None}}, "drainSeconds"),
        ({"redis": {"auth": None}}, "auth"),
    ],
)
def test_what_templates_need_can_t_be_taken_away(values: dict[str, Any], named: str) -> None:
    """Helm drops a key without a value, such as one whose lines are all commented out."""
    assert re.search(f"missing propert(y|ies) .*'{named}'", refusal(values))


@pytest.mark.parametrize("memory", ["512MiB", "1.5 gb", "40GiB ", "1000", 536870912])
def test_sizes_are_taken_as_the_config_takes_them(memory: object) -> None:
    assert make_spec({"kv": {"memory": memory}}).kv.memory
    assert render({"cluster": {"kv": {"memory": memory}}})


@pytest.mark.parametrize("memory", ["40Gi", "40G", "lots", "", "-1GiB", "1e9", "1 parsec"])
def test_sizes_in_other_units_are_refused_before_pods_would(memory: str) -> None:
    """Those of Kubernetes are others."""
    with pytest.raises(InvalidField, match=r"kv\.memory"):
        make_spec({"kv": {"memory": memory}})
    assert "/cluster/kv/memory" in refusal({"cluster": {"kv": {"memory": memory}}})


def test_replicas_that_no_pods_can_hold_are_refused_with_the_fix() -> None:
    pools = {"decode": {"tensor_parallel_size": 6}}
    values = {"cluster": {"pools": pools}, "decode": {"ranksPerHost": 4}}
    assert "decode.ranksPerHost = 4: must divide the 6 ranks of a replica" in refusal(values)


@pytest.mark.parametrize(
    ("source", "named"),
    [("pvc", "claimName"), ("imageVolume", "reference"), ("huggingface", "repository")],
)
def test_a_source_of_the_model_needs_its_name(source: str, named: str) -> None:
    assert f"model.{source}.{named}" in refusal({"model": {"source": source}})


@pytest.mark.parametrize(
    ("cluster", "named"),
    [
        ({"pools": {"decode": {"replicas": 0}}}, "pools.decode.replicas"),
        ({"kv": {"memory": "1GiB", "num_blocks": 100}}, "kv"),
        ({"kv": {"transport": "nccl"}}, "kv.transport"),
        ({"auth": {"required": True}, "tenants": {"a": {"weight": 2}}}, "auth.required"),
        ({"engine": {"device": "cuda"}, "kv": {"transport": "tcp"}}, "kv.transport"),
    ],
)
def test_what_all_pods_would_refuse_is_not_installed(cluster: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidField):
        make_spec(cluster)
    assert f"cluster.{named}" in refusal({"cluster": cluster})


@pytest.mark.parametrize("kv", [{}, {"transport": "nccl"}, {"transport": "cuda_ipc"}])
def test_tls_is_refused_where_blocks_would_go_unencrypted(kv: dict[str, Any]) -> None:
    cluster = {"engine": {"device": "cuda"}, "kv": kv}
    values = {"cluster": cluster, "tls": {"enabled": True}}
    if kv.get("transport") == "cuda_ipc":
        assert render(values)
    else:
        assert "tls.enabled: on GPUs" in refusal(values)
