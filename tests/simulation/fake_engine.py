"""An engine without a model, whose KV tells whether it is the right KV.

Each KV slot holds a digest of all tokens up to its position. A step checks the digests of
everything a slice attends to before it writes its own, so a block that was shipped wrongly, freed
too early or given to two sequences is found at once. The next token is a function of the digest
and of which of the n answers it is for.

Each stage of the pipeline has KV of its own and computes the steps in their order, at its own
pace: one may read and write a step's blocks long after another did.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import xxhash

from core.step import SampledToken, Slice, StepPlan, StepResult

VOCABULARY = 997


def digests_of(tokens: np.ndarray) -> np.ndarray:
    """uint64 [n]: digest of tokens[: i + 1] for each i."""
    out = np.empty(len(tokens), dtype=np.uint64)
    previous = 0
    for i, token in enumerate(tokens.tolist()):
        previous = out[i] = digest_after(previous, token)
    return out


def digest_after(previous: int, token: int) -> int:
    return xxhash.xxh3_64_intdigest(token.to_bytes(4, "little"), seed=previous)


def next_token(digest: int, index: int) -> int:
    return 1 + (digest + index) % (VOCABULARY - 1)


def expected_answer(prompt: np.ndarray, count: int, index: int = 0) -> list[int]:
    """The answer that a lone, undisturbed worker would give."""
    digest = int(digests_of(prompt)[-1])
    answer: list[int] = []
    for _ in range(count):
        answer.append(next_token(digest, index))
        digest = digest_after(digest, answer[-1])
    return answer


@dataclass(slots=True, eq=False)
class Step:
    """A step under way. ``stage`` is the one that computes it next."""

    plan: StepPlan
    digests: dict[int, np.ndarray]
    stage: int = 0
    sampled: dict[int, tuple[SampledToken, ...]] = field(default_factory=dict)


class FakeEngine:
    """`memory` is the KV pool: uint64 [depth, blocks, block_size], one row for each stage."""

    def __init__(self, num_blocks: int, block_size: int, depth: int = 1) -> None:
        self.memory = np.zeros((depth, num_blocks, block_size), dtype=np.uint64)
        self.block_size = block_size
        self.depth = depth
        self.under_way: deque[Step] = deque()
        self.most_under_way = 0

    @property
    def has_room(self) -> bool:
        return len(self.under_way) < self.depth

    @property
    def is_idle(self) -> bool:
        return not self.under_way

    @property
    def has_finished(self) -> bool:
        """Whether the oldest step has passed all stages."""
        return bool(self.under_way) and self.under_way[0].stage == self.depth

    def submit(self, plan: StepPlan, tokens_of: Mapping[int, np.ndarray]) -> None:
        """``tokens_of``: all tokens of each sequence in the plan, by sequence id."""
        assert self.has_room
        ends = {piece.sequence_id: piece.end for piece in plan.slices}
        for piece in plan.slices:
            tokens = tokens_of[piece.sequence_id]
            assert piece.tokens.tolist() == tokens[piece.start : piece.end].tolist()
            for spec in piece.samples:
                assert spec.position == piece.end == len(tokens)
                assert spec.tokens.tolist() == tokens.tolist()
        self.under_way.append(
            Step(plan, {i: digests_of(tokens_of[i][:e]) for i, e in ends.items()})
        )
        self.most_under_way = max(self.most_under_way, len(self.under_way))

    def movable(self) -> list[Step]:
        """Steps whose next stage has computed all steps before them."""
        before = [self.depth + 1, *(step.stage for step in self.under_way)]
        return [
            step
            for step, ahead in zip(self.under_way, before, strict=False)
            if step.stage < min(ahead, self.depth)
        ]

    def advance(self, step: Step) -> None:
        """One stage computes a step; the last one draws."""
        memory = self.memory[step.stage]
        for copy in step.plan.copies:
            memory[copy.destination] = memory[copy.source]
        for piece in step.plan.slices:
            digests = step.digests[piece.sequence_id]
            self._check_past(memory, piece, digests)
            self._write(memory, piece, digests)
            step.sampled[piece.sequence_id] = tuple(
                SampledToken(next_token(int(digests[-1]), spec.sequence_index))
                for spec in piece.samples
            )
        step.stage += 1

    def take_finished(self) -> tuple[StepPlan, StepResult]:
        """The oldest step, which has passed all stages."""
        assert self.has_finished
        step = self.under_way.popleft()
        return step.plan, StepResult(step.sampled)

    def _slots(self, piece: Slice, first: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        positions = np.arange(first, end)
        return piece.block_table[positions // self.block_size], positions % self.block_size

    def _check_past(self, memory: np.ndarray, piece: Slice, digests: np.ndarray) -> None:
        blocks, slots = self._slots(piece, 0, piece.start)
        wrong = np.flatnonzero(memory[blocks, slots] != digests[: piece.start])
        assert not len(wrong), (
            f"sequence {piece.sequence_id} reads wrong KV at position {wrong[0]} of {piece.start}"
        )

    def _write(self, memory: np.ndarray, piece: Slice, digests: np.ndarray) -> None:
        blocks, slots = self._slots(piece, piece.start, piece.end)
        memory[blocks, slots] = digests[piece.start :]
