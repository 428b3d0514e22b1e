"""Finds other people's modules that hide ours: our top-level names are short (`core`, `router`).

Only the standard library is imported here, so that the check can run before anything else.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

TOP_LEVEL = (
    "core",
    "kernels",
    "native",
    "crossdock",
    "text",
    "engine",
    "wire",
    "kv_transfer",
    "worker",
    "prefill_worker",
    "decode_worker",
    "router",
    "tuner",
    "cluster",
)


@dataclass(frozen=True, slots=True)
class Shadowed:
    """``module`` would be loaded from ``found`` (None: not found at all) and not from ours."""

    module: str
    found: str | None

    def __str__(self) -> str:
        if self.found is None:
            return f"module `{self.module}` is not installed"
        return f"module `{self.module}` is shadowed by {self.found}"


def our_root() -> Path:
    """The folder that this copy of Crossdock is imported from."""
    return Path(__file__).resolve().parent.parent


def find_shadowed(root: Path | None = None, names: tuple[str, ...] = TOP_LEVEL) -> list[Shadowed]:
    """Which of ``names`` the running interpreter takes from outside of ``root`` (default: ours)."""
    root = (root or our_root()).resolve()
    shadowed = []
    for name in names:
        origin = _origin(name)
        # In a source tree the wire format lies under protos/, in an installed one beside us.
        if origin is None or Path(origin) not in (root / name, root / "protos" / name):
            shadowed.append(Shadowed(name, origin))
    return shadowed


def require_modules_from(root: str) -> None:
    """Raise ``ImportError`` unless all of ours come from ``root``.

    Not an error of ``core.errors``: that module may be the one that is shadowed.
    """
    shadowed = find_shadowed(Path(root))
    if shadowed:
        raise ImportError("; ".join(str(one) for one in shadowed) + f"; ours are in {root}")


def _origin(name: str) -> str | None:
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or [])
    return str(Path(folders[0]).resolve()) if folders else spec.origin
