"""Thirty prompts of token ids: short and long ones, chats, shared prefixes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from text.chat_template import ChatTemplate
from text.tokenizer import Tokenizer

ANSWER_TOKENS = 24

_SENTENCES = (
    "The river carried the boats past the old mill. ",
    "Every ledger in the archive was written by hand. ",
    "A cache remembers what was asked before. ",
    "In 1969 two people walked on the Moon. ",
    "def add(a, b):\n    return a + b\n",
    "Wie spät ist es in Tōkyō? 7:45! ",
)
_SHORT = (
    "Once upon a time",
    "The capital of France is",
    "1 + 1 =",
    "import numpy as np\n",
    "Roses are red,",
    "¿Dónde está la biblioteca?",
    "The three laws of robotics are",
    "Water boils at",
)
_QUESTIONS = (
    "Name three fruits.",
    "Why is the sky blue?",
    "Write a haiku about trains.",
    "What is 12 times 12?",
    "Who wrote Hamlet?",
    "Translate 'good morning' to Spanish.",
)
_SYSTEM = "You are the assistant of a shipping company. " + "".join(_SENTENCES[:4]) * 6


@dataclass(frozen=True)
class Prompts:
    """``at_once`` are sent together, ``one_by_one`` after each other."""

    at_once: list[list[int]]
    one_by_one: list[list[int]]

    @property
    def all(self) -> list[list[int]]:
        return self.at_once + self.one_by_one


def make_prompts(model: Path) -> Prompts:
    """16 to send at once (short, chats, one long), 14 one by one (long, shared, multi-turn)."""
    tokenizer = Tokenizer.load(model)
    template = ChatTemplate.load(model)

    def plain(text: str) -> list[int]:
        return [int(t) for t in tokenizer.encode(text)]

    def chat(*turns: str) -> list[int]:
        roles = ["user", "assistant"] * len(turns)
        messages = [{"role": "system", "content": _SYSTEM}]
        messages += [{"role": r, "content": t} for r, t in zip(roles, turns, strict=False)]
        return [int(t) for t in tokenizer.encode(template.render(messages))]

    story = "".join(_SENTENCES) * 40
    long = plain(story)
    at_once = [plain(text) for text in _SHORT]
    at_once += [chat(question) for question in _QUESTIONS]
    at_once += [long[:1600], long[:700]]
    one_by_one = [
        chat("Name a river.", "The Danube.", "And its length?"),
        chat("Name a river.", "The Danube.", "And its length?", "2,850 km.", "In miles?"),
        chat("Count to three.", "1, 2, 3", "Now backwards."),
        chat("Hi!", "Hello! How can I help?", "Where is my parcel 4711?"),
        long[:1550],
        long[:1600],
        [*long[:800], *plain("But then everything changed:")],
        [*long[:800], *plain("And nothing ever changed:")],
        long[:512],
        long[:513],
        long[:16],
        long[:1],
        long[100:1700],
        plain("A B C D E F G"),
    ]
    return Prompts(at_once, one_by_one)
