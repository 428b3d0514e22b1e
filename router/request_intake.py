"""What both doors share: a call comes in, a validated request goes to the dispatcher.

Covers: validation, hashing, refusing while the router drains.
Does not cover: tokens of a prompt (``router.prompt_reader``), how a door reads and writes.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from core.block_hash import block_hashes, make_salt
from core.errors import CrossdockError, Unavailable
from core.request import MAX_SEED, RequestKey
from router.answer_stream import AnswerStream, Prompt
from router.dispatcher import Dispatcher
from router.metrics import Metrics
from router.model_info import ModelInfo
from router.prompt_reader import PromptInput, PromptReader
from router.validation import (
    AskedSampling,
    check_answers,
    check_request_id,
    check_supported,
    resolve_sampling,
    room_for_answer,
)

TENANT = "default"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a client. ``prompt`` is text, token ids or a chat; "" makes a request id.

    ``prompt_field``: what the client calls the prompt, for refusals.
    ``deadline_s``: seconds from now, None for no deadline.
    """

    prompt: PromptInput
    sampling: AskedSampling
    request_id: str = ""
    deadline_s: float | None = None
    prompt_field: str = "prompt"


class RequestIntake:
    """Turns calls into running requests."""

    def __init__(
        self,
        model: ModelInfo,
        prompts: PromptReader,
        dispatcher: Dispatcher,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.draining = False
        self._prompts = prompts
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._clock = clock
        self._salt = make_salt(secrets.token_bytes(32), model.name, TENANT)

    async def submit(self, calls: Sequence[Call]) -> AnswerStream:
        """Start one request for each call, all or none; raises CrossdockError if one is refused."""
        arrived = self._clock()
        try:
            prompts = []
            for call in calls:
                prompts.append(await self._prompt(call, arrived))
                # Between two prompts the streams of others go on.
                await asyncio.sleep(0)
            answers = AnswerStream(prompts)
            answers.start(self._dispatcher.start)
        except CrossdockError:
            self._metrics.refused()
            raise
        return answers

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
        tokens = await self._prompts.tokens(call.prompt, field=call.prompt_field)
        block_size = self._dispatcher.block_size
        pool = self._dispatcher.pool
        room = room_for_answer(
            len(tokens),
            call.sampling,
            self.model,
            pool.largest_decode_pool(),
            block_size,
            call.prompt_field,
        )
        sampling = resolve_sampling(
            call.sampling, room, secrets.randbelow(MAX_SEED), self.model.vocab_size
        )
        check_answers(sampling.n, pool.most_sequences())
        return Prompt(
            key=RequestKey(TENANT, call.request_id or uuid.uuid4().hex),
            arrived=arrived,
            tokens=tokens,
            hashes=block_hashes(tokens, block_size, self._salt),
            salt=self._salt,
            sampling=sampling,
            deadline=None if call.deadline_s is None else arrived + call.deadline_s,
        )
