"""An engine without a model, whose KV tells whether it is the right KV.

Each KV slot holds a digest of all tokens up to its position. A step checks the digests of
everything a slice attends to before it writes its own, so a block that was shipped wrongly, freed
too early or given to two sequences is found at once. The next token is a function of the digest
and of which of the n answers it is for.
"""

from __future__ import annotations

import numpy as np
import xxhash

from core.step import SampledToken, Slice, StepPlan, StepResult

VOCABULARY = 997


def digests_of(tokens: np.ndarray) -> np.ndarray:
    """uint64 [n]: digest of tokens[: i + 1] for each i."""
    out = np.empty(len(tokens), dtype=np.uint64)
    previous = 0
    for i, token in enumerate(tokens):
        previous = xxhash.xxh3_64_intdigest(int(token).to_bytes(4, "little"), seed=previous)
        out[i] = previous
    return out


def next_token(digest: int, index: int) -> int:
    return 1 + (digest + index) % (VOCABULARY - 1)


def expected_answer(prompt: np.ndarray, count: int, index: int = 0) -> list[int]:
    """The answer that a lone, undisturbed worker would give."""
    tokens = list(map(int, prompt))
    for _ in range(count):
        tokens.append(next_token(int(digests_of(np.array(tokens))[-1]), index))
    return tokens[len(prompt) :]


class FakeEngine:
    """`memory` is the KV pool: uint64 [blocks, block_size]; `history` what sequences hold."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.memory = np.zeros((num_blocks, block_size), dtype=np.uint64)
        self.block_size = block_size

    def execute(self, plan: StepPlan, tokens_of: dict[int, np.ndarray]) -> StepResult:
        """``tokens_of``: all tokens of each sequence in the plan, by sequence id."""
        sampled = {}
        for copy in plan.copies:
            self.memory[copy.destination] = self.memory[copy.source]
        for piece in plan.slices:
            digests = digests_of(tokens_of[piece.sequence_id][: piece.end])
            self._check_past(piece, digests)
            self._write(piece, digests)
            sampled[piece.sequence_id] = tuple(
                SampledToken(next_token(int(digests[-1]), spec.sequence_index))
                for spec in piece.samples
            )
        return StepResult(sampled)

    def _slots(self, piece: Slice, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        positions = np.arange(first, end)
        return piece.block_table[positions // self.block_size], positions % self.block_size

    def _check_past(self, piece: Slice, digests: np.ndarray) -> None:
        blocks, slots = self._slots(piece, 0, piece.start)
        wrong = np.flatnonzero(self.memory[blocks, slots] != digests[: piece.start])
        assert not len(wrong), (
            f"sequence {piece.sequence_id} reads wrong KV at position {wrong[0]} of {piece.start}"
        )

    def _write(self, piece: Slice, digests: np.ndarray) -> None:
        blocks, slots = self._slots(piece, piece.start, piece.end)
        self.memory[blocks, slots] = digests[piece.start :]
