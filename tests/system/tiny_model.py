"""A Llama of two small layers, random weights and a byte tokenizer: quick to load and run."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from core.kv_layout import KVLayout

END = "<end>"
# Of the model as it is without other sizes.
LAYOUT = KVLayout(2, 2, 16, 16, "float32")
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def make_tiny_model(
    folder: Path, *, heads: int = 4, kv_heads: int = 2, layers: int = 2, seed: int = 0
) -> Path:
    """Writes a model folder and returns it. The same weights each time for the same ``seed``."""
    torch.manual_seed(seed)
    bytes_of_text = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(bytes_of_text)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    end = tokenizer.token_to_id(END)
    config = LlamaConfig(
        vocab_size=end + 1,
        hidden_size=16 * heads,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=2048,
        eos_token_id=end,
        bos_token_id=end,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"chat_template": TEMPLATE, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def random_prompt(length: int) -> list[int]:
    """Bytes; prompts of other lengths begin otherwise."""
    draw = random.Random(length)
    return [draw.randrange(256) for _ in range(length)]
