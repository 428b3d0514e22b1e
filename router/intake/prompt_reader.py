"""What a client sends as a prompt, to token ids: chat template, tokenizer, and back.

What takes long runs in a thread, so that streams get their tokens meanwhile.
Does not cover: sampling fields and the room for an answer (``router.intake.validation``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from core.block_hash import TokenArray
from core.errors import Incompatible, InvalidField
from router.intake.model_info import ModelInfo
from router.intake.validation import checked_tokens
from text.chat_template import TEMPLATE_TOO_LONG, ChatTemplate, Message
from text.tokenizer import Tokenizer

# A longer text takes more than a few milliseconds.
ENCODE_IN_THREAD_FROM = 8_192
# So do more steps of a chat template.
RENDER_IN_THREAD_FROM = 2_000


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages as dicts with ``role`` and ``content``."""

    messages: Sequence[Message]
    add_generation_prompt: bool = True


PromptInput = str | Sequence[int] | ChatPrompt


class PromptReader:
    """Reads prompts for one model. ``chat_template`` None: the model has none."""

    def __init__(
        self, model: ModelInfo, tokenizer: Tokenizer, chat_template: ChatTemplate | None
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._chat_template = chat_template

    async def tokens(
        self,
        prompt: PromptInput,
        *,
        add_special_tokens: bool | None = None,
        field: str = "prompt",
    ) -> TokenArray:
        """int32 [n], n > 0; raises InvalidField for ``field``.

        Special tokens are added to text, but not to chats: templates write them themselves.
        """
        if isinstance(prompt, ChatPrompt):
            text = await self._render(prompt)
            encoded = await self._encode(text, bool(add_special_tokens), field)
        elif isinstance(prompt, str):
            encoded = await self._encode(prompt, add_special_tokens is not False, field)
        else:
            return checked_tokens(prompt, self._model.vocab_size, field)
        return checked_tokens(encoded, self._model.vocab_size, field)

    async def text(self, tokens: Sequence[int]) -> str:
        """Token ids to text, special tokens included; raises InvalidField."""
        limit = self._model.max_model_len
        if len(tokens) > limit:
            raise InvalidField("tokens", f"{len(tokens)} tokens", f"at most {limit}")
        if not len(tokens):
            return ""
        ids = checked_tokens(tokens, self._model.vocab_size, field="tokens").tolist()
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    async def _render(self, prompt: ChatPrompt) -> str:
        template = self._chat_template
        if template is None:
            raise Incompatible(
                f"model {self._model.name} has no chat template; send a plain prompt",
                reason="NO_CHAT_TEMPLATE",
            )

        def render(**limit: int) -> str:
            return template.render(
                prompt.messages, add_generation_prompt=prompt.add_generation_prompt, **limit
            )

        try:
            return render(max_steps=RENDER_IN_THREAD_FROM)
        except InvalidField as error:
            if error.reason != TEMPLATE_TOO_LONG:
                raise
        return await asyncio.to_thread(render)

    async def _encode(self, text: str, add_special_tokens: bool, field: str) -> TokenArray:
        # Not even the longest tokens could bring it into the context: don't tokenize megabytes.
        limit = self._model.max_model_len * self._tokenizer.longest_token
        if len(text) > limit:
            fix = f"can't fit into {self._model.max_model_len} tokens; send a shorter prompt"
            raise InvalidField(field, f"{len(text)} characters", fix)
        if len(text) < ENCODE_IN_THREAD_FROM:
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(
            self._tokenizer.encode, text, add_special_tokens=add_special_tokens
        )
