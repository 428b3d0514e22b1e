"""The same load as the engine's own, sent to an OpenAI-compatible server over HTTP.

Prefill: the time to the first token of one streamed request, alone on the server. Decode: the time
between tokens while as many streams decode as the batch has sequences. Prompts are new ones each
time, so that no prefix cache helps. How a server takes them (token ids or text, `ignore_eos`, the
number of tokens in each piece) is found out by asking it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

from cluster.engine_bench.cases import Cases
from cluster.engine_bench.results import DecodeResult, PrefillResult, ServerResult
from cluster.engine_bench.steady_part import SteadyWatch, Stream, find_steady_part
from cluster.engine_bench.timing import summarize
from core.errors import CrossdockError, Unavailable
from text.tokenizer import Tokenizer
from tuner.load.openai_target import OpenAIOptions, OpenAITarget
from tuner.load.plan import PlannedRequest
from tuner.load.prompts import Prompt, PromptFormat, PromptMaker
from tuner.load.records import NO_TOKENS, TIMEOUT
from tuner.load.target import AnswerLog, ServedModel
from tuner.load.vocabulary import ordinary_ids

_REQUEST_LIMIT_S = 600.0
_CHECK_PROMPT_TOKENS = 32
_CHECK_OUTPUT_TOKENS = 2
# Streams whose server prefills one prompt after the other start far apart: so long may answers be.
_LONGEST_ANSWER = 2048
_REFUSALS = {"HTTP_400", "HTTP_422", "IGNORE_EOS_REFUSED"}


@dataclass(frozen=True, slots=True)
class Manner:
    """How a server is asked. ``counts``: it is to say how many tokens each piece holds."""

    prompts: PromptFormat
    ignore_eos: bool
    counts: bool

    def __str__(self) -> str:
        prompts = "token ids" if self.prompts is PromptFormat.IDS else "text"
        eos = "ignore_eos" if self.ignore_eos else "answers may end early"
        pieces = "token counts by usage" if self.counts else "a piece counts as one token"
        return f"{prompts}; {eos}; {pieces}"


_MANNERS = tuple(
    Manner(prompts, ignore_eos, counts)
    for prompts in (PromptFormat.IDS, PromptFormat.TEXT)
    for ignore_eos, counts in ((True, True), (True, False), (False, True), (False, False))
)


@dataclass(frozen=True, slots=True)
class _Meeting:
    """An open target, what is known of it, and what makes its prompts."""

    target: OpenAITarget
    model: ServedModel
    manner: Manner
    maker: PromptMaker


async def check_reachable(url: str, api_key: str | None) -> None:
    """Raises ``Unavailable`` if nothing answers there like an OpenAI server."""
    target = OpenAITarget(OpenAIOptions(url, api_key=api_key))
    try:
        await target.describe()
    finally:
        await target.close()


async def measure_server(
    url: str, api_key: str | None, folder: Path, cases: Cases, progress: Callable[[str], None]
) -> ServerResult:
    """``folder``: holds the tokenizer of the model that is served.

    Raises ``CrossdockError`` if no request is answered; a single case that can't be measured says
    so in the result.
    """
    tokenizer = Tokenizer.load(folder)
    progress(f"{url}: how it takes requests")
    meeting = await _meet(url, api_key, tokenizer)
    try:
        return await _ServerRuns(url, meeting, cases, progress).run()
    finally:
        await meeting.target.close()


async def _meet(url: str, api_key: str | None, tokenizer: Tokenizer) -> _Meeting:
    """The first manner that the server takes. Raises its last refusal, or any other error."""
    vocabulary, seed = ordinary_ids(tokenizer), secrets.randbits(32)
    for manner in _MANNERS:
        as_text = tokenizer if manner.prompts is PromptFormat.TEXT else None
        maker = PromptMaker(vocabulary, seed, as_text)
        options = OpenAIOptions(
            url, ignore_eos=manner.ignore_eos, api_key=api_key, count_hidden=manner.counts
        )
        target = OpenAITarget(options)
        try:
            model = await target.describe()
            prompt = maker.sample(_CHECK_PROMPT_TOKENS)
            answer = await target.check(prompt, _CHECK_OUTPUT_TOKENS)
        except BaseException as error:
            await target.close()
            refused = isinstance(error, CrossdockError) and error.reason in _REFUSALS
            if not refused or manner is _MANNERS[-1]:
                raise
            continue
        counted = maker.count(prompt) if answer.usage is None else answer.usage.prompt_tokens
        overhead = max(0, counted - maker.count(prompt))
        return _Meeting(target, model, manner, maker.with_overhead(overhead))
    raise AssertionError("the last manner returns or raises")


class _ServerRuns:
    """One server, one case after the other."""

    def __init__(
        self, url: str, meeting: _Meeting, cases: Cases, progress: Callable[[str], None]
    ) -> None:
        self._url = url
        self._meeting = meeting
        self._target = meeting.target
        self._cases = cases
        self._progress = progress
        self._num_prompts = 0
        self._warnings: dict[str, None] = {}

    async def run(self) -> ServerResult:
        prefill = []
        for tokens in self._cases.prompts:
            self._progress(f"{self._url}: prefill of {tokens} tokens")
            prefill.append(await self._prefill(tokens))
        decode = []
        for context in self._cases.contexts:
            for batch in self._cases.batches:
                self._progress(f"{self._url}: decode, context {context}, batch {batch}")
                decode.append(await self._decode(batch, context))
        return ServerResult(
            self._url,
            self._meeting.model.name,
            str(self._meeting.manner),
            tuple(prefill),
            tuple(decode),
            tuple(self._warnings),
        )

    async def _prefill(self, tokens: int) -> PrefillResult:
        times: list[float] = []
        # The first one warms up. Some may answer with a token that has no text: no time is seen.
        for _ in range(2 * self._cases.runs + 2):
            try:
                times.append(await self._first_token(tokens))
            except CrossdockError as error:
                if error.reason != NO_TOKENS:
                    return PrefillResult(tokens, None, failure=error.message)
            if len(times) > self._cases.runs:
                return PrefillResult(tokens, summarize(times[1:]))
        return PrefillResult(tokens, None, failure="its first tokens have no text")

    async def _first_token(self, tokens: int) -> float:
        prepared = self._target.prepare(self._new_prompt(tokens), 1)
        answer = AnswerLog(time.perf_counter)
        started = time.perf_counter()
        await _in_time(self._target.send(prepared, answer))
        self._compare(tokens, answer)
        return answer.chunk_times[0] - started

    async def _decode(self, batch: int, context: int) -> DecodeResult:
        try:
            room = self._room(context)
            prompts = [self._new_prompt(context) for _ in range(batch)]
            streams = await self._stream([self._target.prepare(p, room) for p in prompts])
            await self._settle()
        except CrossdockError as error:
            return DecodeResult(batch, context, None, context, failure=error.message)
        part = find_steady_part(streams)
        if part is None:
            failure = "one stream ended before all had begun"
            return DecodeResult(batch, context, None, context, failure=failure)
        return DecodeResult(batch, context, part.step, context + part.mean_generated)

    async def _settle(self) -> None:
        """What was cut off has left the server when a request that came later is answered."""
        body = self._target.prepare(self._new_prompt(_CHECK_PROMPT_TOKENS), _CHECK_OUTPUT_TOKENS)
        try:
            await _in_time(self._target.send(body, AnswerLog(time.perf_counter)))
        except CrossdockError as error:
            if error.reason != NO_TOKENS:
                raise

    def _room(self, context: int) -> int:
        """Tokens that an answer may have. Raises ``Unavailable`` if they are too few."""
        longest = self._meeting.model.max_model_len
        if longest is None:
            return _LONGEST_ANSWER
        if longest - context < self._cases.steps:
            message = f"the server ends sequences at {longest} tokens"
            raise Unavailable(message, reason="CONTEXT_TOO_LONG")
        return min(_LONGEST_ANSWER, longest - context)

    async def _stream(self, prepared: list[bytes]) -> list[Stream]:
        """All at once, until the steady part is long enough or all have ended."""
        streams = [Stream([], []) for _ in prepared]
        watch, enough = SteadyWatch(streams, self._cases.steps), asyncio.Event()
        logs = [_WatchedLog(watch, i, enough) for i in range(len(prepared))]
        sending = [
            asyncio.create_task(_in_time(self._target.send(body, log)))
            for body, log in zip(prepared, logs, strict=True)
        ]
        everything = asyncio.gather(*sending)
        seen = asyncio.create_task(enough.wait())
        try:
            await asyncio.wait((everything, seen), return_when=asyncio.FIRST_COMPLETED)
            if everything.done():
                everything.result()
        finally:
            for task in (*sending, seen):
                task.cancel()
            await asyncio.gather(*sending, seen, everything, return_exceptions=True)
        return streams

    def _new_prompt(self, tokens: int) -> Prompt:
        self._num_prompts += 1
        return self._meeting.maker.make(PlannedRequest(0, self._num_prompts, 0.0, tokens, 1))

    def _compare(self, tokens: int, answer: AnswerLog) -> None:
        usage = answer.usage
        if usage is None:
            self._warnings["the server sends no usage: lengths of prompts are not verified"] = None
        elif usage.prompt_tokens != tokens:
            told = f"of prompts of {tokens} tokens the server counts {usage.prompt_tokens}"
            self._warnings[told] = None
        elif usage.cached_tokens:
            told = f"of {tokens} new tokens the server had {usage.cached_tokens} in its cache"
            self._warnings[told] = None


class _WatchedLog(AnswerLog):
    """Sets ``enough`` when ``watch`` has seen all that it needs."""

    def __init__(self, watch: SteadyWatch, stream: int, enough: asyncio.Event) -> None:
        super().__init__(time.perf_counter)
        self._watch = watch
        self._stream = stream
        self._enough = enough

    def chunk(self, tokens: int | None = None) -> None:
        super().chunk(tokens)
        if self._watch.piece(self._stream, self.chunk_times[-1], tokens or 1):
            self._enough.set()


async def _in_time(sending: Coroutine[None, None, None]) -> None:
    try:
        async with asyncio.timeout(_REQUEST_LIMIT_S):
            await sending
    except TimeoutError:
        message = f"no end of the answer within {_REQUEST_LIMIT_S:g} s"
        raise Unavailable(message, reason=TIMEOUT) from None
