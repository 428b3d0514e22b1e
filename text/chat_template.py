"""Chat messages to prompt text, by the Jinja template that comes with a model.

Covers: where Hugging Face folders keep the template, the globals that templates expect, how much
a template may do and write.
Does not cover: the sandbox (``text.template_bounds``), tokenizing the text (special tokens are in
it already), tools.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from core.errors import Incompatible, InvalidField
from text.template_bounds import BoundedEnvironment, TooMuchWork, counting, limited_to

# A chat of 1,000 messages takes about 20,000; this many take less than a second.
MAX_STEPS = 200_000
MAX_CHARACTERS = 16 * 1024 * 1024
TEMPLATE_TOO_LONG = "TEMPLATE_TOO_LONG"
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")

Message = Mapping[str, Any]


class ChatTemplate:
    """One compiled template. ``variables`` are the model's special tokens, e.g. ``bos_token``."""

    def __init__(
        self,
        source: str,
        variables: Mapping[str, str] | None = None,
        max_characters: int = MAX_CHARACTERS,
    ) -> None:
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise Incompatible(
                f"the model's chat template is not valid Jinja: {error}",
                reason="CHAT_TEMPLATE_INVALID",
            ) from error
        self._variables = dict(variables or {})
        self._max_characters = max_characters

    @classmethod
    def load(cls, folder: str | Path) -> ChatTemplate | None:
        """The template of a model folder, or None if the model has none."""
        config = _read_config(Path(folder) / "tokenizer_config.json")
        file = Path(folder) / "chat_template.jinja"
        source = file.read_text(encoding="utf-8") if file.is_file() else _inline(config)
        return cls(source, _special_tokens(config)) if source else None

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        max_steps: int = MAX_STEPS,
    ) -> str:
        """Prompt text; raises InvalidField for messages that the template does not take.

        Its reason is TEMPLATE_TOO_LONG if more than ``max_steps`` steps would be needed.
        """
        count = f"{len(messages)} messages"
        try:
            with limited_to(max_steps):
                return self._join(self._generate(messages, add_generation_prompt))
        except InvalidField:
            raise
        except TooMuchWork as error:
            fix = f"the chat template does too much with them: {error}"
            raise InvalidField("messages", count, fix, reason=TEMPLATE_TOO_LONG) from error
        # A template is a foreign program: it can fail in any way that an expression can.
        except Exception as error:
            fix = f"the chat template refused them: {error or type(error).__name__}"
            raise InvalidField("messages", count, fix) from error

    def _generate(self, messages: Sequence[Message], add_generation_prompt: bool) -> Iterator[str]:
        return self._template.generate(
            messages=list(messages),
            add_generation_prompt=add_generation_prompt,
            tools=None,
            **self._variables,
        )

    def _join(self, pieces: Iterator[str]) -> str:
        parts: list[str] = []
        total = 0
        for piece in pieces:
            total += len(piece)
            if total > self._max_characters:
                limit = f"must give at most {self._max_characters} characters of prompt"
                raise InvalidField("messages", f"{total} characters or more", limit)
            parts.append(piece)
        return "".join(parts)


class _Generation(Extension):
    """``{% generation %}`` marks what the model said, for training; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> BoundedEnvironment:
    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    environment.filters["tojson"] = counting(_to_json)
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    loaded = json.loads(path.read_text(encoding="utf-8"))
    return loaded if isinstance(loaded, dict) else {}


def _inline(config: Mapping[str, Any]) -> str | None:
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    found = {name: config.get(name) for name in _SPECIAL_TOKENS}
    plain = {
        name: value.get("content") if isinstance(value, dict) else value
        for name, value in found.items()
    }
    return {name: value for name, value in plain.items() if isinstance(value, str)}
