"""Clients that ask again and again while a test changes the cluster under them."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Sequence
from types import TracebackType

from served_cluster import ServedCluster

PROMPTS = [list(range(1 + 7 * i, 40 + 31 * i)) for i in range(6)]
MAX_TOKENS = 96


class SteadyLoad:
    """While entered, ``clients`` gRPC clients and one HTTP client stream greedy answers.

    At its end no request may have failed, and every answer must be the one that the cluster gave
    before anything was changed.
    """

    def __init__(self, cluster: ServedCluster, clients: int = 3) -> None:
        self._cluster = cluster
        self._expected = cluster.answers(PROMPTS, MAX_TOKENS)
        self._text = self._over_http(PROMPTS[0])
        self._stopped = threading.Event()
        self._wrong: list[str] = []
        self._answers = 0
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._ask_over_grpc, args=(number,))
            for number in range(clients)
        ]
        self._threads.append(threading.Thread(target=self._ask_over_http))

    def __enter__(self) -> SteadyLoad:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        if kind is None:
            assert not self._wrong, self._wrong[:5]
            assert self._answers > len(self._threads)

    def answered(self, count: int) -> None:
        """Waits for so many more answers. The test's timeout bounds it."""
        goal = self._answers + count
        while self._answers < goal and not self._wrong:
            self._stopped.wait(0.01)

    def _ask_over_grpc(self, number: int) -> None:
        turn = number
        while not self._stopped.is_set():
            index = turn % len(PROMPTS)
            try:
                tokens = self._cluster.answer(PROMPTS[index], MAX_TOKENS)
            except Exception as error:
                self._note(f"request failed: {error}")
                continue
            self._note("" if tokens == self._expected[index] else f"{tokens} for prompt {index}")
            turn += 1

    def _ask_over_http(self) -> None:
        while not self._stopped.is_set():
            try:
                text = self._over_http(PROMPTS[0])
            except Exception as error:
                self._note(f"HTTP request failed: {error}")
                continue
            self._note("" if text == self._text else f"{text!r} over HTTP")

    def _over_http(self, prompt: Sequence[int]) -> str:
        body = {
            "model": "tiny",
            "prompt": list(prompt),
            "max_tokens": MAX_TOKENS,
            "temperature": 0,
            "stream": True,
        }
        request = urllib.request.Request(
            f"{self._cluster.http_url}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        text = ""
        with urllib.request.urlopen(request, timeout=240) as response:
            for line in response:
                data = line.decode().removeprefix("data: ").strip()
                if data.startswith("{"):
                    event = json.loads(data)
                    assert "error" not in event, event
                    text += "".join(choice["text"] for choice in event["choices"])
        return text

    def _note(self, wrong: str) -> None:
        with self._lock:
            self._answers += 1
            if wrong:
                self._wrong.append(wrong)
