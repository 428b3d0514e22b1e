"""A Qwen3 with sliding windows and YaRN, served by P and D: the tokens of transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from served_cluster import served
from transformers import AutoConfig, AutoModelForCausalLM

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

ANSWER_TOKENS = 24


@pytest.fixture
def windowed_model(tiny_model: Path, tmp_path: Path) -> Path:
    """Made for 256 positions, scaled to 1,024; the last two of three layers see 20 tokens."""
    vocab_size = json.loads((tiny_model / "config.json").read_text())["vocab_size"]
    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
        use_sliding_window=True,
        sliding_window=20,
        max_window_layers=1,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 256,
        },
        eos_token_id=vocab_size - 1,
        initializer_range=0.3,
    )
    torch.manual_seed(5)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, tmp_path)
    return tmp_path


def largest_margin_lost(folder: Path, prompt: list[int], answer: list[int]) -> float:
    """How far below the best logit of transformers the answer's tokens ever are."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    return float((logits.max(dim=1).values - chosen).max())


def test_answers_beyond_windows_and_the_original_context(windowed_model: Path) -> None:
    random = np.random.default_rng(1)
    prompts = [random.integers(0, 256, length).tolist() for length in (5, 60, 300, 900)]
    # By the time it is asked, the first 450 tokens of this one are cached.
    prompts.append(prompts[-1][:450] + prompts[-2])
    with served(windowed_model, 1, 1, "--dtype", "float32") as cluster:
        answers = cluster.answers(prompts[:-1], ANSWER_TOKENS)
        answers.append(cluster.answer(prompts[-1], ANSWER_TOKENS))
    for prompt, answer in zip(prompts, answers, strict=True):
        assert len(answer) == ANSWER_TOKENS
        assert largest_margin_lost(windowed_model, prompt, answer) < 1e-4
