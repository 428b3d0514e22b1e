"""Traffic by description: a rate, lengths, shared system prompts, chats of several turns.

    rate: 3.3                      # chats (requests, if they have one turn) per second
    duration: 300s
    prompts:                       # what a user says in one turn
      - {share: 0.8, tokens: 150-250}
      - {share: 0.2, tokens: 1300-1700}
    answers: 80-120
    arrivals: poisson              # or constant
    system_prompts: {tokens: 500, count: 4}
    turns: 1-5                     # each prompt holds the whole chat so far
    pause: 10s                     # between an answer's end and the next turn, on average
    seed: 0

Does not cover: real traces (``tuner.load.traces``).
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from core.errors import InvalidField
from core.yaml_text import parse_yaml
from tuner.load.arrivals import MAX_REQUESTS, ArrivalKind, draw_arrivals
from tuner.load.quantities import parse_range, parse_seconds
from tuner.load.workload import PromptPart, TokenRange, Workload
from tuner.simulate.requests import RequestTrace

# Prompts are shared in pieces of so many tokens.
_PART = 16
# A chat's next turn comes after the answer: so long a token takes, roughly.
_SECONDS_PER_TOKEN = 0.02
_LONGEST_PROMPT = 10_000_000
_MOST_TURNS = 10_000
_YEAR_S = 366 * 86_400.0
# What pydantic says of these in the words of Python.
_FIXES = {
    "tuple_type": "must be a list, such as [{share: 0.8, tokens: 150-250}, …]",
    "model_type": "must hold fields, such as {tokens: 500}",
}
# Above those are token ids of what nobody shares (``tuner.simulate.requests``).
_MOST_PARTS = 1 << 30


def _range(value: object) -> TokenRange:
    if isinstance(value, TokenRange):
        return value
    fix = f"must be a number from 1 to {_LONGEST_PROMPT}, or a range such as 150-250"
    # Not of lists: by aliases a few lines of YAML can stand for gigabytes of text.
    if not isinstance(value, str | int):
        raise ValueError(fix)
    try:
        stated = parse_range("tokens", str(value))
    except InvalidField:
        raise ValueError(fix) from None
    if stated.high > _LONGEST_PROMPT:
        raise ValueError(fix)
    return stated


def _seconds(value: object) -> float:
    fix = "must be a time above zero and at most a year, such as 300s, 5m or 0.5"
    if not isinstance(value, str | int | float):
        raise ValueError(fix)
    try:
        stated = parse_seconds("duration", str(value))
    except InvalidField:
        raise ValueError(fix) from None
    if stated > _YEAR_S:
        raise ValueError(fix)
    return stated


def _turns(value: object) -> TokenRange:
    stated = _range(value)
    if stated.high > _MOST_TURNS:
        raise ValueError(f"a chat has at most {_MOST_TURNS} turns")
    return stated


Range = Annotated[TokenRange, BeforeValidator(_range)]
Turns = Annotated[TokenRange, BeforeValidator(_turns)]
Seconds = Annotated[float, BeforeValidator(_seconds)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PromptMix(_Section):
    """``share`` (0 to 1) of all user turns have a length in ``tokens``."""

    share: float = Field(default=1.0, gt=0, le=1)
    tokens: Range


class SystemPrompts(_Section):
    """Every chat begins with one of ``count`` texts of ``tokens`` tokens each."""

    tokens: int = Field(ge=1, le=_LONGEST_PROMPT)
    count: int = Field(default=1, ge=1, le=1_000_000)


class Description(_Section):
    """See the module's header."""

    rate: float = Field(gt=0, allow_inf_nan=False)
    duration: Seconds
    prompts: tuple[PromptMix, ...] = Field(min_length=1)
    answers: Range
    arrivals: ArrivalKind = ArrivalKind.POISSON
    system_prompts: SystemPrompts | None = None
    turns: Turns = TokenRange(1, 1)
    pause: Seconds = 10.0
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _shares_add_up(self) -> Description:
        total = sum(part.share for part in self.prompts)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares of prompts add up to {total:g}; they must to 1")
        return self


def read_description(path: Path) -> Description:
    """Raises ``InvalidField`` naming the entry."""
    try:
        content: Any = parse_yaml(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise InvalidField("TRACE", str(path), "is no text file") from None
    except OSError as error:
        raise InvalidField("TRACE", str(path), f"can't be read: {error}") from None
    except ValueError as error:
        raise InvalidField("TRACE", str(path), str(error)) from None
    if not isinstance(content, Mapping):
        fix = "must describe traffic: rate, duration, prompts, answers (docs/TUNING.md)"
        raise InvalidField("TRACE", str(path), fix)
    try:
        return Description.model_validate(content)
    except ValidationError as error:
        # A name that is misspelt is told rather than the one that is missing by that.
        first, *others = error.errors()
        if first["type"] == "missing":
            first = next((one for one in others if one["type"] == "extra_forbidden"), first)
        entry = ".".join(map(str, first["loc"])) or path.name
        value = "…" if isinstance(first["input"], Mapping) else first["input"]
        if first["type"] == "extra_forbidden":
            raise InvalidField(entry, value, _unknown(str(first["loc"][-1]))) from None
        message = _FIXES.get(first["type"], first["msg"].removeprefix("Value error, "))
        raise InvalidField(entry, value, message[0].lower() + message[1:]) from None


def _unknown(name: str) -> str:
    parts = (Description, PromptMix, SystemPrompts)
    known = [field for part in parts for field in part.model_fields]
    close = get_close_matches(name, known, n=1)
    return (
        f"is no field of traffic; did you mean {close[0]}?" if close else "is no field of traffic"
    )


def draw_requests(description: Description, name: str, seed: int | None = None) -> RequestTrace:
    """The requests of all chats, by arrival; ``seed`` instead of the description's own.

    Raises ``InvalidField`` if none arrives in time, or more than anybody could hold.
    """
    seed = description.seed if seed is None else seed
    turns = (description.turns.low + description.turns.high) / 2
    if description.rate * description.duration * turns > MAX_REQUESTS:
        fix = f"makes more than {MAX_REQUESTS} requests; lower it, or the duration"
        raise InvalidField("rate", description.rate, fix)
    generator = np.random.default_rng([seed, 0])
    starts = draw_arrivals(description.arrivals, description.rate, description.duration, generator)
    if not len(starts):
        fix = f"with seed {seed} no request arrives in {description.duration:g} s; raise it"
        raise InvalidField("rate", description.rate, fix)
    chats = _Chats(description, np.random.default_rng([seed, 1]))
    requests = sorted((r for start in starts.tolist() for r in chats.draw(start)), key=_arrival)
    first = requests[0][0]
    shared = [ids for *_, ids in requests] if chats.share_anything else []
    return RequestTrace(
        name=name,
        arrivals_s=np.array([at - first for at, *_ in requests], dtype=np.float64),
        prompt_tokens=np.array([prompt for _, prompt, _, _ in requests], dtype=np.int32),
        output_tokens=np.array([answer for _, _, answer, _ in requests], dtype=np.int32),
        shared=shared,
        part_tokens=_PART,
    )


_Ids = np.ndarray[tuple[int], np.dtype[np.int32]]
_Request = tuple[float, int, int, _Ids]
_NOTHING: _Ids = np.empty(0, dtype=np.int32)


def _arrival(request: _Request) -> float:
    return request[0]


class _Chats:
    """Draws one chat after the other; ids of shared parts are given out in order."""

    def __init__(self, description: Description, generator: np.random.Generator) -> None:
        self._description = description
        self._generator = generator
        parts = tuple(PromptPart(part.share, part.tokens) for part in description.prompts)
        self._workload = Workload(parts, description.answers)
        system = description.system_prompts
        self._system_tokens = system.tokens if system else 0
        self._system_ids = -(-self._system_tokens // _PART)
        self._next_id = self._system_ids * (system.count if system else 0)

    @property
    def share_anything(self) -> bool:
        return self._system_tokens > 0 or self._description.turns.high > 1

    def draw(self, start: float) -> list[_Request]:
        description, generator = self._description, self._generator
        turns = int(generator.integers(description.turns.low, description.turns.high + 1))
        prompts, answers = self._workload.draw(turns, generator)
        said = np.cumsum(prompts) + np.concatenate([[0], np.cumsum(answers)[:-1]])
        lengths = self._system_tokens + said
        if lengths[-1] > _LONGEST_PROMPT:
            fix = f"a chat has {lengths[-1]} tokens, more than {_LONGEST_PROMPT}; make it shorter"
            raise InvalidField("turns", turns, fix)
        pauses = generator.exponential(description.pause, turns) + answers * _SECONDS_PER_TOKEN
        times = start + np.concatenate([[0.0], np.cumsum(pauses)[:-1]])
        ids = self._ids_of(int(lengths[-1])) if self.share_anything else _NOTHING
        return [
            (float(at), int(length), int(answer), ids[: -(-int(length) // _PART)])
            for at, length, answer in zip(times, lengths, answers, strict=True)
        ]

    def _ids_of(self, length: int) -> _Ids:
        """The chat as one text: its system prompt's parts, then parts of its own."""
        own = -(-length // _PART) - self._system_ids
        first, self._next_id = self._next_id, self._next_id + max(0, own)
        if self._next_id > _MOST_PARTS:
            fix = f"all chats are more than {_MOST_PARTS * _PART} tokens; make it shorter"
            raise InvalidField("duration", self._description.duration, fix)
        system = self._description.system_prompts
        chosen = int(self._generator.integers(system.count)) * self._system_ids if system else 0
        return np.concatenate(
            [
                np.arange(chosen, chosen + self._system_ids, dtype=np.int32),
                np.arange(first, self._next_id, dtype=np.int32),
            ]
        )
