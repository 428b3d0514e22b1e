"""How many times as fast as torch's operations the compiled ones are here, measured in seconds.

Each operation in a size at which a step has it, on one thread, in its own time: what else runs on
the core counts little. The fastest of some runs, the two taking turns.
Does not cover: the engine as a whole, for which there is `crossdock bench engine`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from kernels.dispatch import Implementation, forced
from kernels.linear import Linear
from kernels.paged_attention import paged_attention
from kernels.paged_sequences import PagedSequences
from kernels.sampling import sample_tokens
from kernels.sampling_arrays import DrawSpec, SamplingArrays

# Together larger than most caches, as a model's weights are.
_WEIGHTS, _OUTPUTS, _INPUTS = 4, 3072, 1024
_MANY_ROWS = 256
_HEADS, _KV_HEADS, _HEAD_DIM, _BLOCK_SIZE, _CONTEXT = 9, 3, 64, 16, 512
_DECODES, _VOCABULARY = 8, 49_152
_RUNS = 10
# Anything nearer to 1 may be chance.
_LOSS = 0.9

# Does the work once with what is in force; weights are laid out for it while it is made.
Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Gain:
    """``factor``: torch's time over the compiled operation's."""

    subject: str
    operation: str
    factor: float

    @property
    def loses(self) -> bool:
        return self.factor < _LOSS


def measure_gains(dtypes: Sequence[torch.dtype]) -> list[Gain]:
    """Of products and attention in each of ``dtypes``, and of sampling; about two seconds."""
    gains = []
    with _one_thread(), torch.inference_mode():
        for dtype in dtypes:
            subject = str(dtype).removeprefix("torch.")
            native, other = _works("native", dtype), _works("torch", dtype)
            gains += [Gain(subject, name, _factor(native[name], other[name])) for name in native]
        factor = _factor(_sampling("native"), _sampling("torch"))
        gains.append(Gain("sampling", f"{_DECODES} rows", factor))
    return gains


def _works(way: Implementation, dtype: torch.dtype) -> dict[str, Work]:
    weight = torch.full((_OUTPUTS, _INPUTS), 0.01, dtype=dtype)
    x = torch.full((_MANY_ROWS, _INPUTS), 0.01, dtype=dtype)
    with forced(way):
        layers = [Linear(weight) for _ in range(_WEIGHTS)]
    return {
        "products of 1 row": lambda: [layer(x[:1]) for layer in layers],
        f"products of {_MANY_ROWS}": lambda: layers[0](x),
        "attention of a prompt": _attention(way, dtype, 1, _CONTEXT),
        f"attention of {_DECODES} decodes": _attention(way, dtype, _DECODES, 1),
    }


def _attention(way: Implementation, dtype: torch.dtype, count: int, new: int) -> Work:
    """``count`` sequences of `_CONTEXT` tokens, of which ``new`` each are attended from."""
    blocks = _CONTEXT // _BLOCK_SIZE
    pool = torch.full((count * blocks, 1, 2, _KV_HEADS, _BLOCK_SIZE, _HEAD_DIM), 0.01, dtype=dtype)
    q = torch.full((count * new, _HEADS, _HEAD_DIM), 0.01, dtype=dtype)
    sequences = PagedSequences(
        block_tables=torch.arange(count * blocks, dtype=torch.int32).view(count, blocks),
        lengths=torch.full((count,), _CONTEXT, dtype=torch.int32),
        first_rows=torch.arange(count + 1, dtype=torch.int32) * new,
        num_decodes=count if new == 1 else 0,
        longest_query=new,
        longest=_CONTEXT,
    )
    return _in_force(way, lambda: paged_attention(q, pool, 0, sequences))


def _sampling(way: Implementation) -> Work:
    logits = torch.linspace(0, 20, _VOCABULARY).repeat(_DECODES, 1)
    draws = [DrawSpec(row, temperature=0.8, top_p=0.95, seed=row) for row in range(_DECODES)]
    arrays = SamplingArrays.of(draws)
    return _in_force(way, lambda: sample_tokens(logits, arrays))


def _in_force(way: Implementation, work: Work) -> Work:
    def run() -> None:
        with forced(way):
            work()

    return run


def _factor(native: Work, other: Work) -> float:
    best = {native: float("inf"), other: float("inf")}
    for _ in range(_RUNS):
        for work in best:
            start = time.thread_time()
            work()
            best[work] = min(best[work], time.thread_time() - start)
    return best[other] / best[native]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Of the compiled library one is the default, which nothing in this process changes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
