"""Bodies of the OpenAI-compatible door: requests in, JSON out.

Covers ``/v1/completions`` and ``/v1/chat/completions``. A field that would change the result and
is not served is refused by name; one that changes nothing here is accepted.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.errors import InvalidField
from router.request_intake import ChatPrompt
from router.validation import AskedSampling, unsupported

DEFAULT_COMPLETION_TOKENS = 16

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
    "best_of": (1,),
    "echo": (False,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "skip_special_tokens": (True,),
    "add_generation_prompt": (True,),
    "suffix": ("",),
    "top_logprobs": (0,),
}


class StreamOptions(BaseModel):
    """``include_obfuscation`` pads chunks against observers of the line; it changes no answer."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: bool = False


class _GenerateBody(BaseModel):
    """Fields that both endpoints have; those beyond OpenAI's are named as in vLLM."""

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    seed: int | None = None
    n: int | None = None
    priority: int | None = None

    def refuse_unserved(self) -> None:
        """Raises InvalidField for the first field that can't be ignored honestly."""
        for name, value in (self.model_extra or {}).items():
            if value is None or name in _HARMLESS or value in _NEUTRAL.get(name, ()):
                continue
            raise unsupported(name, value)

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def asked(self, max_tokens: int | None, logprobs: int | None) -> AskedSampling:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return AskedSampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            max_tokens=max_tokens,
            min_tokens=self.min_tokens,
            stop=tuple(stop),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            ignore_eos=self.ignore_eos,
            seed=self.seed,
            n=self.n,
            logprobs=logprobs,
            priority=self.priority,
        )


class CompletionBody(_GenerateBody):
    """``max_tokens`` defaults to 16, as with OpenAI, or to the room left if that is less."""

    prompt: str | list[int] | list[str] | list[list[int]]
    logprobs: int | None = None

    def sampling(self) -> AskedSampling:
        asked = self.asked(self.max_tokens, self.logprobs)
        return replace(asked, default_max_tokens=DEFAULT_COMPLETION_TOKENS)

    def single_prompt(self) -> str | list[int]:
        """A list of one prompt is that prompt; raises InvalidField for more."""
        prompt = self.prompt
        if isinstance(prompt, str) or not prompt:
            return prompt if isinstance(prompt, str) else []
        if isinstance(prompt[0], int):
            return prompt
        if len(prompt) > 1:
            fix = "one prompt per request; send several requests"
            reason = "UNSUPPORTED_FIELD"
            raise InvalidField("prompt", f"{len(prompt)} prompts", fix, reason=reason)
        return prompt[0]


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """``name`` is accepted; templates of this kind of model have no place for it."""

    model_config = ConfigDict(extra="allow")

    role: str = Field(min_length=1)
    content: str | list[TextPart] | None = None

    def plain(self) -> dict[str, str]:
        for name, value in (self.model_extra or {}).items():
            if value and name != "name":
                raise unsupported(f"messages.{name}", value)
        if isinstance(self.content, list):
            return {"role": self.role, "content": "".join(part.text for part in self.content)}
        return {"role": self.role, "content": self.content or ""}


class ChatBody(_GenerateBody):
    """``max_tokens`` defaults to all the room that the context leaves."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None

    def sampling(self) -> AskedSampling:
        newer = self.max_completion_tokens
        asked = self.max_tokens if newer is None else newer
        return self.asked(asked, 1 if self.logprobs else None)

    def chat(self) -> ChatPrompt:
        return ChatPrompt([message.plain() for message in self.messages])


Body = TypeVar("Body", bound=_GenerateBody)


def parse(kind: type[Body], raw: bytes) -> Body:
    """Read a JSON body; raises InvalidField naming the first field that is wrong."""
    try:
        body = kind.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(_field_names(first["loc"])) or "body"
        shown = "" if first["type"] == "json_invalid" else first["input"]
        raise InvalidField(field, shown, first["msg"]) from error
    body.refuse_unserved()
    return body


def _field_names(location: tuple[int | str, ...]) -> list[str]:
    """Pydantic also names the branch of a union, such as ``str`` or ``list[int]``."""
    parts = [str(part) for part in location]
    return [part for part in parts if part != "str" and part.replace("_", "").isalnum()]


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }
