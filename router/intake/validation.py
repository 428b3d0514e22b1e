"""What a client may ask: defaults, limits, and refusals by name.

Pure. Covers sampling fields of both doors and the room that prompt and answer have together.
The ranges of single values are those of ``core.request.SamplingParams``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np

from core.block_hash import TokenArray
from core.errors import InvalidField
from core.request import SamplingParams
from core.tenants import LOWEST_PRIORITY, Tenant
from core.values import value
from router.intake.model_info import ModelInfo

T = TypeVar("T")

DEFAULT_TEMPERATURE = 1.0
MAX_REQUEST_ID_LENGTH = 128
MAX_STOP_TOKEN_IDS = 64


@value()
class AskedSampling:
    """Sampling as the client wrote it; None is "not set".

    ``max_tokens`` not set means ``default_max_tokens``, or all the room that is left up to the
    context's end if that is less or not set either; ``max_tokens_name`` is what the client called
    it. ``seed`` not set means a random one; ``top_k`` -1 is another way to say 0.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_tokens: int | None = None
    max_tokens_name: str = "max_tokens"
    default_max_tokens: int | None = None
    min_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool | None = None
    seed: int | None = None
    n: int | None = None
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    priority: int | None = None


def resolve_priority(asked: AskedSampling, tenant: Tenant) -> int:
    """The class of a request; raises InvalidField for one before its tenant's."""
    priority = tenant.priority if asked.priority is None else asked.priority
    if not tenant.priority <= priority <= LOWEST_PRIORITY:
        fix = f"must be {tenant.priority} (served first) to {LOWEST_PRIORITY} for this tenant"
        raise InvalidField("priority", priority, fix)
    return priority


def unsupported(field: str, value: object) -> InvalidField:
    fix = "is not served in this version; leave the field out"
    return InvalidField(field, value, fix, reason="UNSUPPORTED_FIELD")


def resolve_sampling(
    asked: AskedSampling, room: int, random_seed: int, vocab_size: int
) -> SamplingParams:
    """Fill the defaults in. ``room``: tokens left for the answer. Raises InvalidField."""
    if len(asked.stop_token_ids) > MAX_STOP_TOKEN_IDS:
        fix = f"at most {MAX_STOP_TOKEN_IDS} ids"
        raise InvalidField("stop_token_ids", len(asked.stop_token_ids), fix)
    _check_vocabulary("stop_token_ids", asked.stop_token_ids, vocab_size)
    _check_vocabulary("logit_bias", (token_id for token_id, _ in asked.logit_bias), vocab_size)
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
        repetition_penalty=_or(asked.repetition_penalty, 1.0),
        presence_penalty=_or(asked.presence_penalty, 0.0),
        frequency_penalty=_or(asked.frequency_penalty, 0.0),
        logit_bias=asked.logit_bias,
        n=_or(asked.n, 1),
        logprobs=asked.logprobs,
    )


def check_answers(n: int, most: int | None) -> None:
    """``most``: answers that the largest decode worker runs at a time, None if unknown."""
    if most is not None and n > most:
        fix = f"at most {most} (the sequences that the largest decode worker runs at a time)"
        raise InvalidField("n", n, fix)


def checked_tokens(ids: Sequence[int] | TokenArray, vocab_size: int, field: str) -> TokenArray:
    """int32 [n] of at least one id, all of them in the vocabulary; raises InvalidField."""
    if not len(ids):
        raise InvalidField(field, "", "must have at least one token")
    try:
        tokens = np.asarray(ids, dtype=np.int64)
    except OverflowError:
        raise _not_a_token(field, max(ids, key=abs), vocab_size) from None
    # Without their sign those below 0 are the largest.
    if tokens.view(np.uint64).max() >= vocab_size:
        worst = tokens.max() if tokens.max() >= vocab_size else tokens.min()
        raise _not_a_token(field, int(worst), vocab_size)
    return tokens.astype(np.int32)


def room_for_answer(
    prompt_tokens: int,
    asked: AskedSampling,
    model: ModelInfo,
    decode_blocks: int | None,
    block_size: int,
    prompt_field: str = "prompt",
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
        raise InvalidField(prompt_field, f"{prompt_tokens} tokens", fix)
    room = limit - prompt_tokens
    if asked.max_tokens is not None and not 1 <= asked.max_tokens <= room:
        fix = (
            f"must be 1 to {room}, as {prompt_tokens} prompt tokens leave room in {limit} ({name})"
        )
        raise InvalidField(asked.max_tokens_name, asked.max_tokens, fix)
    return room


def check_request_id(request_id: str) -> None:
    if len(request_id) > MAX_REQUEST_ID_LENGTH or not request_id.isprintable():
        fix = f"must be at most {MAX_REQUEST_ID_LENGTH} printable characters"
        raise InvalidField("request_id", request_id, fix)


def _check_vocabulary(field: str, ids: Iterable[int], vocab_size: int) -> None:
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise _not_a_token(field, token_id, vocab_size)


def _not_a_token(field: str, value: int, vocab_size: int) -> InvalidField:
    return InvalidField(field, value, f"each token id must be between 0 and {vocab_size - 1}")


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
