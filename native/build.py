"""Compiles this folder's C++ once for each instruction set: ``python -m native.build``.

Run when the package is built or installed (``hatch_build.py``) and by scripts/. Without a compiler
nothing is built and torch's operations are used instead. Imports nothing beyond the standard
library: an installer runs it in an empty environment. A library ends with the SHA-256 of what is
before, since loading a damaged one can end the process (a truncated one does, by SIGBUS).
Does not cover: which of the libraries a process loads (``native.library``).
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
BUILT = SOURCES / "built"

# No -ffast-math: NaN and infinity must come through as they are.
_FLAGS = (
    "-std=c++17",
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-exceptions",
    "-fno-rtti",
    "-fPIC",
    "-shared",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
)

_AVX512 = ("avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq")
# By machine, best first: what to call a variant, and the instruction sets that it uses.
VARIANTS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "avx512bf16": (*_AVX512, "avx512bf16"),
        "avx512": _AVX512,
        "avx2": ("avx2", "fma", "f16c"),
    },
    "aarch64": {"neon": ()},
}


_DIGEST_BYTES = hashlib.sha256().digest_size


class NotBuilt(Exception):
    """Nothing could be compiled; the message says why and what to do."""


def variants() -> dict[str, tuple[str, ...]]:
    """What is built for this kind of machine; nothing where the code was never tried."""
    return VARIANTS.get(platform.machine(), {}) if sys.platform == "linux" else {}


def library_path(variant: str) -> Path:
    """Where a variant built from the sources as they are now lies."""
    return BUILT / f"{variant}-{_sources_hash()}.so"


def is_whole(path: Path) -> bool:
    """Whether ``path`` is a library as it was built: there, and not damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return False
    library, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    return hashlib.sha256(library).digest() == digest


def build() -> list[Path]:
    """Compiles what is missing or damaged and removes what is out of date; gives what there is.

    A compiler may know only some of the instruction sets. Raises `NotBuilt` if nothing could be.
    """
    wanted = {library_path(name): flags for name, flags in variants().items()}
    if not wanted:
        raise NotBuilt(f"no native kernels for {sys.platform} on {platform.machine()}")
    missing = [path for path in wanted if not is_whole(path)]
    if missing:
        compiler = _compiler()
        BUILT.mkdir(exist_ok=True)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            errors = list(pool.map(lambda path: _compile(compiler, path, wanted[path]), missing))
        if len(missing) == len(wanted) and all(errors):
            raise NotBuilt(f"{compiler} could not compile the native kernels:\n{errors[0]}")
    for old in BUILT.glob("*.so"):
        if old not in wanted:
            _remove(old)
    return [path for path in wanted if is_whole(path)]


def _sources_hash() -> str:
    files = sorted([*SOURCES.glob("*.cpp"), *SOURCES.glob("*.h"), Path(__file__)])
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "c++"):
        if name and (found := shutil.which(name)):
            return found
    raise NotBuilt("no C++ compiler was found: install g++ (on Debian: apt install g++)")


def _compile(compiler: str, path: Path, instructions: Sequence[str]) -> str:
    """What went wrong, or "". Into a file of its own first: a process that looks meanwhile sees a
    whole library or none."""
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    flags = [*_FLAGS, *(f"-m{name}" for name in instructions)]
    sources = [str(file) for file in sorted(SOURCES.glob("*.cpp"))]
    command = [compiler, *flags, *sources, "-o", str(unfinished)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        unfinished.unlink(missing_ok=True)
        return done.stderr
    unfinished.write_bytes(_sealed(unfinished.read_bytes()))
    if path.is_dir():
        _remove(path)
    unfinished.replace(path)
    return ""


def _sealed(library: bytes) -> bytes:
    return library + hashlib.sha256(library).digest()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def main() -> int:
    try:
        for path in build():
            print(path.relative_to(SOURCES.parent))
    except NotBuilt as error:
        print(
            f"native kernels are not built, torch's operations are used: {error}", file=sys.stderr
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
