"""All that a router is told when it starts, and the JSON in which its process gets it.

Does not cover: where the settings come from (``cluster.router_settings``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from core.config import DEFAULT_MAX_INDEX_BLOCKS
from core.errors import InvalidField
from core.store_url import MEMORY
from core.tls_files import ServerFiles, TlsFiles
from router.access_rules import AccessRules
from router.flow.retries import RetryLimits
from router.routing.routing_rules import RoutingRules


@dataclass(frozen=True, slots=True)
class RouterSettings:
    """``registry``: host:port. Ports 0: any free one. ``drain_s``: seconds for what still runs.
    ``limits``: of each request. ``rules``: of routing, with the SLOs that count. ``access``: who
    may ask for how much. ``vllm_names``: vLLM's names of the metrics are told as well.
    ``metrics_tokens``: SHA-256 of those that open the metrics; none: they are open to all.
    ``max_index_blocks``: what the prefix index holds at most. ``store``: where it shares what it
    knows with other routers (``core.store_url``). ``tls``: by which it speaks to workers and
    controller, ``doors``: what it shows to clients; None: in the clear."""

    registry: str
    model: Path
    served_model_name: str = ""
    host: str = "127.0.0.1"
    grpc_port: int = 0
    http_port: int = 0
    max_model_len: int | None = None
    block_size: int = 16
    rules: RoutingRules = field(default_factory=RoutingRules)
    drain_s: float = 30.0
    limits: RetryLimits = field(default_factory=RetryLimits)
    vllm_names: bool = False
    metrics_tokens: tuple[str, ...] = ()
    access: AccessRules = field(default_factory=AccessRules)
    max_index_blocks: int = DEFAULT_MAX_INDEX_BLOCKS
    store: str = field(default=MEMORY, repr=False)
    tls: TlsFiles | None = None
    doors: ServerFiles | None = None


_adapter = TypeAdapter(RouterSettings)


def settings_to_json(settings: RouterSettings) -> bytes:
    """With the hashes of keys and tokens and the store's password: for a pipe, not for a log."""
    return _adapter.dump_json(settings)


def settings_from_json(text: bytes) -> RouterSettings:
    """Raises ``InvalidField`` for what `settings_to_json` did not write."""
    try:
        return _adapter.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "settings"
        fix = f"{first['msg']}; start a router with `crossdock router`"
        raise InvalidField(where, first["type"], fix) from None
