"""Every value of values.yaml changes something of what is installed: none is there for nothing."""

from __future__ import annotations

import runpy
from typing import Any

import pytest
import yaml
from charts import CHART, ROOT, render
from object_schemas import check_objects

from amounts import some_of

# All that can be switched on, so that what belongs to it has something to change.
ALL_ON: dict[str, Any] = {
    "cluster": {
        "engine": {"device": "cuda"},
        "kv": {"transport": "cuda_ipc"},
        "pools": {
            "prefill": {"tensor_parallel_size": 16},
            "decode": {"tensor_parallel_size": 16},
        },
    },
    "model": {
        "source": "huggingface",
        "huggingface": {"repository": "org/model", "tokenSecret": {"name": "token"}},
    },
    "redis": {"enabled": True, "auth": {"existingSecret": "password"}},
    "autoscaling": {"enabled": True},
    "gangScheduling": {"scheduler": "volcano", "queue": "serving"},
    "tls": {
        "enabled": True,
        "issuerRef": {"name": "authority"},
        "unencryptedNccl": True,
        "doors": {"enabled": True, "issuerRef": {"name": "public"}, "clientCaSecret": "clients"},
    },
    "controller": {"tokenSecret": {"name": "token"}},
    "ingress": {"enabled": True, "hosts": ["a"], "grpc": {"enabled": True, "hosts": ["b"]}},
    "gateway": {
        "parentRefs": [{"name": "public"}],
        "http": {"enabled": True, "hostnames": ["c"]},
        "grpc": {"enabled": True, "hostnames": ["d"]},
    },
    "router": {"tenantsSecret": {"name": "tenants"}},
    "test": {"apiKeySecret": {"name": "key"}},
    "serviceMonitor": {"enabled": True, "tokenSecret": {"name": "watcher"}},
    "podMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "dashboards": {"enabled": True},
}

SINGLE = {"tensor_parallel_size": 1}
# What excludes something of the above comes instead of it.
INSTEAD: dict[str, dict[str, Any]] = {
    "model.pvc.": {"model": {"source": "pvc", "pvc": {"claimName": "models"}}},
    "model.imageVolume.": {"model": {"source": "imageVolume", "imageVolume": {"reference": "r"}}},
    "redis.external.": {
        "redis": {
            "enabled": False,
            "external": {"address": "r:6379", "passwordSecret": {"name": "s"}},
        }
    },
    "tls.unencryptedNccl": {"cluster": {"pools": {"prefill": SINGLE, "decode": SINGLE}}},
    "router.replicas": {"autoscaling": {"enabled": False}},
}

# A change that says something, where any other value of its type does not.
CHANGED: dict[str, object] = {
    "prefill.ranksPerHost": 4,
    "decode.ranksPerHost": 4,
    "prefill.maxRanksPerHost": 16,
    "decode.maxRanksPerHost": 16,
    "model.source": "image",
    "gangScheduling.scheduler": "kueue",
    "redis.external.address": "other:6380",
    "extraObjects": [{"kind": "ConfigMap", "metadata": {"name": "changed"}}],
}
OF_KUBERNETES: dict[str, object] = {
    "resources": {"limits": {"example.com/changed": 1}},
    "affinity": {"nodeAffinity": {"changed": {}}},
    "tolerations": [{"key": "changed"}],
    "topology-spread": [{"topologyKey": "changed"}],
    "peers": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
    "names": ["changed"],
    "volume-mounts": [{"name": "changed", "mountPath": "/changed"}],
    "pod-security": {"runAsUser": 4711},
    "container-security": {"privileged": True},
}


def leaves() -> dict[str, Any]:
    """Every value that is no section, and what scripts/helm-values knows of it, by its path."""
    read = runpy.run_path(str(ROOT / "scripts/helm-values"))["read_values"]
    found = {".".join(v.path): v for v in read((CHART / "values.yaml").read_text())}
    sections = {path.rpartition(".")[0] for path in found}
    return {path: v for path, v in found.items() if path not in sections and path != "cluster"}


LEAVES = leaves()


def changed(path: str, before: dict[str, Any]) -> object:
    """Another value than the one in ``before``, of the same type."""
    value = LEAVES[path]
    if path in CHANGED:
        return CHANGED[path]
    if value.mark in OF_KUBERNETES:
        return OF_KUBERNETES[value.mark]
    if "|" in value.mark and value.mark != "number-or-string":
        return next(word for word in value.mark.split("|") if word != value.default)
    match value.default:
        case bool():
            return not given(path, before, value.default)
        case int():
            return value.default + 1
        case dict():
            return {"example.com/changed": "yes"}
        case list():
            return [{"name": "changed"}]
    return "changed"


def given(path: str, values: Any, default: bool) -> bool:
    for name in path.split("."):
        if name not in values:
            return default
        values = values[name]
    return bool(values)


def merged(values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    return values | {
        key: merged(values.get(key, {}), value) if isinstance(value, dict) else value
        for key, value in more.items()
    }


def at(path: str, value: object) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


@pytest.mark.thorough
@pytest.mark.parametrize("path", some_of(LEAVES))
def test_a_value_changes_what_is_installed(path: str) -> None:
    before = ALL_ON
    for prefix, values in INSTEAD.items():
        if path.startswith(prefix):
            before = merged(before, values)
    after = merged(before, at(path, changed(path, before)))
    assert render(after) != render(before)


def test_values_are_found_in_all_depths() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    assert {path.partition(".")[0] for path in LEAVES} == defaults.keys() - {"cluster"}
    assert {"ingress.grpc.tls", "model.huggingface.tokenSecret.key", "extraEnv"} <= LEAVES.keys()


def test_nothing_but_a_value_makes_a_difference() -> None:
    assert render(ALL_ON | {"extraObjects": []}) == render(ALL_ON)


# Not any string will do for these.
OF_A_FORM = {
    *("fullnameOverride", "redis.external.address", "tls.duration", "tls.renewBefore"),
    *("serviceMonitor.interval", "podMonitor.interval"),
}


@pytest.mark.thorough
@pytest.mark.parametrize(
    "instead", ["", "model.pvc.", "model.imageVolume.", "redis.external."], ids=lambda name: name
)
def test_a_string_stays_one_though_it_looks_like_a_number(instead: str) -> None:
    """Names may have digits alone: a key of a Secret, a queue, the folder of a volume."""
    values = merged(ALL_ON, INSTEAD.get(instead, {}))
    for path, value in LEAVES.items():
        if isinstance(value.default, str) and not value.mark and path not in OF_A_FORM:
            values = merged(values, at(path, "123"))
    check_objects(render(values, name="7"))
