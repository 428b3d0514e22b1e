"""Whole steps of a model on the Triton kernels, in a process with TRITON_INTERPRET=1.

It only tells what came out: an assert in this process would fail without pytest's words.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from replaying_recorder import ReplayingRecorder
from stepper import Stepper

from core.request import SamplingParams
from engine.cuda_graphs import DecodeGraphs
from engine.graph_buckets import decode_buckets
from engine.runner import LoadedModel, ModelRunner, load_runner
from kernels.dispatch import forced

BLOCK_SIZE, NUM_BLOCKS = 4, 60
# Prompts that end within a block, at its border, and one that is decoded from its first token on.
PROMPTS = [[int(t) for t in np.random.default_rng(n).integers(0, 150, n)] for n in (1, 7, 12)]

PLAIN = SamplingParams(5, temperature=1.0, seed=3)
# Penalties change rows of the one buffer that all graphs write their logits to.
PENALIZED = replace(
    PLAIN,
    repetition_penalty=1.6,
    presence_penalty=0.8,
    frequency_penalty=0.9,
    logit_bias=((5, 4.0), (7, -3.0)),
    logprobs=2,
)


def print_answers(folder: Path) -> None:
    """As JSON: answers of torch's operations and of the Triton kernels, which compute prompts
    eagerly and decode in graphs."""
    with forced("torch"):
        torch_answers = Stepper(load(folder)).generate(PROMPTS, PENALIZED)
        plain_answers = Stepper(load(folder)).generate(PROMPTS, PLAIN)
    with forced("triton"):
        model, recorder = load(folder), ReplayingRecorder()
        # Of 4 rows for 3 sequences: one is padding.
        made = graphs(model, 4, recorder)
        untouched = bool(model.pool.tensor.isnan().all())
        runner = ModelRunner(model.runner.model, model.pool, made)
        with_graphs = LoadedModel(runner, model.pool, model.config)
        triton_answers = Stepper(with_graphs).generate(PROMPTS, PENALIZED)
    told = {
        "torch": torch_answers,
        "without penalties": plain_answers,
        "triton": triton_answers,
        "capturing left the pool alone": untouched,
        "replays": recorder.replays,
    }
    print(json.dumps(told))


def load(folder: Path) -> LoadedModel:
    """Every cell of its pool holds NaN: what nobody wrote must not be read."""
    loaded = load_runner(
        folder, dtype="float32", device="cpu", num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE
    )
    loaded.pool.tensor.fill_(torch.nan)
    return loaded


def graphs(model: LoadedModel, most: int, recorder: ReplayingRecorder) -> DecodeGraphs:
    config = model.config
    buckets = decode_buckets(most, config.max_positions, NUM_BLOCKS, BLOCK_SIZE)
    forward = model.runner.model.forward
    return DecodeGraphs(forward, model.pool.tensor, config.vocab_size, buckets, recorder)
