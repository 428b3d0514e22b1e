"""Tokenizers and servers that the tests of the load generator share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import tokenizers
from aiohttp import web
from aiohttp.test_utils import TestServer
from openai_events import Handler, StartServer
from tokenizers import decoders, models, pre_tokenizers

WORDS = [f" {a}{b}{c}" for a in "bdfgklmn" for b in "aeiou" for c in "bdgklmnprst"]


def make_tokenizer(folder: Path, words: list[str]) -> Path:
    """Bytes, ``words`` and one special token, cut at spaces like GPT-2's."""
    folder.mkdir()
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    merges: list[tuple[str, str]] = []
    for word in words:
        spelled = word.replace(" ", "Ġ")
        for end in range(2, len(spelled) + 1):
            if spelled[:end] not in vocabulary:
                vocabulary[spelled[:end]] = len(vocabulary)
                merges.append((spelled[: end - 1], spelled[end - 1]))
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def word_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizers") / "words", WORDS)


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizers") / "bytes", [])


@pytest.fixture
async def openai_server() -> AsyncIterator[StartServer]:
    """Starts a server whose completions are answered by a handler; gives its URL."""
    servers: list[TestServer] = []

    async def models_list(request: web.Request) -> web.Response:
        entry = {"id": "tiny", "object": "model", "max_model_len": 512}
        return web.json_response({"object": "list", "data": [entry]})

    async def start(handler: Handler) -> str:
        app = web.Application()
        app.router.add_get("/v1/models", models_list)
        app.router.add_post("/v1/completions", handler)
        app.router.add_post("/v1/chat/completions", handler)
        server = TestServer(app)
        await server.start_server()
        servers.append(server)
        return str(server.make_url("")).rstrip("/")

    yield start
    for server in servers:
        await server.close()
