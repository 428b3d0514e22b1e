"""``/tokenize`` and ``/detokenize``, in the shapes of vLLM."""

from __future__ import annotations

from typing import Any

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from core.errors import InvalidField
from router.doors.http_bodies import read_body
from router.doors.openai_bodies import ChatMessage, Flag, Integer, parse
from router.intake.model_info import ModelInfo
from router.intake.prompt_reader import ChatPrompt, PromptReader
from text.tokenizer import Tokenizer


class TokenizeBody(BaseModel):
    """Either ``prompt`` or ``messages``; special tokens are added to prompts by default."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1)
    add_special_tokens: Flag | None = None
    add_generation_prompt: Flag = True
    return_token_strs: Flag = False

    def content(self) -> str | ChatPrompt:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidField("prompt", self.prompt, "give either prompt or messages")
        if self.messages is None:
            return self.prompt or ""
        return ChatPrompt([m.plain() for m in self.messages], self.add_generation_prompt)


class DetokenizeBody(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    tokens: list[Integer]


class TokenizeDoor:
    def __init__(self, model: ModelInfo, tokenizer: Tokenizer, prompts: PromptReader) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._prompts = prompts

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/tokenize", self._tokenize),
            web.post("/detokenize", self._detokenize),
        ]

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = parse(TokenizeBody, await read_body(request))
        self._check_model(body.model)
        tokens = await self._prompts.tokens(
            body.content(), add_special_tokens=body.add_special_tokens
        )
        answer: dict[str, Any] = {
            "count": len(tokens),
            "max_model_len": self._model.max_model_len,
            "tokens": tokens.tolist(),
            "token_strs": None,
        }
        if body.return_token_strs:
            answer["token_strs"] = [self._tokenizer.piece(token) for token in answer["tokens"]]
        return web.json_response(answer)

    async def _detokenize(self, request: web.Request) -> web.Response:
        body = parse(DetokenizeBody, await read_body(request))
        self._check_model(body.model)
        return web.json_response({"prompt": await self._prompts.text(body.tokens)})

    def _check_model(self, name: str | None) -> None:
        if name is not None:
            self._model.check_name(name)
