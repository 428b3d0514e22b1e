"""The one description of a cluster: what to serve, how many of each worker, how much KV memory.

Covers: the whole, its small sections, what one section asks of another, plain words for what is
wrong. Does not cover: larger sections (``pool_config``, ``kv_config``, ``tenant_config``,
``tls_config``), reading the file (``cluster.spec_file``), command-line flags (``cluster.cli``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from core.config_paths import did_you_mean, field_paths
from core.config_section import WITHIN, Section, wrong_within
from core.errors import InvalidField
from core.kv_config import KVSpec
from core.pool_config import PoolsSpec
from core.prefill_order import DEFAULT_TTFT_S
from core.store_url import MEMORY, redis_place
from core.tenant_config import (
    MAX_KEYS,
    MAX_TENANTS,
    AdminSpec,
    AdmissionSpec,
    AuthSpec,
    Sha256,
    TenantName,
    TenantSpec,
    check_keys,
)
from core.tenants import DEFAULT_TENANT
from core.tls_config import TlsSpec
from core.tls_files import ServerFiles, TlsFiles

# Of each further token, as long as nobody says otherwise (``slo.tpot``).
DEFAULT_TPOT_S = 0.05
DEFAULT_MAX_INDEX_BLOCKS = 1 << 23

DType = Literal["auto", "bfloat16", "float16", "float32"]
# Settings that hold hashes of secrets.
_HASHES = {"api_key_sha256", "token_sha256"}
_TRANSPORTS_OF = {"cpu": ("shm", "tcp"), "cuda": ("cuda_ipc", "nccl")}


class PeakSpec(Section):
    """What one rank's device does at best, by its data sheet. MFU and MBU are told against it."""

    flops: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Dense FLOP/s at the served precision."""
    memory_bandwidth: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Bytes/s of its memory."""


class EngineSpec(Section):
    """What computes."""

    device: Literal["cpu", "cuda"] = "cpu"
    """Where: on the CPU or on NVIDIA GPUs."""
    dtype: DType = "auto"
    """Of weights and KV blocks; "auto": that of the model folder."""
    threads: int | None = Field(default=None, ge=1, strict=True)
    """Of each rank, on a CPU. Without it: as many as it has cores of its own."""
    affinity: Literal["auto", "none"] = "auto"
    """Who chooses the cores: "auto" binds each rank to its share of the node's, "none" leaves that
    to the system."""
    kernels: Literal["auto", "torch"] = "auto"
    """Whose: "torch" leaves the compiled kernels and Triton's out, should one be at fault."""
    peak: PeakSpec | None = None
    """Without it: that of the data sheet for a GPU that we know, else each worker measures it when
    it starts."""


class RouterSpec(Section):
    """How requests are sent to workers."""

    policy: Literal["kv_aware", "least_loaded", "round_robin", "random", "prefix_affinity"] = (
        "kv_aware"
    )
    """Who gets a request: "kv_aware" weighs cached blocks against load in predicted milliseconds;
    the others are there to compare with."""
    profile: str | None = Field(default=None, min_length=1)
    """A file of `crossdock profile` to predict by. Without it: rough times, computed from the size
    of the model and the device."""
    disaggregation: Literal["auto", "prefer", "always"] = "auto"
    """When decode workers prefill by themselves: where that answers sooner, and without a living
    prefill worker ("auto"); only without one ("prefer"); never, requests are refused
    ("always")."""
    max_index_blocks: int = Field(default=DEFAULT_MAX_INDEX_BLOCKS, ge=1, strict=True)
    """Different cached blocks that a router keeps track of, at some 100 bytes each. What workers
    cache beyond that is not taken into account, and `crossdock_router_index_left_out_blocks` counts
    it."""


class SloSpec(Section):
    """What users are promised. Goodput is what meets both."""

    ttft: float = Field(default=DEFAULT_TTFT_S, gt=0, allow_inf_nan=False)
    """Seconds in which a request wants its first token. Workers compute prompts in the order in
    which most of them get it by then."""
    tpot: float = Field(default=DEFAULT_TPOT_S, gt=0, allow_inf_nan=False)
    """Seconds for each further token of an answer, on average."""


class MetricsSpec(Section):
    """What the processes tell of themselves; the router's are on its HTTP port."""

    vllm_names: bool = False
    """The router tells its metrics under vLLM's names as well."""
    worker_port: int = Field(default=0, ge=0, le=65535, strict=True)
    """The first port that the ranks of a node try for theirs. 0: those that lead a worker take any
    free one, told by the router's `/metrics/targets`, others none."""
    controller_port: int = Field(default=0, ge=0, le=65535, strict=True)
    """That of the controller; 0: any free one."""
    token_sha256: list[Sha256] = Field(default_factory=list, max_length=MAX_KEYS)
    """SHA-256 of each token that opens the routers' metrics, as `crossdock api-key` makes them.
    Without one they are open to whoever reaches a router's HTTP port: numbers, names of tenants and
    of workers."""


class TokenStreamsSpec(Section):
    """Clients may read tokens from the decode workers themselves, with a ticket of the router."""

    enabled: bool = False
    """They may. Clients have to reach the decode workers' nodes then; those that don't get their
    tokens from the router. With `tls.doors` these nodes need its files, too."""
    port: int = Field(default=0, ge=0, le=65535, strict=True)
    """The first port that the decode workers of a node try. 0: any free one."""


class ClusterSpec(Section):
    """A cluster: one model, two pools."""

    model: str | None = None
    """An imported model folder, or the name of one. Without it: the demo model."""
    served_model_name: str | None = None
    """The name that clients use. Without it: that of the folder."""
    max_model_len: int | None = Field(default=None, ge=1, strict=True)
    """Most tokens of a prompt and its answer together. Without it: as many as the model and the KV
    pool allow."""
    engine: EngineSpec = EngineSpec()
    pools: PoolsSpec = PoolsSpec()
    kv: KVSpec = KVSpec()
    router: RouterSpec = RouterSpec()
    store: str = Field(default=MEMORY, repr=False)
    """Where several routers share what they know: "memory://" (one router, nothing is shared), or
    a Redis: redis://HOST:PORT/DB, rediss://HOST:PORT/DB over TLS, unix:///PATH. It takes a password
    from the environment variable `CROSSDOCK_STORE_PASSWORD`, if the URL has none."""
    slo: SloSpec = SloSpec()
    tenants: dict[TenantName, TenantSpec] = Field(default_factory=dict, max_length=MAX_TENANTS)
    """Who asks, by name. Without it all requests are those of one tenant, `default`."""
    auth: AuthSpec = AuthSpec()
    admin: AdminSpec = AdminSpec()
    admission: AdmissionSpec = AdmissionSpec()
    metrics: MetricsSpec = MetricsSpec()
    token_streams: TokenStreamsSpec = TokenStreamsSpec()
    tls: TlsSpec | None = None
    """Without it nothing is encrypted."""

    @field_validator("kv")
    @classmethod
    def _transport_suits_the_device(cls, kv: KVSpec, info: ValidationInfo) -> KVSpec:
        engine = info.data.get("engine")
        if engine is None or kv.transport in ("auto", *_TRANSPORTS_OF[engine.device]):
            return kv
        valid = ", ".join(("auto", *_TRANSPORTS_OF[engine.device]))
        raise InvalidField(
            "kv.transport",
            kv.transport,
            f"with engine.device = {engine.device} KV blocks can go over {valid}",
        )

    @field_validator("store")
    @classmethod
    def _is_a_store(cls, store: str) -> str:
        redis_place(store)
        return store

    @field_validator("tenants")
    @classmethod
    def _each_key_is_of_one(cls, tenants: dict[str, TenantSpec]) -> dict[str, TenantSpec]:
        check_keys(tenants)
        return tenants

    @field_validator("auth")
    @classmethod
    def _somebody_has_a_key(cls, auth: AuthSpec, info: ValidationInfo) -> AuthSpec:
        tenants = info.data.get("tenants")
        if tenants is not None and auth.required and not _have_keys(tenants):
            fix = "no tenant has a key, so nobody could come in; make one with `crossdock api-key`"
            raise wrong_within(("required",), True, fix)
        return auth

    @field_validator("tls")
    @classmethod
    def _covers_all_that_leaves_a_host(
        cls, tls: TlsSpec | None, info: ValidationInfo
    ) -> TlsSpec | None:
        engine, kv = info.data.get("engine"), info.data.get("kv")
        pools = info.data.get("pools")
        if tls is None or tls.files is None or engine is None or kv is None or pools is None:
            return tls
        if engine.device != "cuda" or tls.unencrypted_nccl:
            return tls
        split = any(pools.of(pool).shape.num_ranks > 1 for pool in ("prefill", "decode"))
        if kv.transport in ("auto", "nccl") or split:
            what = "the ranks of a worker speak" if split else "KV blocks go"
            raise ValueError(
                f"on GPUs {what} over NCCL, which is not encrypted: set tls.unencrypted_nccl to "
                "true if that may be, leave tls out, or keep to workers of one rank with "
                "kv.transport cuda_ipc, which leaves no host"
            )
        return tls

    @property
    def tls_files(self) -> TlsFiles | None:
        """Of the cluster's processes; None: they speak in the clear."""
        return None if self.tls is None else self.tls.files

    @property
    def door_files(self) -> ServerFiles | None:
        """Of the doors for clients; None: in the clear."""
        return None if self.tls is None else self.tls.door_files

    @property
    def needs_key(self) -> bool:
        """Whether requests without an API key are refused."""
        required = self.auth.required
        return _have_keys(self.tenants) if required is None else required

    @property
    def tenants_compete(self) -> bool:
        """Whether requests may be of more than one tenant."""
        names = set(self.tenants) | (set() if self.needs_key else {DEFAULT_TENANT})
        return len(names) > 1


def _have_keys(tenants: Mapping[str, TenantSpec]) -> bool:
    return any(tenant.api_key_sha256 for tenant in tenants.values())


def make_spec(
    settings: Mapping[str, Any] | None = None, overrides: Mapping[str, object] | None = None
) -> ClusterSpec:
    """A checked spec from nested ``settings`` and ``overrides`` by dotted path (None: not given).

    Raises ``InvalidField`` with the full path, the value, and the nearest valid name if unknown.
    """
    merged = dict(settings or {})
    for path, value in (overrides or {}).items():
        if value is not None:
            _put(merged, path.split("."), value)
    try:
        return ClusterSpec.model_validate(merged)
    except ValidationError as error:
        raise _in_plain_words(error.errors()[0]) from None


def _put(settings: dict[str, Any], path: list[str], value: object) -> None:
    """Set one value deep inside, copying the sections on the way."""
    head, *rest = path
    if not rest:
        settings[head] = value
        return
    inner = settings.get(head)
    section = dict(inner) if isinstance(inner, Mapping) else {}
    settings[head] = section
    _put(section, rest, value)


def _in_plain_words(error: ErrorDetails) -> InvalidField:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return InvalidField(
            path,
            error["input"],
            did_you_mean(path, field_paths(ClusterSpec)),
            reason="UNKNOWN_FIELD",
        )
    if error["type"] == "missing":
        section = ".".join(str(part) for part in error["loc"][:-1])
        return InvalidField(path, None, f"is missing: {section} needs it beside the others")
    if error["type"] == WITHIN:
        found = error["ctx"]
        return InvalidField(".".join((path, *found["path"])), found["value"], found["fix"])
    message = error["msg"].removeprefix("Value error, ")
    # What stands where a key's hash should be may be the key, and a URL may hold a password.
    secret = not (_HASHES | {"store"}).isdisjoint(error["loc"])
    hidden = isinstance(error["input"], dict) or secret
    value = "…" if hidden else error["input"]
    return InvalidField(path or "config", value, message[0].lower() + message[1:])
