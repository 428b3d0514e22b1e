"""A small byte-level tokenizer, trained on the spot: any text round-trips through it."""

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from text.tokenizer import Tokenizer

CORPUS = ["hello world, how are you today?", "the answer is forty-two", "stop here"] * 4


def train_backend() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return backend


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_backend(), eos_token_ids=(1,))


@pytest.fixture(scope="session")
def byte_fallback_tokenizer() -> Tokenizer:
    """Like Llama 2's: pieces that start with ▁, and bytes for what the vocabulary lacks."""
    pieces = [("<unk>", 0.0), *((f"<0x{i:02X}>", 0.0) for i in range(256))]
    pieces += [("▁", -1.0), ("▁hello", -1.0), ("▁world", -1.0), ("a", -1.0), ("▁a", -1.0)]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(backend)
