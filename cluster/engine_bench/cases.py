"""What `crossdock bench engine` measures: lengths of prompts, batches, contexts. Pure.

Covers: the options as people write them, whether a model and the memory can take them.
Does not cover: measuring.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import InvalidField
from core.kv_layout import KVLayout

# Tokens of a KV block, as when serving.
BLOCK_SIZE = 16
# Decode steps before the first one that counts.
WARM_UP_STEPS = 3
# The step overhead is measured with as many sequences, of prompts of this length.
OVERHEAD_BATCH = 32
OVERHEAD_PROMPT = 32
# Python, torch and its libraries, beside weights, KV and what the machine's rates are measured on.
_PROCESS_BYTES = 400 * 2**20
_MAX_SIZE = 10**7


@dataclass(frozen=True, slots=True)
class Cases:
    """``prompts``: lengths in tokens, each computed ``runs`` times in chunks of ``chunk`` tokens.

    ``batches`` × ``contexts``: decode steps of so many sequences, the first of ``steps`` measured
    steps at a context of about so many tokens.
    """

    prompts: tuple[int, ...] = (128, 512, 1024, 1900)
    batches: tuple[int, ...] = (1, 4, 8, 16, 32)
    contexts: tuple[int, ...] = (128, 1024)
    runs: int = 5
    steps: int = 20
    chunk: int = 256

    @property
    def all_steps(self) -> int:
        return WARM_UP_STEPS + self.steps

    def mean_context(self, context: int) -> float:
        """Tokens that a sequence attends to, its newest included, on average of measured steps."""
        return context + WARM_UP_STEPS + (self.steps - 1) / 2 + 1

    def num_blocks(self, block_size: int) -> int:
        """KV blocks for the largest case."""
        decode = max(self.batches) * _blocks(max(self.contexts) + self.all_steps, block_size)
        # The scheduler keeps a block for each running sequence to grow into.
        per_sequence = _blocks(OVERHEAD_PROMPT + self.all_steps + 1, block_size) + 1
        overhead = OVERHEAD_BATCH * per_sequence
        return max(decode, overhead, _blocks(max(self.prompts), block_size))


QUICK = Cases(prompts=(128, 1024), batches=(1, 8, 32), contexts=(128,), runs=3, steps=8)


def choose_cases(
    quick: bool, prompts: str | None, batches: str | None, contexts: str | None, chunk: int
) -> Cases:
    """Raises ``InvalidField`` naming the option."""
    base = QUICK if quick else Cases()
    return Cases(
        prompts=base.prompts if prompts is None else parse_sizes("--prompts", prompts),
        batches=base.batches if batches is None else parse_sizes("--batches", batches),
        contexts=base.contexts if contexts is None else parse_sizes("--contexts", contexts),
        runs=base.runs,
        steps=base.steps,
        chunk=chunk,
    )


def parse_sizes(option: str, text: str) -> tuple[int, ...]:
    """`128,512`: different whole numbers from 1 on. Raises ``InvalidField``."""
    parts = [part.strip() for part in text.split(",")]
    sizes = tuple(int(part) for part in parts if re.fullmatch(r"[0-9]{1,8}", part))
    usable = all(1 <= size <= _MAX_SIZE for size in sizes)
    if len(sizes) < len(parts) or len(set(sizes)) < len(sizes) or not usable:
        fix = f"must be different whole numbers from 1 to {_MAX_SIZE}, such as 1,8"
        raise InvalidField(option, text, fix)
    return sizes


def choose_threads(text: str | None, cores: int) -> tuple[int, ...]:
    """By default 1 and all ``cores`` that this process may use. Raises ``InvalidField``."""
    if text is None:
        return (1,) if cores == 1 else (1, cores)
    threads = parse_sizes("--threads", text)
    if max(threads) > cores:
        fix = f"this process may use {cores} core{'s' if cores > 1 else ''}; ask for no more"
        raise InvalidField("--threads", text, fix)
    return threads


def check_positions(cases: Cases, max_positions: int) -> None:
    """Raises ``InvalidField`` for a case that is longer than the model's longest sequence."""
    if max(cases.prompts) > max_positions:
        fix = f"this model ends at {max_positions} tokens; choose shorter ones with --prompts"
        raise InvalidField("--prompts", _listed(cases.prompts), fix)
    longest = max(cases.contexts) + cases.all_steps
    if longest > max_positions:
        fix = (
            f"with the {cases.all_steps} steps that are taken from there the longest has {longest} "
            f"tokens, and this model ends at {max_positions}; choose shorter ones with --contexts"
        )
        raise InvalidField("--contexts", _listed(cases.contexts), fix)
    if OVERHEAD_PROMPT + cases.all_steps > max_positions:
        fix = f"a sequence of {OVERHEAD_PROMPT + cases.all_steps} tokens is needed"
        raise InvalidField("--model", f"{max_positions} positions", fix)


def check_memory(cases: Cases, layout: KVLayout, other_bytes: int, available: int | None) -> None:
    """``other_bytes``: of weights, and of what the rates are measured on; ``available``: bytes
    that are free, if known. Raises ``InvalidField``."""
    pool = cases.num_blocks(layout.block_size) * layout.block_bytes
    needed = pool + other_bytes + _PROCESS_BYTES
    if available is not None and needed > available:
        fix = (
            f"{needed / 2**30:.1f} GiB are needed, {pool / 2**30:.1f} of them for KV, and "
            f"{available / 2**30:.1f} are free: choose smaller ones, or shorter --contexts"
        )
        raise InvalidField("--batches", _listed(cases.batches), fix)


def _blocks(tokens: int, block_size: int) -> int:
    return -(-tokens // block_size)


def _listed(sizes: Sequence[int]) -> str:
    return ",".join(str(size) for size in sizes)
