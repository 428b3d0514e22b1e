"""Ranks as processes: the same tokens as one rank, and the end of all when one is killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rank_program import ANSWER_TOKENS, PROMPT
from stepper import Stepper

from core.request import SamplingParams
from engine.runner import load_runner

pytestmark = pytest.mark.processes

PROGRAM = Path(__file__).parent / "rank_program.py"
ROOT = PROGRAM.parent.parent.parent
Ranks = list[subprocess.Popen[str]]


@contextmanager
def started(folder: Path, shape: tuple[int, int], meeting: Path, answers: int) -> Iterator[Ranks]:
    count = shape[0] * shape[1]
    ranks = [start_rank(folder, shape, i, meeting, answers) for i in range(count)]
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def start_rank(
    folder: Path, shape: tuple[int, int], rank: int, meeting: Path, answers: int
) -> subprocess.Popen[str]:
    numbers = [str(n) for n in (*shape, rank)]
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder), *numbers, str(meeting), str(answers)],
        cwd=ROOT,
        env={"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer_of_one_rank(folder: Path) -> list[str]:
    model = load_runner(folder, dtype="float32", device="cpu", num_blocks=80, block_size=4)
    (answer,) = Stepper(model).generate([PROMPT], SamplingParams(ANSWER_TOKENS))
    model.pool.close()
    return [f"{token}\n" for token in answer]


def test_two_processes_answer_as_one_rank_and_end(tiny_llama: Path, tmp_path: Path) -> None:
    with started(tiny_llama, (2, 1), tmp_path / "meeting", 2) as ranks:
        for rank in ranks:
            printed, errors = rank.communicate()
            assert (rank.returncode, errors) == (0, "")
            assert printed.splitlines(keepends=True) == answer_of_one_rank(tiny_llama) * 2


def test_a_killed_rank_ends_the_others(tiny_llama: Path, tmp_path: Path) -> None:
    """They wait up to a minute for a rank that is silent, but not for one that is dead."""
    with started(tiny_llama, (2, 2), tmp_path / "meeting", 100_000) as ranks:
        for rank in ranks:
            assert rank.stdout is not None
            first = [rank.stdout.readline() for _ in range(ANSWER_TOKENS)]
            assert first == answer_of_one_rank(tiny_llama)
        ranks[1].kill()
        for rank in (ranks[0], ranks[2], ranks[3]):
            _, errors = rank.communicate(timeout=30)
            assert (rank.returncode, errors) == (3, "PEERS_LOST\n")
