"""Which layers of a model look through a sliding window, and how far back.

Covers: Mistral's ``sliding_window`` (every layer), Qwen's ``use_sliding_window`` with
``layer_types`` or, in older folders, ``max_window_layers`` (the layers from that one on).
Does not cover: attention within the window (``kernels.paged_attention``). Blocks that all windows
have passed are not freed: a sequence keeps its KV as one without a window does.
"""

from __future__ import annotations

from core.errors import InvalidField
from engine.config_fields import JsonObject, flag, size, unsupported

# How many most recent positions a query sees, its own included; None is all of them.
Window = int | None

_FULL, _SLIDING = "full_attention", "sliding_attention"


def layer_windows(raw: JsonObject, model_type: str, num_layers: int) -> tuple[Window, ...]:
    """One entry per layer; ``raw`` holds the family's defaults too.

    A window of w lets the query at position q see keys at q - w + 1 to q, as
    ``sliding_window_overlay`` of transformers' masking_utils does.
    """
    window = _window(raw, model_type)
    listed = raw.get("layer_types")
    if model_type in ("qwen2", "qwen3"):
        types = _qwen_layer_types(raw, window, num_layers) if listed is None else listed
    else:
        types = [_FULL if window is None else _SLIDING] * num_layers
        if listed is not None and listed != types:
            # transformers runs such a folder and ignores the list; other engines follow it.
            raise unsupported("layer_types", listed, types)
    _check_layer_types(types, num_layers)
    if window is None and _SLIDING in types:
        raise InvalidField(
            "layer_types", types, f"needs sliding_window and use_sliding_window for {_SLIDING!r}"
        )
    return tuple(window if kind == _SLIDING else None for kind in types)


def _window(raw: JsonObject, model_type: str) -> Window:
    used = model_type == "mistral" or flag(raw, "use_sliding_window")
    if not used or raw.get("sliding_window") is None:
        return None
    return size(raw, "sliding_window")


def _qwen_layer_types(raw: JsonObject, window: Window, num_layers: int) -> list[str]:
    first = raw["max_window_layers"]
    if not isinstance(first, int) or isinstance(first, bool) or first < 0:
        raise InvalidField("max_window_layers", first, "must be a whole number of layers")
    return [_SLIDING if window is not None and i >= first else _FULL for i in range(num_layers)]


def _check_layer_types(types: object, num_layers: int) -> None:
    if not isinstance(types, list) or len(types) != num_layers:
        raise InvalidField(
            "layer_types", types, f"must list one type for each of {num_layers} layers"
        )
    for kind in types:
        if kind not in (_FULL, _SLIDING):
            raise unsupported("layer_types", kind, _FULL, _SLIDING)
