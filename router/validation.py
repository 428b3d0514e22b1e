"""What a client may ask: defaults, limits, and refusals by name.

Pure. Covers sampling fields of both doors and the room that prompt and answer have together.
The ranges of single values are those of ``core.request.SamplingParams``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from core.block_hash import TokenArray
from core.errors import InvalidField
from core.request import SamplingParams
from router.model_info import ModelInfo

T = TypeVar("T")

DEFAULT_TEMPERATURE = 1.0
MAX_REQUEST_ID_LENGTH = 128
MAX_STOP_TOKEN_IDS = 64


@dataclass(frozen=True, slots=True)
class AskedSampling:
    """Sampling as the client wrote it; None is "not set".

    ``max_tokens`` not set means ``default_max_tokens``, or all the room that is left up to the
    context's end if that is less or not set either; ``seed`` not
    set means a random one; ``top_k`` -1 is another way to say 0.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_tokens: int | None = None
    default_max_tokens: int | None = None
    min_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool | None = None
    seed: int | None = None
    n: int | None = None
    logprobs: int | None = None
    priority: int | None = None


# Fields that this version does not serve, with the values that change nothing.
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "repetition_penalty": (None, 1.0),
    "presence_penalty": (None, 0.0),
    "frequency_penalty": (None, 0.0),
    "n": (None, 1),
    "logprobs": (None,),
    "priority": (None, 0),
}


def check_supported(asked: AskedSampling) -> None:
    """Raises InvalidField with reason UNSUPPORTED_FIELD: nothing is ignored in silence."""
    for name, neutral in _NEUTRAL.items():
        value = getattr(asked, name)
        if value not in neutral:
            raise unsupported(name, value)


def unsupported(field: str, value: object) -> InvalidField:
    fix = "is not served in this version; leave the field out"
    return InvalidField(field, value, fix, reason="UNSUPPORTED_FIELD")


def resolve_sampling(
    asked: AskedSampling, room: int, random_seed: int, vocab_size: int
) -> SamplingParams:
    """Fill the defaults in. ``room``: tokens left for the answer. Raises InvalidField."""
    _check_stop_token_ids(asked.stop_token_ids, vocab_size)
    return SamplingParams(
        max_tokens=_or(asked.max_tokens, min(room, _or(asked.default_max_tokens, room))),
        temperature=_or(asked.temperature, DEFAULT_TEMPERATURE),
        top_p=_or(asked.top_p, 1.0),
        top_k=0 if asked.top_k == -1 else _or(asked.top_k, 0),
        min_p=_or(asked.min_p, 0.0),
        min_tokens=_or(asked.min_tokens, 0),
        stop=asked.stop,
        stop_token_ids=asked.stop_token_ids,
        ignore_eos=bool(asked.ignore_eos),
        seed=_or(asked.seed, random_seed),
    )


def check_tokens(tokens: TokenArray, vocab_size: int) -> None:
    """At least one token, all of them in the vocabulary. ``tokens`` int32 [n]."""
    if not len(tokens):
        raise InvalidField("prompt", "", "must have at least one token")
    worst = int(tokens.max()) if tokens.max() >= vocab_size else int(tokens.min())
    if not 0 <= worst < vocab_size:
        raise InvalidField("token_ids", worst, f"each id must be between 0 and {vocab_size - 1}")


def room_for_answer(
    prompt_tokens: int,
    max_tokens: int | None,
    model: ModelInfo,
    decode_blocks: int | None,
    block_size: int,
) -> int:
    """Tokens that the answer may have; raises InvalidField if prompt or answer don't fit.

    ``decode_blocks``: size of the largest decode pool, None if it is unknown at present.
    """
    limits = [(model.max_model_len, "max_model_len")]
    if decode_blocks is not None:
        limits.append((decode_blocks * block_size, "tokens of the largest decode worker"))
    limit, name = min(limits)
    if prompt_tokens >= limit:
        fix = f"must leave room for an answer within {limit} ({name}); send a shorter prompt"
        raise InvalidField("prompt", f"{prompt_tokens} tokens", fix)
    room = limit - prompt_tokens
    if max_tokens is not None and max_tokens > room:
        fix = f"with {prompt_tokens} prompt tokens at most {room} fit into {limit} ({name})"
        raise InvalidField("max_tokens", max_tokens, fix)
    return room


def check_request_id(request_id: str) -> None:
    if len(request_id) > MAX_REQUEST_ID_LENGTH or not request_id.isprintable():
        fix = f"must be at most {MAX_REQUEST_ID_LENGTH} printable characters"
        raise InvalidField("request_id", request_id, fix)


def _check_stop_token_ids(ids: tuple[int, ...], vocab_size: int) -> None:
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise InvalidField("stop_token_ids", len(ids), f"at most {MAX_STOP_TOKEN_IDS} ids")
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            fix = f"each id must be between 0 and {vocab_size - 1}"
            raise InvalidField("stop_token_ids", token_id, fix)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
