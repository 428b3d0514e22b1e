"""Any OpenAI-compatible server over HTTP: ``/v1/completions`` or ``/v1/chat/completions``.

Every request is streamed and asks for ``usage``. Nothing is retried: a generator that retries
would hide failures.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from core.errors import CrossdockError, Incompatible, InvalidField, Unavailable
from crossdock.client.tls import Tls
from tuner.load.openai_stream import OpenAIStream, error_message
from tuner.load.prompts import Prompt
from tuner.load.records import CONNECT_FAILED, DISCONNECTED, MALFORMED_STREAM
from tuner.load.target import AnswerLog, ServedModel

# aiohttp's own limits would queue requests or cut them short; the runner has the only ones.
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=None)
_REFUSED_FIELDS = {"HTTP_400", "HTTP_422"}


class Endpoint(StrEnum):
    """What ``--endpoint`` takes."""

    COMPLETIONS = "completions"
    CHAT = "chat"


@dataclass(frozen=True, slots=True)
class OpenAIOptions:
    """``url``: http(s)://host:port, with or without ``/v1``. ``model`` None: the first one that the
    server lists. ``ignore_eos``: ask for answers of exactly the wanted length. ``count_hidden``:
    ask for a usage with each piece, and count pieces without text as well. ``tls``: whom to
    trust over https, None: the authorities that everybody knows."""

    url: str
    endpoint: Endpoint = Endpoint.COMPLETIONS
    model: str | None = None
    ignore_eos: bool = True
    api_key: str | None = None
    count_hidden: bool = False
    tls: Tls | None = None


class OpenAITarget:
    """Made inside a running event loop; must be closed."""

    def __init__(self, options: OpenAIOptions) -> None:
        self._options = options
        self._base = options.url.rstrip("/").removesuffix("/v1")
        path = "/v1/completions" if options.endpoint is Endpoint.COMPLETIONS else (
            "/v1/chat/completions"
        )  # fmt: skip
        self._url = self._base + path
        self._server_name = (options.tls.server_name or None) if options.tls else None
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if options.api_key:
            headers["Authorization"] = f"Bearer {options.api_key}"
        self._session = aiohttp.ClientSession(
            connector=_connector(options.tls),
            timeout=_NO_TIMEOUT,
            headers=headers,
        )

    async def describe(self) -> ServedModel:
        """Asks ``/v1/models``; a model named in the options need not be in the list."""
        listed = await self._models()
        wanted = self._options.model or next(iter(listed), None)
        if wanted is None:
            fix = "names no model; say which one with --model"
            raise Unavailable(f"{self._base}/v1/models {fix}", reason=MALFORMED_STREAM)
        self._options = replace(self._options, model=wanted)
        length = listed.get(wanted, {}).get("max_model_len")
        return ServedModel(wanted, length if isinstance(length, int) else None)

    async def check(self, prompt: Prompt, output_tokens: int) -> AnswerLog:
        """Tells a server that refuses ``ignore_eos`` from one that refuses the rest."""
        try:
            return await self._try(prompt, output_tokens, self._options.ignore_eos)
        except CrossdockError as refused:
            if not self._options.ignore_eos or refused.reason not in _REFUSED_FIELDS:
                raise
            try:
                await self._try(prompt, output_tokens, False)
            except CrossdockError:
                raise refused from None
            message = (
                f"{self._url} refuses `ignore_eos` and `min_tokens` ({refused.message}): run with "
                "--no-ignore-eos; answers may then end earlier than planned"
            )
            raise Incompatible(message, reason="IGNORE_EOS_REFUSED") from None

    def prepare(self, prompt: Prompt, output_tokens: int) -> bytes:
        """The JSON body."""
        return self._body(prompt, output_tokens, self._options.ignore_eos)

    async def send(self, prepared: bytes, answer: AnswerLog) -> None:
        async with self._call("POST", self._url, prepared) as response:
            if response.content_type != "text/event-stream":
                message = f"the answer is {response.content_type}, no event stream"
                raise Unavailable(message, reason=MALFORMED_STREAM)
            stream = OpenAIStream(answer, self._options.count_hidden)
            async for received in response.content.iter_any():
                stream.feed(received)
            stream.close()

    async def close(self) -> None:
        await self._session.close()

    def _body(self, prompt: Prompt, output_tokens: int, ignore_eos: bool) -> bytes:
        body: dict[str, Any] = {
            "model": self._options.model,
            "max_tokens": output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._options.count_hidden:
            body["stream_options"]["continuous_usage_stats"] = True
        if ignore_eos:
            body |= {"ignore_eos": True, "min_tokens": output_tokens}
        content = prompt if isinstance(prompt, str) else prompt.tolist()
        if self._options.endpoint is Endpoint.COMPLETIONS:
            body["prompt"] = content
        else:
            body["messages"] = [{"role": "user", "content": content}]
        return json.dumps(body).encode()

    async def _try(self, prompt: Prompt, output_tokens: int, ignore_eos: bool) -> AnswerLog:
        answer = AnswerLog(lambda: 0.0)
        await self.send(self._body(prompt, output_tokens, ignore_eos), answer)
        return answer

    async def _models(self) -> dict[str, dict[str, Any]]:
        url = f"{self._base}/v1/models"
        async with self._call("GET", url, None) as response:
            try:
                entries = json.loads(await response.read())["data"]
                return {str(entry["id"]): entry for entry in entries}
            except (ValueError, KeyError, TypeError) as error:
                message = f"{url} answers with no list of models ({error!r})"
                raise Unavailable(message, reason=MALFORMED_STREAM) from None

    @asynccontextmanager
    async def _call(
        self, method: str, url: str, body: bytes | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer with status 200; all else is raised as ``Unavailable``."""
        try:
            async with self._session.request(
                method, url, data=body, server_hostname=self._server_name
            ) as response:
                if response.status != 200:
                    message = await _words(response)
                    raise Unavailable(message, reason=f"HTTP_{response.status}")
                yield response
        except aiohttp.ClientConnectorError as error:
            raise Unavailable(f"can't connect to {url}: {error}", reason=CONNECT_FAILED) from None
        except (aiohttp.ClientError, OSError) as error:
            message = f"the connection broke: {error!r}"
            raise Unavailable(message, reason=DISCONNECTED) from None


def check_url(option: str, url: str, *, or_grpc: bool = True) -> None:
    """Raises ``InvalidField`` unless it is an http(s) address. ``or_grpc``: what the fix names."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        others = " or grpc://127.0.0.1:50051" if or_grpc else ""
        fix = f"must look like http://127.0.0.1:8000 or https://HOST{others}"
        raise InvalidField(option, url, fix)


async def _words(response: aiohttp.ClientResponse) -> str:
    """The server's own if it refuses as the API does. Else it may be another kind of server, whose
    page says less than its status line."""
    body = await response.text(errors="replace")
    try:
        return error_message(json.loads(body))
    except ValueError:
        status = f"{response.url} answers {response.status} {response.reason}"
        line = " ".join(body.split())[:200]
        if line and not line.startswith("<"):
            return f"{status}: {line}"
        return f"{status}: is it an OpenAI-compatible server?" if response.status < 500 else status


def _connector(tls: Tls | None) -> aiohttp.TCPConnector:
    context = True if tls is None else tls.ssl_context()
    return aiohttp.TCPConnector(limit=0, socket_factory=_undelayed_socket, ssl=context)


def _undelayed_socket(info: aiohttp.AddrInfoType) -> socket.socket:
    family, kind, protocol, *_ = info
    created = socket.socket(family, kind, protocol)
    created.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return created
