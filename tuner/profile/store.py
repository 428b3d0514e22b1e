"""Where measured profiles are kept for later commands: one file for each model and hardware."""

from __future__ import annotations

import os
from pathlib import Path

import xxhash

from core.errors import CrossdockError
from core.latency_profile import LatencyProfile
from tuner.profile.profile_file import read_profile, write_profile


def profiles_dir() -> Path:
    """``crossdock/profiles`` in the user's data folder (XDG base directories)."""
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "crossdock" / "profiles"


def store_profile(profile: LatencyProfile) -> Path:
    """Replaces the older one of the same model, dtype and hardware. Raises ``InvalidField``, or
    ``OSError`` if the folder can't be made."""
    folder = profiles_dir()
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{_prefix(profile.model_hash, profile.hardware)}{profile.dtype}.json"
    write_profile(profile, folder / name)
    return folder / name


def find_newest(model_hash: str, hardware: str, dtype: str | None = None) -> LatencyProfile | None:
    """The newest one of this model on this hardware (None: there is none); ``dtype`` None: of any.
    Files that can't be read are as good as none."""
    found = []
    for path in profiles_dir().glob(f"{_prefix(model_hash, hardware)}{dtype or '*'}.json"):
        try:
            found.append(read_profile(path))
        except CrossdockError:
            continue
    return max(found, key=lambda profile: profile.created, default=None)


def _prefix(model_hash: str, hardware: str) -> str:
    """Names of hardware hold anything; a file's name shall not."""
    return f"{model_hash}-{xxhash.xxh3_64_hexdigest(hardware.encode())}-"
