"""Whether this machine has the GPU that somebody asked for.

Does not cover: which of a Ray cluster's nodes have some (``cluster.placement_fit``).
"""

from __future__ import annotations

from core.errors import InvalidField


def require_gpu(field: str) -> None:
    """Raises ``InvalidField`` of ``field`` = "cuda" with what is missing. Imports torch, which
    takes seconds."""
    import torch

    if torch.version.cuda is None:
        fix = (
            f"torch {torch.__version__} is built without CUDA: install one that has it "
            "(https://pytorch.org), or choose cpu"
        )
        raise InvalidField(field, "cuda", fix, reason="NO_GPU")
    if not torch.cuda.is_available():
        fix = "torch finds no GPU on this machine: look at `nvidia-smi`, or choose cpu"
        raise InvalidField(field, "cuda", fix, reason="NO_GPU")
