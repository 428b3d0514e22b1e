"""Reads a Llama's weights from safetensors and checks each by name and shape first.

Covers: one ``model.safetensors`` or shards with an index. Never reads pickles.
Does not cover: how the weights are used (``engine.llama``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from core.errors import Incompatible, InvalidField, NotFound
from engine.model_config import ModelConfig, read_json

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth")
_FLOAT_DTYPES = ("F32", "BF16", "F16", "F64")


def load_weights(
    folder: Path, config: ModelConfig, dtype: torch.dtype, device: str
) -> dict[str, torch.Tensor]:
    """Every tensor of ``expected_shapes``, by its Hugging Face name, in ``dtype`` on ``device``.

    Raises NotFound for a missing file, Incompatible for a tensor that is missing, superfluous, of
    the wrong shape or quantized, InvalidField for a broken file.
    """
    expected = expected_shapes(config)
    weights: dict[str, torch.Tensor] = {}
    for path in weight_files(folder):
        with _opened(path) as file:
            for name in sorted(file.keys()):
                if name not in expected:
                    _check_superfluous(name, config)
                    continue
                _check_tensor(path, file, name, expected[name])
                weights[name] = file.get_tensor(name).to(device=device, dtype=dtype)
    missing = [name for name in expected if name not in weights]
    if missing:
        raise _incompatible(
            f"{folder} lacks the tensor {missing[0]} (and {len(missing) - 1} others)", missing[0]
        )
    return weights


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of the model by their Hugging Face names, weights as [out, in]."""
    hidden = config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (config.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    for i in range(config.num_layers):
        for name, shape in _layer_shapes(config).items():
            shapes[f"model.layers.{i}.{name}.weight"] = shape
    return shapes


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder; raises NotFound that says what lies there instead."""
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    if (folder / INDEX_FILE).is_file():
        return _shards(folder)
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    found = (
        f"only {', '.join(pickles)}, which may run code when read and is never loaded; "
        "convert it to safetensors"
        if pickles
        else "neither that nor an index of shards"
    )
    raise NotFound(
        f"{folder} has no {SINGLE_FILE}: it holds {found}",
        reason="WEIGHTS_MISSING",
        metadata={"folder": str(folder), "pickles": ",".join(pickles)},
    )


def _shards(folder: Path) -> list[Path]:
    weight_map = read_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidField("weight_map", weight_map, f"{INDEX_FILE} must map tensors to files")
    names = sorted(set(weight_map.values()))
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise InvalidField("weight_map", name, "must name a file of the model's own folder")
        if not (folder / name).is_file():
            raise NotFound(
                f"{folder} lacks the shard {name}, which {INDEX_FILE} names: copy it there",
                reason="WEIGHTS_MISSING",
                metadata={"folder": str(folder), "shard": name},
            )
    return [folder / name for name in names]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The file as safetensors opens it; Any, because its methods have no types."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise InvalidField(
            "model", path.name, f"is not a whole safetensors file ({error}); copy it again"
        ) from None


def _check_tensor(path: Path, file: Any, name: str, expected: tuple[int, ...]) -> None:
    stored = file.get_slice(name)
    shape, dtype = tuple(stored.get_shape()), stored.get_dtype()
    if shape != expected:
        raise _incompatible(
            f"{path.name}: {name} has shape {shape}, but config.json makes it {expected}", name
        )
    if dtype not in _FLOAT_DTYPES:
        raise _incompatible(
            f"{path.name}: {name} is stored as {dtype}; only unquantized floats are supported", name
        )


def _check_superfluous(name: str, config: ModelConfig) -> None:
    """A tensor that is not used and would change the result (a bias, say) is refused."""
    tied_head = name == "lm_head.weight" and config.tie_word_embeddings
    if not tied_head and not name.endswith("rotary_emb.inv_freq"):
        raise _incompatible(f"the tensor {name} is not part of a Llama of this config", name)


def _incompatible(message: str, tensor: str) -> Incompatible:
    return Incompatible(message, reason="WEIGHTS_DO_NOT_FIT", metadata={"tensor": tensor})


def _layer_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    hidden, inner = config.hidden_size, config.intermediate_size
    q_size = config.num_heads * config.head_dim
    kv_size = config.num_kv_heads * config.head_dim
    return {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (q_size, hidden),
        "self_attn.k_proj": (kv_size, hidden),
        "self_attn.v_proj": (kv_size, hidden),
        "self_attn.o_proj": (hidden, q_size),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
