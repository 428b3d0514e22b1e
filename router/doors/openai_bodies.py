"""Bodies of the OpenAI-compatible door: requests in.

Covers ``/v1/completions`` and ``/v1/chat/completions``. A field that would change the result and
is not served is refused by name; one that changes nothing here is accepted.
Does not cover: JSON itself (``router.doors.json_bodies``), answers
(``router.doors.openai_answers``).
"""

from __future__ import annotations

import re
from operator import countOf
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, ValidationError

from core.errors import InvalidField
from core.request import MAX_LOGPROBS
from router.doors.json_bodies import read_object
from router.intake.prompt_reader import ChatPrompt
from router.intake.validation import AskedSampling, unsupported

DEFAULT_COMPLETION_TOKENS = 16
MAX_PROMPTS = 64

# They say who asks or how to bill, store and cache: the answer is the same without them.
_HARMLESS = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "parallel_tool_calls",
    }
)
# Values with which a field that is not served changes nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "skip_special_tokens": (True,),
    "add_generation_prompt": (True,),
}
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")

# JSON has types of its own: "5" is no number, and true isn't either.
Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Flag = Annotated[bool, Strict()]


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class StreamOptions(BaseModel):
    """``include_obfuscation`` pads chunks against observers of the line; it changes no answer."""

    model_config = ConfigDict(extra="forbid")

    include_usage: Flag = False
    continuous_usage_stats: Flag = False
    include_obfuscation: Flag = False


class _GenerateBody(BaseModel):
    """Fields that both endpoints have; those beyond OpenAI's are named as in vLLM."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    stream: Flag | None = None
    stream_options: StreamOptions | None = None
    temperature: Number | None = None
    top_p: Number | None = None
    top_k: Integer | None = None
    min_p: Number | None = None
    repetition_penalty: Number | None = None
    presence_penalty: Number | None = None
    frequency_penalty: Number | None = None
    logit_bias: dict[str, Number] | None = None
    max_tokens: Integer | None = None
    min_tokens: Integer | None = None
    stop: Annotated[list[str] | None, BeforeValidator(_as_list)] = None
    stop_token_ids: list[Integer] | None = None
    ignore_eos: Flag | None = None
    seed: Integer | None = None
    n: Integer | None = None
    priority: Integer | None = None

    def check(self) -> None:
        """Raises InvalidField for fields that can't be ignored honestly or don't go together."""
        for name, value in (self.model_extra or {}).items():
            if value is None or name in _HARMLESS or value in _NEUTRAL.get(name, ()):
                continue
            raise unsupported(name, value)
        options = self.stream_options
        if options is not None and not self.stream:
            raise InvalidField("stream_options", "set", "goes only with stream: true")
        if options is not None and options.continuous_usage_stats and not options.include_usage:
            field = "stream_options.continuous_usage_stats"
            raise InvalidField(field, True, "goes only with include_usage: true")

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def continuous_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    def asked(
        self,
        max_tokens: int | None,
        logprobs: int | None,
        *,
        max_tokens_name: str = "max_tokens",
        default_max_tokens: int | None = None,
    ) -> AskedSampling:
        return AskedSampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=tuple(_bias(key, bias) for key, bias in (self.logit_bias or {}).items()),
            max_tokens=max_tokens,
            max_tokens_name=max_tokens_name,
            default_max_tokens=default_max_tokens,
            min_tokens=self.min_tokens,
            stop=tuple(self.stop or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            seed=self.seed,
            n=self.n,
            logprobs=logprobs,
            priority=self.priority,
        )


class CompletionBody(_GenerateBody):
    """``max_tokens`` defaults to 16, as with OpenAI, or to the room left if that is less."""

    prompt: Any
    logprobs: Integer | None = None
    best_of: Integer | None = None

    def check(self) -> None:
        """`best_of` draws more answers than it gives; as many as it gives is just ``n``."""
        super().check()
        if self.best_of not in (None, 1 if self.n is None else self.n):
            fix = "is served only if it equals n; leave the field out"
            raise InvalidField("best_of", self.best_of, fix, reason="UNSUPPORTED_FIELD")

    def sampling(self) -> AskedSampling:
        default = DEFAULT_COMPLETION_TOKENS
        return self.asked(self.max_tokens, self.logprobs, default_max_tokens=default)

    def prompts(self) -> dict[str, str | list[int]]:
        """Each prompt by its place in the body: text, token ids, or a list of either.

        Raises InvalidField for anything else.
        """
        prompt = self.prompt
        if isinstance(prompt, str):
            return {"prompt": prompt}
        if not isinstance(prompt, list):
            raise _no_prompt("prompt", prompt)
        if not prompt or isinstance(prompt[0], int):
            return {"prompt": _token_ids("prompt", prompt)}
        if len(prompt) > MAX_PROMPTS:
            raise InvalidField("prompt", f"{len(prompt)} prompts", f"at most {MAX_PROMPTS}")
        places = {f"prompt.{number}": one for number, one in enumerate(prompt)}
        return {field: _one_prompt(field, one) for field, one in places.items()}


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """``name`` is accepted; templates of this kind of model have no place for it."""

    model_config = ConfigDict(extra="allow")

    role: str = Field(min_length=1)
    content: Annotated[list[TextPart] | None, BeforeValidator(_as_parts)] = None

    def plain(self) -> dict[str, str]:
        for name, value in (self.model_extra or {}).items():
            if value and name != "name":
                raise unsupported(f"messages.{name}", value)
        return {"role": self.role, "content": "".join(part.text for part in self.content or ())}


class ChatBody(_GenerateBody):
    """``max_tokens`` defaults to all the room that the context leaves."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: Integer | None = None
    logprobs: Flag | None = None
    top_logprobs: Integer | None = None

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise InvalidField("top_logprobs", self.top_logprobs, "goes only with logprobs: true")
        if not 0 <= (self.top_logprobs or 0) <= MAX_LOGPROBS:
            fix = f"must be between 0 and {MAX_LOGPROBS}"
            raise InvalidField("top_logprobs", self.top_logprobs, fix)

    def sampling(self) -> AskedSampling:
        name = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        return self.asked(getattr(self, name), logprobs, max_tokens_name=name)

    def prompts(self) -> dict[str, ChatPrompt]:
        """The only one, by the name that refusals give it."""
        return {"prompt": ChatPrompt([message.plain() for message in self.messages])}


Body = TypeVar("Body", bound=BaseModel)


def parse(kind: type[Body], raw: bytes) -> Body:
    """Read a JSON body; raises InvalidField naming the first field that is wrong."""
    try:
        return kind.model_validate(read_object(raw))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise InvalidField(field, None, "must be set") from None
        raise InvalidField(field, first["input"], first["msg"]) from None


def _bias(key: str, bias: float) -> tuple[int, float]:
    if not _TOKEN_ID.fullmatch(key):
        raise InvalidField("logit_bias", key, 'each name must be a token id, such as "50256"')
    return int(key), bias


def _one_prompt(field: str, prompt: Any) -> str | list[int]:
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list):
        raise _no_prompt(field, prompt)
    return _token_ids(field, prompt)


def _token_ids(field: str, prompt: list[Any]) -> list[int]:
    # That takes a fraction of the time that a look at each of them does.
    if countOf(map(type, prompt), int) == len(prompt):
        return prompt
    number, other = next((n, one) for n, one in enumerate(prompt) if type(one) is not int)
    raise InvalidField(f"{field}.{number}", other, "must be a token id, as all before")


def _no_prompt(field: str, prompt: Any) -> InvalidField:
    return InvalidField(field, prompt, "must be text, token ids, or (once) a list of either")
