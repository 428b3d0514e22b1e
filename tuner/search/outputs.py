"""The verdict as files: a ready cluster.yaml, and values.yaml for the Helm chart.

Does not cover: the chart itself (``helm``), charts to look at (``charts``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from core.config import ClusterSpec
from tuner.search.space import Candidate, PoolChoice
from tuner.search.specs import spec_of

# Ray knows kinds of accelerators by resources of these names; a sliver asks for the kind.
_KIND = "accelerator_type:{}"
_SLIVER = 0.001
_RAY_NAMES = {"a100": "A100", "h100": "H100", "h200": "H200", "b200": "B200", "l40s": "L40S"}
_RAY_NAMES |= {"l4": "L4"}


def cluster_specs(candidate: Candidate, base: ClusterSpec) -> list[ClusterSpec]:
    """One; two for colocated serving on two kinds of accelerators, which are two clusters."""
    return [_with_kinds(candidate, spec_of(candidate, base, d), d) for d in candidate.decode]


def cluster_yaml(spec: ClusterSpec, comment: str) -> str:
    """Loads as the same spec again. ``comment``: lines for people."""
    return _commented(comment) + _dump(_settings(spec))


def values_yaml(spec: ClusterSpec, comment: str) -> str:
    return _commented(comment) + _dump({"cluster": _settings(spec)})


def write_outputs(
    candidate: Candidate, base: ClusterSpec, comment: str, folder: Path
) -> list[Path]:
    """Writes both files of each cluster; what was there before is replaced at once."""
    specs = cluster_specs(candidate, base)
    names = [""] if len(specs) == 1 else [f"-{d.on.profile.hardware}" for d in candidate.decode]
    written = []
    for name, spec in zip(names, specs, strict=True):
        for stem, text in (
            ("cluster", cluster_yaml(spec, comment)),
            ("values", values_yaml(spec, comment)),
        ):
            path = folder / f"{stem}{name}.yaml"
            draft = path.with_name(path.name + ".part")
            draft.write_text(text, encoding="utf-8")
            draft.replace(path)
            written.append(path)
    return written


def _with_kinds(candidate: Candidate, spec: ClusterSpec, decode: PoolChoice) -> ClusterSpec:
    """Pools of different hardware ask Ray for it by name."""
    prefill = candidate.prefill
    if prefill is None or prefill.on.profile.hardware == decode.on.profile.hardware:
        return spec
    pools = spec.pools.model_copy(
        update={
            "prefill": spec.pools.prefill.model_copy(update={"resources": _resources(prefill)}),
            "decode": spec.pools.decode.model_copy(update={"resources": _resources(decode)}),
        }
    )
    return spec.model_copy(update={"pools": pools})


def _resources(pool: PoolChoice) -> dict[str, float]:
    hardware = pool.on.profile.hardware
    return {"GPU": 1.0, _KIND.format(_RAY_NAMES.get(hardware, hardware)): _SLIVER}


def _settings(spec: ClusterSpec) -> dict[str, Any]:
    """What differs from the defaults, and the pools in full: they are the answer."""
    settings: dict[str, Any] = spec.model_dump(exclude_defaults=True)
    pools = spec.pools
    settings["pools"] = {
        "prefill": _pool(pools.prefill.model_dump()),
        "decode": _pool(pools.decode.model_dump()),
    }
    return settings


def _pool(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def _commented(comment: str) -> str:
    return "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())


def _dump(settings: dict[str, Any]) -> str:
    return yaml.safe_dump(settings, sort_keys=False)
