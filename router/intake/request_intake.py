"""What both doors share: a call comes in, a validated request goes to the dispatcher.

Covers: who calls, validation, hashing, refusing while the router drains.
Does not cover: tokens of a prompt (``router.intake.prompt_reader``), how a door reads and writes.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence

from core.block_hash import block_hashes
from core.errors import CrossdockError, NotFound, Overloaded, Unavailable
from core.request import SEED_BITS, RequestKey, SamplingParams
from core.tenants import DEFAULT_TENANT
from core.values import value
from router.access_rules import AccessRules
from router.intake.authentication import Authentication
from router.intake.cache_salts import CacheSalts
from router.intake.model_info import ModelInfo
from router.intake.prompt_reader import PromptInput, PromptReader
from router.intake.validation import (
    AskedSampling,
    check_answers,
    check_request_id,
    resolve_priority,
    resolve_sampling,
    room_for_answer,
)
from router.metrics.metrics import Metrics
from router.requests.answer_stream import AnswerStream, Prompt
from router.requests.dispatcher import Dispatcher
from router.slo import slo_class


@value()
class Call:
    """One call of a client. ``prompt`` is text, token ids or a chat; "" makes a request id.

    ``prompt_field``: what the client calls the prompt, for refusals.
    ``deadline_s``: seconds from now, None for no deadline. ``tenant``: as ``RequestIntake.tenant``
    said. ``by_ticket``: it may read tokens from the decode worker itself.
    """

    prompt: PromptInput
    sampling: AskedSampling
    request_id: str = ""
    deadline_s: float | None = None
    prompt_field: str = "prompt"
    tenant: str = DEFAULT_TENANT
    by_ticket: bool = False


class RequestIntake:
    """Turns calls into running requests."""

    def __init__(
        self,
        model: ModelInfo,
        prompts: PromptReader,
        dispatcher: Dispatcher,
        metrics: Metrics,
        access: AccessRules,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.model = model
        self.draining = False
        self._prompts = prompts
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._clock = clock
        self._access = access
        self._authentication = Authentication(access.api_keys, access.needs_key)
        self.salts = CacheSalts(model.digest)
        # With other routers: what a call needs of all of them, told which ids the client chose; and
        # how to end or relay a request that another router runs, which tells whether there is one.
        self.claim: Callable[[Sequence[Prompt], Sequence[RequestKey]], Awaitable[None]] | None
        self.claim = None
        self.abort_elsewhere: Callable[[RequestKey], Awaitable[bool]] | None = None
        self.relay_elsewhere: Callable[[RequestKey, int, int], Awaitable[bool]] | None = None

    def tenant(self, authorization: str | None) -> str:
        """Whose call this is, by its Authorization header; raises Unauthenticated."""
        try:
            return self._authentication.tenant(authorization)
        except CrossdockError:
            self._metrics.refused()
            raise

    def refused(self, tenant: str, error: Exception) -> None:
        """Doors tell that there was an ``error`` before a request of ``tenant`` was taken. Which
        class it asked for nobody knows: the tenant's own counts."""
        own = slo_class(self._access.tenant(tenant).priority)
        if isinstance(error, Overloaded):
            self._metrics.turned_away(tenant, own, error.reason)
        else:
            self._metrics.refused(tenant, own)

    async def submit(self, calls: Sequence[Call]) -> AnswerStream:
        """Start one request for each call, all or none; raises CrossdockError if one is refused.
        ``calls``: at least one."""
        arrived = self._clock()
        several = len(calls) > 1
        prompts = [await self._prompt(calls[0], arrived, several)]
        for call in calls[1:]:
            # Between two prompts the streams of others go on.
            await asyncio.sleep(0)
            prompts.append(await self._prompt(call, arrived, several))
        if self.claim is not None:
            both = zip(calls, prompts, strict=True)
            await self.claim(prompts, [prompt.key for call, prompt in both if call.request_id])
        if several:
            self._dispatcher.check_budgets(prompts)
        answers = AnswerStream(prompts)
        answers.start(self._dispatcher.start)
        return answers

    async def relay(self, tenant: str, request_id: str, attempt: int, position: int) -> None:
        """The client can't read the attempt's tokens from its worker; raises NotFound."""
        key, elsewhere = RequestKey(tenant, request_id), self.relay_elsewhere
        try:
            self._dispatcher.relay(key, attempt, position)
        except NotFound:
            if elsewhere is None or not await elsewhere(key, attempt, position):
                raise

    async def abort(self, tenant: str, request_id: str) -> None:
        """End a running request of this tenant; raises NotFound."""
        key = RequestKey(tenant, request_id)
        try:
            self._dispatcher.abort(key)
        except NotFound:
            if self.abort_elsewhere is None or not await self.abort_elsewhere(key):
                raise

    async def _prompt(self, call: Call, arrived: float, with_others: bool) -> Prompt:
        if self.draining:
            raise Unavailable(
                "this router is shutting down; send the request to another one",
                reason="DRAINING",
                retry_after=1.0,
            )
        check_request_id(call.request_id)
        priority = resolve_priority(call.sampling, self._access.tenant(call.tenant))
        tokens = await self._prompts.tokens(call.prompt, field=call.prompt_field)
        sampling = self._sampling(call, len(tokens))
        salt = self.salts.of(call.tenant)
        return Prompt(
            key=RequestKey(call.tenant, call.request_id or secrets.token_hex(16)),
            arrived=arrived,
            tokens=tokens,
            hashes=block_hashes(tokens, self._dispatcher.block_size, salt),
            salt=salt,
            sampling=sampling,
            deadline=None if call.deadline_s is None else arrived + call.deadline_s,
            priority=priority,
            by_ticket=call.by_ticket,
            with_others=with_others,
        )

    def _sampling(self, call: Call, num_tokens: int) -> SamplingParams:
        """What the call wants, as far as the workers can do it, for a prompt of ``num_tokens``."""
        pool = self._dispatcher.pool
        room = room_for_answer(
            num_tokens,
            call.sampling,
            self.model,
            pool.largest_decode_pool(),
            self._dispatcher.block_size,
            call.prompt_field,
        )
        seed = secrets.randbits(SEED_BITS)
        sampling = resolve_sampling(call.sampling, room, seed, self.model.vocab_size)
        check_answers(sampling.n, pool.most_sequences())
        return sampling
