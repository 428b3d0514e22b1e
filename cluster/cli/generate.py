"""`crossdock generate`: one prompt over gRPC, as it is, without a chat template."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.options import (
    DEFAULT_GRPC_PORT,
    DEFAULT_HOST,
    AddressOption,
    ApiKeyOption,
    ClusterNameOption,
)
from cluster.cli.output import Output, OutputOption, plain
from cluster.running import does_it_run
from core.errors import InvalidField, Unavailable

if TYPE_CHECKING:
    from crossdock.client import Client

_TIMEOUT_S = 600.0


def generate(
    prompt: Annotated[str, typer.Argument(help="Continue this text.")],
    address: AddressOption = None,
    name: ClusterNameOption = None,
    max_tokens: Annotated[int, typer.Option(min=1)] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, max=2.0)] = 0.0,
    top_p: Annotated[float | None, typer.Option(min=0.0, max=1.0)] = None,
    top_k: Annotated[int | None, typer.Option(min=0)] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    stop: Annotated[list[str] | None, typer.Option(help="May be given more than once.")] = None,
    timeout: Annotated[float, typer.Option(min=0.0, help="Seconds.")] = _TIMEOUT_S,
    by_ticket: Annotated[
        bool,
        typer.Option(
            "--by-ticket",
            help="Read the tokens from the decode worker itself if it can be reached.",
        ),
    ] = False,
    api_key: ApiKeyOption = None,
    tls: Annotated[
        bool, typer.Option("--tls", help="Over TLS; a cluster that `up` started is known.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Stream the continuation of PROMPT, or print it with its timings as one JSON document."""
    from cluster.running import find_address

    sampling = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "seed": seed,
        "stop": stop or [],
    }
    given = {name: value for name, value in sampling.items() if value is not None}
    given["by_ticket"] = by_ticket
    target = address or find_address("grpc", name, f"{DEFAULT_HOST}:{DEFAULT_GRPC_PORT}")
    live = output is Output.TABLE
    with _open_client(target, api_key, tls) as client:
        text, token_ids, complete = _stream(client, target, prompt, given, timeout, live)
    if output is Output.JSON:
        import json

        print(json.dumps({"text": text, "token_ids": token_ids, **complete}, indent=2))


def _open_client(address: str, api_key: str | None, tls: bool) -> Client:
    from cluster.cli.identity import door_tls
    from crossdock.client import Client

    try:
        return Client(address, api_key=api_key, tls=door_tls(address, tls))
    except OSError as error:
        fix = f"can't be read: {error.strerror}"
        raise InvalidField("--tls-ca, --tls-cert or --tls-key", error.filename, fix) from None


def _stream(
    client: Client,
    address: str,
    prompt: str,
    sampling: dict[str, Any],
    timeout: float,
    live: bool,
) -> tuple[str, list[int], dict[str, Any]]:
    """(text, token ids, the fields of ``Complete``); prints the text as it comes if ``live``."""
    from crossdock.client import ServerError

    pieces: list[str] = []
    token_ids: list[int] = []
    complete: dict[str, Any] = {}
    try:
        for response in client.generate(prompt, timeout=timeout, **sampling):
            if response.HasField("complete"):
                complete = plain(response.complete)
                continue
            pieces.append(response.chunk.text)
            token_ids.extend(response.chunk.token_ids)
            if live:
                print(response.chunk.text, end="", flush=True)
    except ServerError as error:
        message = _explain(address, error.code.name, error.message)
        raise Unavailable(message, reason=error.reason or "NO_ANSWER") from None
    if live:
        print()
    return "".join(pieces), token_ids, complete


def _explain(address: str, code: str, message: str) -> str:
    if code == "UNAVAILABLE" and "handshake" in message.lower():
        return f"no TLS with {address}: {message}"
    if code == "UNAVAILABLE" and "connect" in message:
        return f"nobody answers at {address}: {does_it_run()}"
    return f"{message} ({code})"
