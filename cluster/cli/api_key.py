"""`crossdock api-key`: a new key for a tenant."""

from __future__ import annotations

from cluster.cli.output import Output, OutputOption, emit
from core.api_keys import api_key_sha256, new_api_key


def api_key(output: OutputOption = Output.TABLE) -> None:
    """Make an API key: 256 random bits, and the SHA-256 of it for the config.

    It is shown once and kept nowhere. Give the key to the tenant, and put the hash under
    `tenants.NAME.api_key_sha256`.
    """
    key = new_api_key()
    made = {"api_key": key, "api_key_sha256": api_key_sha256(key)}
    emit(made, output, lambda: _show(made))


def _show(made: dict[str, str]) -> None:
    for name, value in made.items():
        print(f"{name}: {value}")
