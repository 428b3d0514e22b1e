"""``/tokenize`` and ``/detokenize``: there and back, with and without a chat template."""

from __future__ import annotations

from typing import Any

import aiohttp
from http_client import post

TEXT = "hello wörld"
CHAT = [{"role": "user", "content": TEXT}]


async def test_there_and_back(start_cluster: Any, http: aiohttp.ClientSession) -> None:
    cluster = await start_cluster()
    status, answer = await post(http, f"{cluster.url}/tokenize", {"prompt": TEXT})
    assert status == 200
    assert answer["count"] == len(answer["tokens"])
    assert (answer["max_model_len"], answer["token_strs"]) == (128, None)
    body = {"model": "tiny", "tokens": answer["tokens"]}
    assert await post(http, f"{cluster.url}/detokenize", body) == (200, {"prompt": TEXT})


async def test_a_chat_is_the_prompt_that_the_model_sees(
    start_cluster: Any, http: aiohttp.ClientSession
) -> None:
    cluster = await start_cluster()
    body = {"messages": CHAT, "return_token_strs": True}
    _, answer = await post(http, f"{cluster.url}/tokenize", body)
    assert answer["token_strs"][0] == "<|im_start|>"
    _, back = await post(http, f"{cluster.url}/detokenize", {"tokens": answer["tokens"]})
    # As everywhere, Jinja leaves out the newline that ends a template.
    assert back["prompt"] == f"<|im_start|>user\n{TEXT}<|im_end|>\n<|im_start|>assistant"


async def test_refusals(start_cluster: Any, http: aiohttp.ClientSession) -> None:
    cluster = await start_cluster()
    for path, body, param, expected in (
        ("tokenize", {}, "prompt", 400),
        ("tokenize", {"prompt": 5}, "prompt", 400),
        ("tokenize", {"prompt": "a", "nonsense": 1}, "nonsense", 400),
        ("tokenize", {"prompt": "a", "model": "other"}, "model", 404),
        ("detokenize", {}, "tokens", 400),
        ("detokenize", {"tokens": ["a"]}, "tokens.0", 400),
        ("detokenize", {"tokens": [300]}, "tokens", 400),
        ("detokenize", {"tokens": [5] * 129}, "tokens", 400),
    ):
        status, answer = await post(http, f"{cluster.url}/{path}", body)
        assert (status, answer["error"]["param"]) == (expected, param)
    assert await post(http, f"{cluster.url}/detokenize", {"tokens": []}) == (200, {"prompt": ""})
