"""A GGUF file's tokenizer as ``tokenizer.json`` and ``tokenizer_config.json`` content.

Covers: byte-level BPE with the pre-tokenizers named below. Others are refused by name, because a
prompt that is split differently is a different prompt.
"""

from __future__ import annotations

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from cluster.gguf_model import GGUFModel, incompatible

_CONTROL, _USER_DEFINED = 3, 4

# tokenizer.ggml.pre: does every digit stand alone? The rest is GPT-2's regular expression.
_DIGITS_SPLIT = {"gpt-2": False, "smollm": True, "starcoder": True, "refact": True}


def build_tokenizer(model: GGUFModel) -> Tokenizer:
    """The tokenizer that the file describes."""
    kind = model.required("tokenizer.ggml.model")
    if kind != "gpt2":
        raise incompatible("tokenizer.ggml.model", kind, "only byte-level BPE (gpt2) is supported")
    tokens: list[str] = model.required("tokenizer.ggml.tokens")
    merges = [tuple(pair.split(" ")) for pair in model.required("tokenizer.ggml.merges")]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = _pre_tokenizer(model)
    tokenizer.decoder = decoders.ByteLevel()
    _add_special_tokens(tokenizer, tokens, model.metadata("tokenizer.ggml.token_type", []))
    if model.metadata("tokenizer.ggml.add_bos_token", False):
        _prepend_bos(tokenizer, tokens, model.required("tokenizer.ggml.bos_token_id"))
    return tokenizer


def tokenizer_config(model: GGUFModel) -> dict[str, Any]:
    """``tokenizer_config.json``: special tokens by name, and the chat template if there is one."""
    tokens: list[str] = model.required("tokenizer.ggml.tokens")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "model_max_length": model.required("llama.context_length"),
    }
    for name, key in _NAMED_TOKENS.items():
        token_id = model.metadata(f"tokenizer.ggml.{key}_token_id")
        if token_id is not None:
            config[name] = tokens[token_id]
    template = model.metadata("tokenizer.chat_template")
    if template is not None:
        config["chat_template"] = template
    return config


def eos_token_ids(model: GGUFModel) -> list[int]:
    """Ids that end an answer: end of sequence and, where the file has them, end of turn/message."""
    keys = ("eos", "eot", "eom")
    ids = (model.metadata(f"tokenizer.ggml.{key}_token_id") for key in keys)
    return sorted({int(token) for token in ids if token is not None})


_NAMED_TOKENS = {
    "bos_token": "bos",
    "eos_token": "eos",
    "unk_token": "unknown",
    "pad_token": "padding",
}


def _pre_tokenizer(model: GGUFModel) -> pre_tokenizers.PreTokenizer:
    name = model.required("tokenizer.ggml.pre")
    if name not in _DIGITS_SPLIT:
        known = ", ".join(_DIGITS_SPLIT)
        raise incompatible("tokenizer.ggml.pre", name, f"supported are {known}")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if not _DIGITS_SPLIT[name]:
        return byte_level
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])


def _add_special_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    for token, kind in zip(tokens, types, strict=False):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])


def _prepend_bos(tokenizer: Tokenizer, tokens: list[str], bos: int) -> None:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{tokens[bos]} $A",
        pair=f"{tokens[bos]} $A {tokens[bos]} $B",
        special_tokens=[(tokens[bos], bos)],
    )
