"""Chats of several turns with shared system prompts, on a real cluster: policies in turns.

    PYTHONPATH=.:protos python tests/benchmarks/bench_chats.py MODEL_FOLDER
        [--prefill 2] [--decode 2] [--users 6] [--chats 24] [--turns 5] [--rounds 2]

Each round starts a cluster of its own for each policy, with the same chats: users send a message,
read the answer, think, and send the next one with all that was said before. TTFT is taken at the
client, from sending to the first text. Prints one JSON object: for each policy the TTFT over all
rounds, and how far the first policy's p50 is below the second's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "system"))

from served_cluster import served

from text.tokenizer import Tokenizer
from tuner.load.vocabulary import ordinary_ids

POLICIES = ("kv_aware", "round_robin")


@dataclass(frozen=True, slots=True)
class Chat:
    """``think_s``: before each message."""

    system: str
    messages: tuple[str, ...]
    think_s: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """``number`` within its chat; ``itl_s``: mean over the answer."""

    number: int
    ttft_s: float
    itl_s: float
    prompt_tokens: int
    cached_tokens: int


class Writer:
    """Texts of about so many tokens."""

    def __init__(self, model: Path, seed: int) -> None:
        self._tokenizer = Tokenizer.load(model)
        self._words = ordinary_ids(self._tokenizer)
        self.random = np.random.default_rng(seed)

    def text(self, tokens: int) -> str:
        return self._tokenizer.decode(self.random.choice(self._words, tokens).tolist()).strip()


def write_chats(options: argparse.Namespace, seed: int) -> list[Chat]:
    """All of a round. A few system prompts have most of the chats, as applications have users."""
    writer = Writer(options.model, seed)
    systems = [writer.text(options.system_tokens) for _ in range(options.systems)]
    popularity = 1 / np.arange(1, options.systems + 1)
    chosen = writer.random.choice(options.systems, options.chats, p=popularity / popularity.sum())
    return [
        Chat(
            systems[number],
            tuple(writer.text(options.message_tokens) for _ in range(options.turns)),
            tuple(writer.random.exponential(options.think_s, options.turns).tolist()),
        )
        for number in chosen
    ]


async def talk(http: aiohttp.ClientSession, chat: Chat, answer_tokens: int) -> list[Turn]:
    said = [{"role": "system", "content": chat.system}]
    turns = []
    for number, (message, think_s) in enumerate(zip(chat.messages, chat.think_s, strict=True)):
        await asyncio.sleep(think_s)
        said.append({"role": "user", "content": message})
        answer, turn = await ask(http, said, number, answer_tokens)
        said.append({"role": "assistant", "content": answer})
        turns.append(turn)
    return turns


async def ask(
    http: aiohttp.ClientSession, said: list[dict[str, str]], number: int, answer_tokens: int
) -> tuple[str, Turn]:
    body = {
        "messages": said,
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0,
        "max_tokens": answer_tokens,
        "ignore_eos": True,
    }
    sent = time.perf_counter()
    texts: list[str] = []
    moments: list[float] = []
    usage: dict[str, Any] = {}
    async with http.post("/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[len(b"data: ") :])
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                if text := choice["delta"].get("content"):
                    texts.append(text)
                    moments.append(time.perf_counter())
    gaps = max(1, usage["completion_tokens"] - 1)
    return "".join(texts), Turn(
        number,
        moments[0] - sent,
        (moments[-1] - moments[0]) / gaps,
        usage["prompt_tokens"],
        usage["prompt_tokens_details"]["cached_tokens"],
    )


async def hold_chats(url: str, chats: list[Chat], options: argparse.Namespace) -> list[Turn]:
    """So many users at a time, each with one chat after the other."""
    waiting, turns = deque(chats), []

    async def user(http: aiohttp.ClientSession) -> None:
        while waiting:
            turns.extend(await talk(http, waiting.popleft(), options.answer_tokens))

    async with aiohttp.ClientSession(url) as http, asyncio.TaskGroup() as group:
        for _ in range(options.users):
            group.create_task(user(http))
    return turns


def run(options: argparse.Namespace, policy: str, chats: list[Chat]) -> list[Turn]:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "cluster.yaml"
        config.write_text(yaml.safe_dump({"router": {"policy": policy}}), encoding="utf-8")
        rest = ("--dtype", options.dtype, "--config", str(config))
        with served(options.model, options.prefill, options.decode, *rest) as cluster:
            warm_up = write_chats(argparse.Namespace(**vars(options) | {"chats": 4}), seed=10_000)
            asyncio.run(hold_chats(cluster.http_url, warm_up, options))
            return asyncio.run(hold_chats(cluster.http_url, chats, options))


def report(turns: list[Turn], last: int) -> dict[str, object]:
    ttft = np.array([turn.ttft_s for turn in turns]) * 1000
    later = [turn.ttft_s * 1000 for turn in turns if turn.number]
    prompt = sum(turn.prompt_tokens for turn in turns)
    return {
        "turns": len(turns),
        **{f"ttft_p{q}_ms": round(float(np.percentile(ttft, q)), 1) for q in (50, 90, 99)},
        "ttft_mean_ms": round(float(ttft.mean()), 1),
        "ttft_p50_ms_first_turn": median_ms([t.ttft_s for t in turns if not t.number]),
        "ttft_p50_ms_later_turns": round(float(np.median(later)), 1) if later else None,
        "ttft_p50_ms_last_turn": median_ms([t.ttft_s for t in turns if t.number == last]),
        "itl_mean_ms": round(1000 * float(np.mean([t.itl_s for t in turns])), 1),
        "prompt_tokens": prompt,
        "cached_share": round(sum(turn.cached_tokens for turn in turns) / prompt, 3),
    }


def median_ms(seconds: list[float]) -> float:
    return round(1000 * float(np.median(seconds)), 1)


def main() -> int:
    options = parse_arguments()
    turns: dict[str, list[Turn]] = {policy: [] for policy in options.policies}
    rounds = []
    for number in range(options.rounds):
        chats = write_chats(options, seed=number)
        for policy in options.policies:
            got = run(options, policy, chats)
            turns[policy] += got
            rounds.append({"policy": policy, "ttft_p50_ms": median_ms([t.ttft_s for t in got])})
            print(json.dumps(rounds[-1]), file=sys.stderr, flush=True)
    told = {policy: report(got, options.turns - 1) for policy, got in turns.items()}
    result = {"settings": settings(options), "rounds": rounds, **told}
    if len(options.policies) == 2:
        ours, others = (float(np.median([t.ttft_s for t in got])) for got in turns.values())
        result["ttft_p50_below"] = f"{1 - ours / others:.1%}"
    print(json.dumps(result, indent=2))
    return 0


def settings(options: argparse.Namespace) -> dict[str, object]:
    return {name: value for name, value in vars(options).items() if name != "model"}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", type=Path)
    add("--dtype", default="bfloat16")
    add("--prefill", type=int, default=2)
    add("--decode", type=int, default=2)
    add("--policies", nargs="+", default=list(POLICIES))
    add("--rounds", type=int, default=2)
    add("--users", type=int, default=6, help="who chat at a time")
    add("--chats", type=int, default=24, help="in each round")
    add("--turns", type=int, default=5)
    add("--systems", type=int, default=6, help="different system prompts")
    add("--system-tokens", type=int, default=400)
    add("--message-tokens", type=int, default=60)
    add("--answer-tokens", type=int, default=40)
    add("--think-s", type=float, default=3.0, help="on average, before each message")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
