"""The verdict as files: a ready cluster.yaml, and values.yaml for the Helm chart.

Does not cover: the chart itself (``helm``), charts to look at (``charts``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from core.config import ClusterSpec
from core.errors import InvalidField
from tuner.files import check_writable, write_files
from tuner.search.space import Accelerators, Budget, Candidate, Labels, PoolChoice
from tuner.search.specs import spec_of

# Ray knows kinds of accelerators by resources of these names; a sliver asks for the kind.
_KIND = "accelerator_type:{}"
_SLIVER = 0.001
# How the comment of each file begins: by it one is known that may be replaced.
MADE_BY = "Made by `crossdock tune`"
# By pool, as the chart calls them.
Nodes = Mapping[str, Labels]
_ANY_NODES: Nodes = {}
_RAY_NAMES = {"a100": "A100", "h100": "H100", "h200": "H200", "b200": "B200", "l40s": "L40S"}
_RAY_NAMES |= {"l4": "L4"}
# Of a name of hardware in the name of a file.
_LONGEST = 60


def cluster_specs(candidate: Candidate, base: ClusterSpec) -> list[ClusterSpec]:
    """One; two for colocated serving on two kinds of accelerators, which are two clusters."""
    return [_with_kinds(candidate, spec_of(candidate, base, d), d) for d in candidate.decode]


def cluster_yaml(spec: ClusterSpec, comment: str) -> str:
    """Loads as the same spec again. ``comment``: lines for people."""
    return _commented(comment) + _dump(_settings(spec))


def values_yaml(spec: ClusterSpec, comment: str, nodes: Nodes = _ANY_NODES) -> str:
    """``nodes``: labels of those that each pool's pods are to run on; none for any node."""
    values: dict[str, Any] = {"cluster": _settings(spec)}
    for pool, labels in nodes.items():
        if labels:
            values[pool] = {"nodeSelector": dict(labels)}
    return _commented(comment) + _dump(values)


def check_folder(folder: Path, budget: Budget) -> None:
    """Before the search. Raises ``InvalidField`` if ``folder`` can't take the files or be made, or
    holds some of these names that no search has written: the ``--config`` of this one, for
    instance."""
    if not folder.exists():
        check_writable(folder)
        return
    if not folder.is_dir():
        raise InvalidField("--out", str(folder), "is a file; name a folder")
    for kinds in ([budget.decode], budget.kinds):
        for path in _paths(folder, kinds):
            check_writable(path)
            _refuse_of_others(path)


def _refuse_of_others(path: Path) -> None:
    if path.is_file() and not path.read_bytes().startswith(_commented(MADE_BY).strip().encode()):
        fix = f"has a {path.name} that `crossdock tune` did not write: name another folder"
        raise InvalidField("--out", str(path.parent), fix)


def write_outputs(
    candidate: Candidate, base: ClusterSpec, comment: str, folder: Path
) -> list[Path]:
    """Writes both files of each cluster; what was there before is replaced at once. ``folder`` is
    made if it is missing. ``comment`` begins with ``MADE_BY``. Raises ``InvalidField`` if they
    can't be written."""
    texts = []
    for pool, spec in zip(candidate.decode, cluster_specs(candidate, base), strict=True):
        nodes = _nodes(candidate, pool)
        texts += [cluster_yaml(spec, comment), values_yaml(spec, comment, nodes)]
    paths = _paths(folder, [pool.on for pool in candidate.decode])
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InvalidField("--out", str(folder), f"can't be made: {error.strerror}") from None
    write_files(dict(zip(paths, texts, strict=True)))
    return paths


def _nodes(candidate: Candidate, decode: PoolChoice) -> Nodes:
    prefill = candidate.prefill
    return {
        "prefill": () if prefill is None else prefill.on.nodes,
        "decode": decode.on.nodes,
    }


def _paths(folder: Path, kinds: Sequence[Accelerators]) -> list[Path]:
    """Two for each cluster; several clusters are told apart by their hardware."""
    names = [f"-{name}" for name in _file_names(kinds)] if len(kinds) > 1 else [""]
    return [folder / f"{stem}{name}.yaml" for name in names for stem in ("cluster", "values")]


def _file_names(kinds: Sequence[Accelerators]) -> list[str]:
    """Names of hardware hold anything, and two kinds may have the same."""
    names: list[str] = []
    for kind in kinds:
        name = re.sub(r"[^a-z0-9]+", "-", kind.profile.hardware.lower()).strip("-")[:_LONGEST]
        names.append(name if name and name not in names else f"{name or 'kind'}-{len(names) + 1}")
    return names


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
