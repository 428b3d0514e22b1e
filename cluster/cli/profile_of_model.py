"""Whether a profile that somebody names is of the model that the cluster would serve.

Does not cover: which profile is taken when none is named (``cluster.cli.profile_choice``).
"""

from __future__ import annotations

from pathlib import Path

from cluster.demo_model import DEMO_NAME
from cluster.model_folder import find_model, models_dir, read_model_folder
from cluster.plan import resolve_dtype
from core.config import ClusterSpec
from core.errors import Incompatible, NotFound
from core.kv_layout import DTYPE_BYTES
from core.latency_profile import LatencyProfile, Origin
from engine.model_hash import model_hash
from tuner.profile.model_shape import read_model_shape
from tuner.profile.profile_file import require_model


def require_served_model(profile: LatencyProfile, spec: ClusterSpec) -> None:
    """Raises ``Incompatible`` for a profile of another model or dtype than ``spec`` would serve,
    ``NotFound`` for a model that is not here and that the profile is not of either.

    A measured profile is compared by the hash of the model's files. Where these are not here,
    because the cluster is planned on another machine, its name has to do. A computed one belongs to
    no files: the sizes of its model are compared, if the config names one.
    """
    if spec.engine.dtype not in ("auto", profile.dtype):
        raise _other_dtype(profile, spec.engine.dtype)
    if profile.origin is Origin.MEASURED:
        _require_files(profile, spec)
    elif spec.model is not None and (folder := _find(profile, spec.model)):
        _require_sizes(profile, folder)


def _require_files(profile: LatencyProfile, spec: ClusterSpec) -> None:
    folder = _find(profile, spec.model) if spec.model else _demo_folder(profile)
    if folder is None:
        return
    require_model(profile, f"{model_hash(folder):016x}", folder.name)
    dtype = resolve_dtype(spec, read_model_folder(folder))
    if dtype != profile.dtype:
        raise _other_dtype(profile, dtype)


def _require_sizes(profile: LatencyProfile, folder: Path) -> None:
    shape = read_model_shape(folder)
    stated = shape.kv_numbers_per_token * DTYPE_BYTES[profile.dtype]
    if stated != profile.kv_bytes_per_token:
        raise _other_model(
            profile,
            folder.name,
            f"has {stated} bytes of KV for each token, the profile's {profile.kv_bytes_per_token}",
        )


def _find(profile: LatencyProfile, model: str) -> Path | None:
    """None if it is not here and has the name that the profile knows it by."""
    try:
        return find_model(model)
    except NotFound as error:
        if Path(model).name != profile.model:
            known = f"{error.message}; the profile is of {profile.model}"
            raise NotFound(known, reason=error.reason, metadata=error.metadata) from None
    return None


def _demo_folder(profile: LatencyProfile) -> Path | None:
    """Of the model that is served when none is named; None if it is not here."""
    folder = models_dir() / DEMO_NAME
    if folder.is_dir():
        return folder
    if profile.model != DEMO_NAME:
        raise _other_model(profile, DEMO_NAME, "is served when none is named: name it with --model")
    return None


def _other_model(profile: LatencyProfile, model: str, detail: str) -> Incompatible:
    return Incompatible(
        f"the profile is of {profile.model}, not of {model}, which {detail}",
        reason="PROFILE_OF_ANOTHER_MODEL",
        metadata={"profile": profile.model, "model": model},
    )


def _other_dtype(profile: LatencyProfile, dtype: str) -> Incompatible:
    return Incompatible(
        f"the profile is of {profile.model} in {profile.dtype}, and {dtype} would be served: set "
        f"engine.dtype to {profile.dtype}, or measure with `crossdock profile` and this config",
        reason="PROFILE_OF_ANOTHER_DTYPE",
        metadata={"profile": profile.dtype, "dtype": dtype},
    )
