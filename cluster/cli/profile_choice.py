"""Which latency profile a prediction is made with, and how to say so."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cluster.cli.profile_of_model import require_served_model
from cluster.demo_model import ensure_demo_model
from cluster.model_folder import find_model, read_model_folder
from cluster.plan import resolve_dtype
from cluster.profiling.machine import hardware_name
from cluster.progress import StderrProgress
from core.config import ClusterSpec
from core.latency_profile import LatencyProfile, Origin
from engine.model_hash import model_hash
from tuner.profile import hardware
from tuner.profile.model_shape import read_model_shape
from tuner.profile.modelled import modelled_profile
from tuner.profile.profile_file import read_profile
from tuner.profile.store import find_newest

# Of the built-in descriptions: what most people plan for.
_DEFAULT_HARDWARE = "h100"


@dataclass(frozen=True, slots=True)
class ChosenProfile:
    """``words``: where it comes from, for people."""

    profile: LatencyProfile
    words: str


def choose_profile(path: Path | None, spec: ClusterSpec) -> ChosenProfile:
    """The one in the file at ``path``; else that of ``router.profile``; else the newest measured
    here for the model; else a modelled one. Raises ``InvalidField`` for a bad file,
    ``Incompatible`` for one of another model than the config would serve."""
    if path is None and spec.router.profile is not None:
        path = Path(spec.router.profile)
    if path is not None:
        profile = read_profile(path)
        require_served_model(profile, spec)
        return ChosenProfile(profile, f"{path.name}: {_origin(profile)}")
    folder = find_model(spec.model) if spec.model else ensure_demo_model(StderrProgress())
    dtype = resolve_dtype(spec, read_model_folder(folder))
    newest = find_newest(f"{model_hash(folder):016x}", hardware_name(spec.engine.device), dtype)
    if newest is not None:
        return ChosenProfile(newest, f"the newest profile of this machine: {_origin(newest)}")
    modelled = modelled_profile(
        hardware.BUILT_IN[_DEFAULT_HARDWARE],
        read_model_shape(folder),
        dtype,
        datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return ChosenProfile(
        modelled,
        f"no profile of this machine (make one with `crossdock profile`), so {_origin(modelled)}",
    )


def _origin(profile: LatencyProfile) -> str:
    what = f"{profile.model}, {profile.dtype}, on {profile.hardware}"
    if profile.origin is Origin.MODELLED:
        return f"modelled, {what}"
    errors = [engine.error for engine in profile.engines if engine.error is not None]
    worst = max((error.p95 for error in errors), default=0.0)
    median = max((error.median for error in errors), default=0.0)
    return (
        f"measured {profile.created[:10]}, {what}, "
        f"fit within {median:.0%} (median) and {worst:.0%} (p95)"
    )
