"""Which code serves here: a short name that differs where the sources differ.

Covers all that a served request passes through. Does not cover: third-party packages, the machine.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import xxhash

_SERVING = (
    *("core", "kernels", "native", "text", "wire", "engine", "kv_transfer", "worker"),
    *("prefill_worker", "decode_worker", "router", "cluster"),
)
_SOURCES = frozenset({".py", ".cpp", ".h"})


@cache
def code_digest() -> str:
    """16 hexadecimal digits."""
    digest = xxhash.xxh3_64()
    for package in _SERVING:
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        _add(digest, Path(spec.origin).parent)
    return digest.hexdigest()


def _add(digest: xxhash.xxh3_64, folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.suffix in _SOURCES:
            digest.update(f"{folder.name}/{path.relative_to(folder)}\n".encode())
            digest.update(path.read_bytes())
