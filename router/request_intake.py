"""What both doors share: a call comes in, a validated request goes to the dispatcher.

Covers: chat template, tokenizing, validation, hashing, refusing while the router drains.
Does not cover: how a door reads its wire and writes the answer.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from core.block_hash import TokenArray, block_hashes, make_salt
from core.errors import CrossdockError, Incompatible, InvalidField, Unavailable
from core.request import MAX_SEED, RequestKey
from router.answer_stream import AnswerStream, Prompt
from router.dispatcher import Dispatcher
from router.metrics import Metrics
from router.model_info import ModelInfo
from router.validation import (
    AskedSampling,
    check_request_id,
    check_supported,
    check_tokens,
    resolve_sampling,
    room_for_answer,
)
from text.chat_template import ChatTemplate, Message
from text.tokenizer import Tokenizer

TENANT = "default"
# A longer text takes more than a few milliseconds, in which no stream would get its tokens.
ENCODE_IN_THREAD_FROM = 8_192


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages as dicts with ``role`` and ``content``."""

    messages: Sequence[Message]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a client. ``prompt`` is text, token ids or a chat; "" makes a request id.

    ``deadline_s``: seconds from now, None for no deadline.
    """

    prompt: str | Sequence[int] | ChatPrompt
    sampling: AskedSampling
    request_id: str = ""
    deadline_s: float | None = None


class RequestIntake:
    """Turns calls into running requests."""

    def __init__(
        self,
        model: ModelInfo,
        tokenizer: Tokenizer,
        chat_template: ChatTemplate | None,
        dispatcher: Dispatcher,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.draining = False
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._clock = clock
        self._salt = make_salt(secrets.token_bytes(32), model.name, TENANT)

    async def submit(self, call: Call) -> AnswerStream:
        """Start a request; raises CrossdockError if it is refused."""
        arrived = self._clock()
        try:
            return self._dispatcher.start(await self._prompt(call, arrived))
        except CrossdockError:
            self._metrics.refused()
            raise

    def abort(self, request_id: str) -> None:
        """End a running request; raises NotFound."""
        self._dispatcher.abort(RequestKey(TENANT, request_id))

    async def _prompt(self, call: Call, arrived: float) -> Prompt:
        if self.draining:
            raise Unavailable(
                "this router is shutting down; send the request to another one",
                reason="DRAINING",
                retry_after=1.0,
            )
        check_request_id(call.request_id)
        check_supported(call.sampling)
        tokens = await self._tokens(call.prompt)
        check_tokens(tokens, self.model.vocab_size)
        block_size = self._dispatcher.block_size
        blocks = self._dispatcher.pool.largest_decode_pool()
        room = room_for_answer(
            len(tokens), call.sampling.max_tokens, self.model, blocks, block_size
        )
        seed = secrets.randbelow(MAX_SEED)
        return Prompt(
            key=RequestKey(TENANT, call.request_id or uuid.uuid4().hex),
            arrived=arrived,
            tokens=tokens,
            hashes=block_hashes(tokens, block_size, self._salt),
            salt=self._salt,
            sampling=resolve_sampling(call.sampling, room, seed, self.model.vocab_size),
            deadline=None if call.deadline_s is None else arrived + call.deadline_s,
        )

    async def _tokens(self, prompt: str | Sequence[int] | ChatPrompt) -> TokenArray:
        if isinstance(prompt, ChatPrompt):
            # Templates write the special tokens themselves.
            return await self._encode(self._render(prompt), add_special_tokens=False)
        if isinstance(prompt, str):
            return await self._encode(prompt, add_special_tokens=True)
        try:
            return np.asarray(prompt, dtype=np.int32)
        except OverflowError as error:
            fix = f"each id must be between 0 and {self.model.vocab_size - 1}"
            raise InvalidField("token_ids", "beyond 32 bits", fix) from error

    def _render(self, prompt: ChatPrompt) -> str:
        if self._chat_template is None:
            raise Incompatible(
                f"model {self.model.name} has no chat template; send a plain prompt",
                reason="NO_CHAT_TEMPLATE",
            )
        return self._chat_template.render(prompt.messages)

    async def _encode(self, text: str, *, add_special_tokens: bool) -> TokenArray:
        # Not even the longest tokens could bring it into the context: don't tokenize megabytes.
        limit = self.model.max_model_len * self._tokenizer.longest_token
        if len(text) > limit:
            fix = f"can't fit into {self.model.max_model_len} tokens; send a shorter prompt"
            raise InvalidField("prompt", f"{len(text)} characters", fix)
        if len(text) < ENCODE_IN_THREAD_FROM:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(
            self._tokenizer.encode, text, add_special_tokens=add_special_tokens
        )
