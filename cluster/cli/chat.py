"""`crossdock chat`: talk to the cluster through its OpenAI-compatible door."""

from __future__ import annotations

import http.client
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from cluster.cli.http_call import explain, open_connection
from cluster.cli.identity import door_tls
from cluster.cli.options import ApiKeyOption, ClusterNameOption, http_url
from cluster.running import does_it_run
from core.errors import InvalidField, Unavailable

Messages = list[dict[str, str]]

_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Server:
    url: str
    api_key: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        key = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        return {"Content-Type": "application/json", **key}


def chat(
    message: Annotated[str | None, typer.Argument(help="Without it: a conversation.")] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Else: the cluster that `up` started, or the default port of `serve`."),
    ] = None,
    name: ClusterNameOption = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1)] = 512,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0)] = 0.7,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Stream the answer to MESSAGE, or chat line by line until Ctrl-D."""
    url = url or http_url(name)
    sampling: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature}
    if seed is not None:
        sampling["seed"] = seed
    server = Server(url, api_key)
    model = served_model(server)
    messages: Messages = [{"role": "system", "content": system}] if system else []
    if message is not None:
        _turn(server, model, messages, message, sampling)
        return
    while (line := _read_line()) is not None:
        if line.strip():
            _turn(server, model, messages, line, sampling)


def _turn(
    server: Server, model: str, messages: Messages, text: str, sampling: dict[str, Any]
) -> None:
    """One question and its answer, both added to ``messages``."""
    messages.append({"role": "user", "content": text})
    parts: list[str] = []
    for piece in stream_chat(server, model, messages, sampling):
        print(piece, end="", flush=True)
        parts.append(piece)
    print()
    messages.append({"role": "assistant", "content": "".join(parts)})


def _read_line() -> str | None:
    try:
        return input("> " if sys.stdin.isatty() else "")
    except EOFError:
        return None


def stream_chat(
    server: Server, model: str, messages: Messages, sampling: dict[str, Any]
) -> Iterator[str]:
    """Pieces of the answer as they come."""
    body = {"model": model, "messages": messages, "stream": True, **sampling}
    for event in post_events(server, "/v1/chat/completions", body):
        for choice in event.get("choices", []):
            if piece := choice.get("delta", {}).get("content"):
                yield piece


def served_model(server: Server) -> str:
    """The name of the model that it serves."""
    with _answer(server, "GET", "/v1/models", None) as response:
        return str(json.loads(response.read())["data"][0]["id"])


def post_events(server: Server, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """JSON events of a streamed (SSE) answer. Raises ``Unavailable`` if the server refuses."""
    with _answer(server, "POST", path, body) as response:
        for raw in response:
            line = raw.decode("utf-8").strip()
            if not line.startswith("data:"):
                continue
            data = line.removeprefix("data:").strip()
            if data == "[DONE]":
                return
            event = json.loads(data)
            if "error" in event:
                raise _refused(str(event["error"].get("message", event["error"])))
            yield event


@contextmanager
def _answer(
    server: Server, method: str, path: str, body: dict[str, Any] | None
) -> Iterator[http.client.HTTPResponse]:
    """An answer with status 200; anything else is raised as ``Unavailable``."""
    address = urlsplit(server.url)
    if not address.hostname or address.scheme not in ("http", "https"):
        fix = "must look like http://127.0.0.1:8000, or begin with https://"
        raise InvalidField("--url", server.url, fix)
    tls = door_tls(address.netloc, wanted=True) if address.scheme == "https" else None
    connection = open_connection(address.netloc, tls, _TIMEOUT_S)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, path, content, server.headers)
        response = connection.getresponse()
        if response.status != 200:
            raise _refused(_error_text(response))
        yield response
    except (OSError, http.client.HTTPException) as error:
        message = f"no answer from {server.url} ({explain(error)}): {does_it_run()}"
        raise Unavailable(message, reason="NO_ANSWER") from None
    finally:
        connection.close()


def _error_text(response: http.client.HTTPResponse) -> str:
    text = response.read().decode("utf-8", "replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status}: {text[:200]}"


def _refused(message: str) -> Unavailable:
    return Unavailable(message, reason="REFUSED")
