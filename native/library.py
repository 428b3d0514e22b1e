"""The compiled functions, loaded once for the instruction sets of this machine.

Pointers are passed as integers; who calls has checked shapes and dtypes, and keeps the memory.
Functions are called with Python's lock released, but brief ones keep it.
Does not cover: building it (``native.build``), when it is used (``kernels.dispatch``,
``core.block_hash`` and ``router.prefix_index.prefix_index``).
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
from pathlib import Path

from native.build import is_whole, library_path, variants

_POINTER, _SIZE, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_HASH = ctypes.c_uint64

_OF_BLOCKS = ("index_store", "index_remove", "index_expect", "index_unexpect")
# Arguments of the functions; bfloat16 and float32 have one each.
_PROTOTYPES: dict[str, tuple[type, ...]] = {
    "hash_chain": (_POINTER, _POINTER, _SIZE, _SIZE, _HASH, _POINTER),
    "sample": (_POINTER, _SIZE, _SIZE, _POINTER, _POINTER, _SIZE, _POINTER),
    "set_threads": (_INT,),
    "index_new": (),
    "index_delete": (_POINTER,),
    "index_know": (_POINTER, _SIZE),
    "index_size": (_POINTER,),
    "index_holds": (_POINTER, _SIZE, _HASH),
    "index_knows": (_POINTER, _HASH),
    **dict.fromkeys(_OF_BLOCKS, (_POINTER, _SIZE, _POINTER, _SIZE)),
    "index_reset": (_POINTER, _SIZE),
    "index_unexpect_all": (_POINTER, _SIZE),
    "index_overlaps": (_POINTER, _POINTER, _SIZE, _SIZE, _POINTER, _POINTER),
}
# What they give back; the others give nothing.
_RESULTS: dict[str, type] = {
    "index_new": _POINTER,
    **dict.fromkeys(("index_size", "index_holds", "index_knows"), _SIZE),
    **dict.fromkeys(("index_store", "index_remove", "index_overlaps"), _SIZE),
}
_BY_DTYPE: dict[str, tuple[type, ...]] = {
    "linear_pack": (_POINTER, _POINTER, _SIZE, _SIZE),
    "linear": (_POINTER, _POINTER, _POINTER, _POINTER, _SIZE, _SIZE, _SIZE, _INT, _POINTER),
    "paged_attention": (_POINTER,) * 6 + (_SIZE,) * 9,
    "rms_norm": (_POINTER,) * 3 + (_SIZE,) * 2 + (_FLOAT,),
    "add_rms_norm": (_POINTER,) * 4 + (_SIZE,) * 2 + (_FLOAT,),
    "rms_norm_heads": (_POINTER,) * 2 + (_SIZE,) * 4 + (_FLOAT,),
    "rotate_and_store": (_POINTER,) * 6 + (_SIZE,) * 7,
    "silu_mul": (_POINTER,) * 2 + (_SIZE,) * 2,
}

_BUILD = "python -m native.build"


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """The variant that this machine runs and why, or why none: ``library`` is None then.

    ``brief`` has the same functions, called with Python's lock kept. ``damaged``: a better variant
    or this one could not be loaded, which the reason tells.
    """

    library: ctypes.CDLL | None
    brief: ctypes.PyDLL | None
    variant: str | None
    reason: str
    damaged: bool = False


@functools.cache
def choice() -> Choice:
    """Loads the best variant that this machine knows the instructions of and that can be loaded."""
    flags = _cpu_flags()
    runnable = [name for name, needed in variants().items() if set(needed) <= flags]
    if not runnable:
        return Choice(None, None, None, "there is none for this machine's instruction sets")
    trouble = ""
    for variant in runnable:
        if not library_path(variant).exists():
            continue
        try:
            found = load(variant, f"compiled for {variant}{trouble}")
        except OSError as error:
            trouble += f"; the library for {variant} can't be loaded: {error}; run `{_BUILD}`"
        else:
            return dataclasses.replace(found, damaged=bool(trouble))
    if trouble:
        return Choice(None, None, runnable[0], trouble.removeprefix("; "), damaged=True)
    why = f"not built, or older than its sources: run `{_BUILD}`"
    return Choice(None, None, runnable[0], why)


def library() -> ctypes.CDLL:
    """Raises RuntimeError if there is none; see `is_available`."""
    found = choice()
    if found.library is None:
        raise RuntimeError(f"the native kernels can't be used: {found.reason}")
    return found.library


def is_available() -> bool:
    return choice().library is not None


def has_matrix_tiles() -> bool:
    """Whether the CPU has matrix units for bfloat16 (AMX), which only oneDNN makes use of here."""
    return "amx_bf16" in _cpu_flags()


def set_threads(count: int) -> None:
    """How many threads compute, the caller's included; without a library nothing."""
    if is_available():
        library().crossdock_set_threads(count)


def load(variant: str, reason: str) -> Choice:
    """A variant that was built; ``reason``: why this one. Raises OSError if it can't be loaded."""
    path = library_path(variant)
    if not is_whole(path):
        raise OSError(f"{path.name} is not the file that was built")
    brief, released = ctypes.PyDLL(str(path)), ctypes.CDLL(str(path))
    try:
        for loaded in (brief, released):
            _set_prototypes(loaded)
    except AttributeError as error:
        raise OSError(str(error)) from error
    return Choice(released, brief, variant, reason)


def _set_prototypes(loaded: ctypes.CDLL) -> None:
    prototypes = dict(_PROTOTYPES)
    for name, arguments in _BY_DTYPE.items():
        prototypes |= {f"{name}_bf16": arguments, f"{name}_f32": arguments}
    for name, arguments in prototypes.items():
        function = loaded[f"crossdock_{name}"]
        function.argtypes, function.restype = arguments, _RESULTS.get(name)
        setattr(loaded, f"crossdock_{name}", function)


@functools.cache
def _cpu_flags() -> frozenset[str]:
    """Names as the compiler has them; Linux writes avx512bf16 with a bar."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith("flags"):
            return frozenset(line.split(":", 1)[1].replace("avx512_bf16", "avx512bf16").split())
    return frozenset()
