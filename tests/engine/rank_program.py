"""One rank of a replica in a process of its own: answers a fixed prompt, again and again.

Arguments: model folder, tensor, pipeline, rank, rendezvous file, number of answers. The sampling
rank writes the tokens into the rendezvous, from which all take them for the next step and print
them. Exits with 3 and the reason on stderr when another rank is lost.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from torch.distributed import FileStore

from core.errors import InternalError
from core.request import SamplingParams
from core.shards import ParallelShape
from core.step import SampleSpec, Slice, StepPlan
from engine.process_group import TorchCommunicator
from engine.runner import ModelRunner, load_runner

PROMPT = list(range(5, 25))
ANSWER_TOKENS = 12
BLOCK_SIZE = 4


def main(folder: str, tensor: str, pipeline: str, rank: str, meeting: str, answers: str) -> int:
    shape = ParallelShape(int(tensor), int(pipeline))
    store = FileStore(meeting, shape.num_ranks)
    communicator = TorchCommunicator(store, shape, int(rank), "127.0.0.1", "cpu")
    model = load_runner(
        Path(folder),
        dtype="float32",
        device="cpu",
        num_blocks=80,
        block_size=BLOCK_SIZE,
        communicator=communicator,
    )
    try:
        for i in range(int(answers)):
            answer(model.runner, store, f"answer{i}")
    except InternalError as error:
        print(error.reason, file=sys.stderr)
        return 3
    communicator.close()
    return 0


def answer(runner: ModelRunner, store: FileStore, name: str) -> None:
    tokens, computed = list(PROMPT), 0
    for i in range(ANSWER_TOKENS):
        result = runner.execute(plan_of(tokens, computed))
        if result is not None:
            store.set(f"{name}.{i}", str(result.sampled[0][0].token))
        computed = len(tokens)
        tokens.append(int(store.get(f"{name}.{i}")))
        print(tokens[-1], flush=True)


def plan_of(tokens: list[int], computed: int) -> StepPlan:
    blocks = np.arange(-(-len(tokens) // BLOCK_SIZE), dtype=np.int32)
    spec = SampleSpec(SamplingParams(max_tokens=1), position=len(tokens))
    new = np.array(tokens[computed:], np.int32)
    return StepPlan((Slice(0, computed, new, blocks, (spec,)),))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
