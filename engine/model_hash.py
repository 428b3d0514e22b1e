"""A fingerprint of a model folder: what two workers compare before they exchange KV."""

from __future__ import annotations

from pathlib import Path

import xxhash

from engine.model_config import read_model_config

_SAMPLES_PER_FILE = 64
_SAMPLE_BYTES = 4096


def model_hash(folder: Path) -> int:
    """64 bits over the parsed config and the weights.

    Of each safetensors file: name, size, header and 64 samples of 4 KiB. Two fine-tunes of one
    model differ in the samples; a copy of the folder does not. The config counts because rotary
    frequencies and windows change the KV while the weights stay the same.
    """
    digest = xxhash.xxh3_64(repr(read_model_config(folder)).encode())
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"\x00{path.name}\x00{path.stat().st_size}\x00".encode())
        _hash_samples(path, digest)
    return digest.intdigest()


def _hash_samples(path: Path, digest: xxhash.xxh3_64) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        digest.update(file.read(min(header_bytes, size)))
        first = file.tell()
        last = max(first, size - _SAMPLE_BYTES)
        for i in range(_SAMPLES_PER_FILE):
            file.seek(first + (last - first) * i // (_SAMPLES_PER_FILE - 1))
            digest.update(file.read(_SAMPLE_BYTES))
