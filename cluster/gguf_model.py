"""A GGUF file's Llama as Hugging Face ``config.json`` content and named float32 tensors.

Covers: metadata and weights of architecture ``llama``, dequantized by the library ``gguf``.
Whatever can't be expressed exactly (scaled rope, biases) is refused by name.
Does not cover: the tokenizer (``cluster.gguf_tokenizer``), files (``cluster.model_import``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from core.errors import Incompatible, InvalidField, Unavailable

FloatArray = npt.NDArray[np.float32]

_TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class GGUFModel:
    """An open GGUF file. Metadata by GGUF key; tensors one by one, so that memory stays small."""

    def __init__(self, path: Path) -> None:
        """Raises Unavailable without the library ``gguf``, InvalidField for a broken file."""
        gguf = _library()
        try:
            self._reader = gguf.GGUFReader(path)
        except (ValueError, OSError, IndexError) as error:
            raise InvalidField(
                "source", str(path), f"is not a whole GGUF file ({error}); copy it again"
            ) from None
        self._dequantize: Callable[..., FloatArray] = gguf.quants.dequantize
        architecture = self.metadata("general.architecture")
        if architecture != "llama":
            raise incompatible("general.architecture", architecture, "only llama is supported")

    def metadata(self, key: str, default: Any = None) -> Any:
        """A scalar, string or list; ``default`` if the file does not have the key."""
        field = self._reader.fields.get(key)
        return default if field is None else field.contents()

    def required(self, key: str) -> Any:
        """Like ``metadata``, but a missing key is an error."""
        value = self.metadata(key)
        if value is None:
            raise incompatible(key, None, "the GGUF file lacks this key")
        return value

    @property
    def num_parameters(self) -> int:
        return sum(int(tensor.n_elements) for tensor in self._reader.tensors)

    def config(self) -> dict[str, Any]:
        """``config.json`` of the same model."""
        self._check_supported()
        hidden = self.required("llama.embedding_length")
        heads = self.required("llama.attention.head_count")
        tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": hidden,
            "num_hidden_layers": self.required("llama.block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._kv_heads(),
            "head_dim": self.metadata("llama.attention.key_length", hidden // heads),
            "intermediate_size": self.required("llama.feed_forward_length"),
            "vocab_size": int(tensors["token_embd.weight"].shape[1]),
            "rms_norm_eps": _shortest(self.required("llama.attention.layer_norm_rms_epsilon")),
            "rope_theta": _shortest(self.metadata("llama.rope.freq_base", 10000.0)),
            "rope_scaling": None,
            "max_position_embeddings": self.required("llama.context_length"),
            "tie_word_embeddings": "output.weight" not in tensors,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "bos_token_id": self.metadata("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.metadata("tokenizer.ggml.eos_token_id"),
            "pad_token_id": self.metadata("tokenizer.ggml.padding_token_id"),
            "dtype": "float32",
        }

    def tensors(self) -> dict[str, FloatArray]:
        """All weights in float32 by Hugging Face name, Q and K in Hugging Face's row order.

        Float32 holds a dequantized value with nothing lost; bfloat16 would round it once more.
        """
        heads = {
            "attn_q": self.required("llama.attention.head_count"),
            "attn_k": self._kv_heads(),
        }
        result: dict[str, FloatArray] = {}
        for tensor in self._reader.tensors:
            values = self._values(tensor)
            kind = tensor.name.split(".")[-2]
            if kind in heads:
                values = undo_rope_permutation(values, heads[kind])
            result[_hugging_face_name(tensor.name)] = np.ascontiguousarray(values)
        return result

    def _values(self, tensor: Any) -> FloatArray:
        try:
            return self._dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise incompatible(tensor.name, tensor.tensor_type.name, str(error)) from None

    def _kv_heads(self) -> int:
        heads = self.required("llama.attention.head_count")
        return int(self.metadata("llama.attention.head_count_kv", heads))

    def _check_supported(self) -> None:
        scaling = self.metadata("llama.rope.scaling.type", "none")
        if scaling != "none":
            raise incompatible("llama.rope.scaling.type", scaling, "scaled rope is not supported")
        if int(self.metadata("llama.expert_count", 0)):
            experts = self.metadata("llama.expert_count")
            raise incompatible("llama.expert_count", experts, "experts are not supported")
        for tensor in self._reader.tensors:
            _hugging_face_name(tensor.name)


def undo_rope_permutation(weight: FloatArray, num_heads: int) -> FloatArray:
    """Rows [heads * head_dim, in] from llama.cpp's order, which pairs rows (2i, 2i + 1) of a head,
    to Hugging Face's, which pairs (i, i + head_dim / 2)."""
    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def incompatible(key: str, value: object, why: str) -> Incompatible:
    """What a GGUF file holds that can't be turned into a folder."""
    return Incompatible(
        f"GGUF {key} = {value!r}: {why}",
        reason="MODEL_NOT_SUPPORTED",
        metadata={"field": key, "value": repr(value)},
    )


def _hugging_face_name(name: str) -> str:
    if name in _TOP_NAMES:
        return _TOP_NAMES[name]
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[3] == "weight" and parts[2] in _LAYER_NAMES:
        return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.weight"
    raise incompatible("tensor", name, "this tensor is not part of a plain Llama")


def _shortest(value: float) -> float:
    """GGUF keeps float32; its shortest decimal form is what the original config said (1e-05)."""
    return float(str(np.float32(value)))


def _library() -> Any:
    try:
        import gguf
    except ImportError:
        raise Unavailable(
            "reading GGUF files needs the package gguf: pip install 'crossdock[import]'",
            reason="GGUF_PACKAGE_MISSING",
            metadata={"package": "gguf"},
        ) from None
    return gguf
