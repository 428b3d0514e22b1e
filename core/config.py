"""The one description of a cluster: what to serve, how many of each worker, how much KV memory.

Covers: the fields, their checks and defaults, plain words for what is wrong.
Does not cover: reading the file (``cluster.spec_file``), command-line flags (``cluster.cli``).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from core.config_section import Section
from core.errors import InvalidField
from core.prefill_order import DEFAULT_TTFT_S
from core.request import REQUEST_ID_KEPT_S
from core.shards import MAX_RANKS, ParallelShape
from core.store_url import MEMORY, redis_place
from core.tenant_config import (
    MAX_TENANTS,
    AdminSpec,
    AdmissionSpec,
    AuthSpec,
    TenantName,
    TenantSpec,
    check_keys,
)
from core.tenants import DEFAULT_TENANT
from core.tls_files import MEMBER_NAME, OPERATOR_NAME, ServerFiles, TlsFiles

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}

# Of one pool.
MAX_REPLICAS = 1024
# Of each rank, if the config gives no size and as far as host memory is free.
DEFAULT_KV_BYTES = 512 * 2**20

# In paths of settings that are under a name of the user's.
ANY_NAME = "NAME"

# Of each further token, as long as nobody says otherwise (``slo.tpot``).
DEFAULT_TPOT_S = 0.05
DEFAULT_MAX_INDEX_BLOCKS = 1 << 23

DType = Literal["auto", "bfloat16", "float16", "float32"]
# Settings that hold hashes of secrets.
_HASHES = {"api_key_sha256", "token_sha256"}
_TRANSPORTS_OF = {"cpu": ("shm", "tcp"), "cuda": ("cuda_ipc", "nccl")}


def parse_bytes(value: object) -> int:
    """Bytes of e.g. "512MiB", "2GB" or a plain number. Raises ``ValueError`` in plain words."""
    # Not of lists: by aliases a few lines of YAML can stand for gigabytes of text.
    text = str(value) if isinstance(value, str | int | float) else ""
    match = re.fullmatch(r"\s*(\d{1,30}(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError('must be a size such as "512MiB", "2GB" or a number of bytes')
    return int(float(match[1]) * _UNITS[match[2].upper()])


# The same for who reads the JSON schema only, such as Helm.
_SizeText = Annotated[str, Field(pattern=r"^\s*\d{1,30}(\.\d+)?\s*([KkMmGg][Ii]?[Bb])?\s*$")]
ByteSize = Annotated[
    int, Field(ge=1), BeforeValidator(parse_bytes, json_schema_input_type=int | _SizeText)
]
ParallelSize = Annotated[int, Field(ge=1, le=MAX_RANKS, strict=True)]
Amount = Annotated[float, Field(gt=0)]
FilePath = Annotated[str, Field(min_length=1)]
DnsName = Annotated[
    str,
    Field(max_length=253, pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9-]+)*$"),
]


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


class PoolSpec(Section):
    """A pool of equal replicas of ``tensor_parallel_size`` × ``pipeline_parallel_size`` ranks."""

    replicas: int = Field(default=1, ge=0, le=MAX_REPLICAS, strict=True)
    """How many workers; 0 prefill replicas: the decode workers prefill too (colocated serving)."""
    resources: dict[str, Amount] | None = Field(default=None, min_length=1)
    """Ray's resources of each rank, such as `{CPU: 4}` or `{GPU: 1}`. Without it: a fair share."""
    max_num_seqs: int = Field(default=32, ge=1, strict=True)
    """How many sequences a worker computes at once."""
    max_num_batched_tokens: int | None = Field(default=None, ge=1, strict=True)
    """Most tokens of one engine step, so also of a prefill chunk. Without it: what suits the
    device."""
    tensor_parallel_size: ParallelSize = 1
    """Ranks that share each layer."""
    pipeline_parallel_size: ParallelSize = 1
    """Stages that share the layers."""
    gpu_hour_price: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Of one rank's accelerator, in any currency; costs are told where it is known."""

    @field_validator("pipeline_parallel_size")
    @classmethod
    def _not_too_many_ranks(cls, pipeline: int, info: ValidationInfo) -> int:
        tensor = info.data.get("tensor_parallel_size", 1)
        if tensor * pipeline > MAX_RANKS:
            raise ValueError(
                f"with tensor_parallel_size = {tensor} it must be at most {MAX_RANKS // tensor}: "
                f"a replica has at most {MAX_RANKS} ranks"
            )
        return pipeline

    @property
    def shape(self) -> ParallelShape:
        return ParallelShape(self.tensor_parallel_size, self.pipeline_parallel_size)

    @property
    def hour_price(self) -> float | None:
        """Of all replicas."""
        if self.gpu_hour_price is None:
            return None
        return self.replicas * self.shape.num_ranks * self.gpu_hour_price


class PoolsSpec(Section):
    """The two pools. Without prefill replicas the decode workers prefill too."""

    prefill: PoolSpec = PoolSpec()
    """Workers that compute prompts."""
    decode: PoolSpec = PoolSpec()
    """Workers that stream answers; at least one."""

    def of(self, pool: str) -> PoolSpec:
        return self.prefill if pool == "prefill" else self.decode

    @model_validator(mode="after")
    def _somebody_decodes(self) -> PoolsSpec:
        if self.decode.replicas < 1:
            raise ValueError("decode.replicas must be at least 1: nobody would stream answers")
        return self


class KVSpec(Section):
    """Memory for the keys and values of prompts and answers, and how they travel."""

    block_size: int = Field(default=16, ge=1, le=1024, strict=True)
    """Tokens of a block."""
    memory: ByteSize | None = None
    """Size of each rank's pool, such as "2GiB". Without it (and `num_blocks`): 512 MiB, on a GPU
    too, or less where half of this machine's free memory is less for all ranks."""
    num_blocks: int | None = Field(default=None, ge=1, strict=True)
    """The same in blocks; not both."""
    transport: Literal["auto", "cuda_ipc", "nccl", "shm", "tcp"] = "auto"
    """What moves blocks between workers; "auto": on each edge the fastest that works there."""
    tcp_streams: int = Field(default=1, ge=1, le=16, strict=True)
    """Connections of one edge over TCP; between hosts several may fill a link that one can't."""
    events: bool = True
    """Workers tell routers which blocks they cache. Without, routers go by what they have sent, and
    `status` and the metrics say so."""
    lease: float = Field(default=30.0, ge=1.0, lt=REQUEST_ID_KEPT_S)
    """Seconds for which a decode worker keeps room for a prompt without news of it."""
    # Workers look at their clocks four times a second.
    beat: float = Field(default=5.0, ge=0.2, validate_default=True)
    """Seconds between a prefill worker's news of a prompt; less than a quarter of the lease."""

    @field_validator("beat")
    @classmethod
    def _suits_the_lease(cls, beat: float, info: ValidationInfo) -> float:
        lease = info.data.get("lease")
        if lease is None:
            return beat  # Refused already.
        if lease <= 4 * beat:
            raise ValueError(
                f"must be less than {lease / 4:g}, a quarter of kv.lease ({lease:g}): the prefill "
                "worker stops two beats before the lease ends, and one of its beats may be late"
            )
        if lease + 4 * beat >= REQUEST_ID_KEPT_S:
            raise ValueError(
                f"with kv.lease = {lease:g} it must be less than "
                f"{(REQUEST_ID_KEPT_S - lease) / 4:g}: ended attempts are remembered for a lease "
                f"and four beats, and after {REQUEST_ID_KEPT_S:g} s a request id may come again"
            )
        return beat

    @model_validator(mode="after")
    def _one_size(self) -> KVSpec:
        if self.memory is not None and self.num_blocks is not None:
            raise ValueError("give memory or num_blocks, not both")
        return self


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


class TokenStreamsSpec(Section):
    """Clients may read tokens from the decode workers themselves, with a ticket of the router."""

    enabled: bool = False
    """They may. Clients have to reach the decode workers' nodes then; those that don't get their
    tokens from the router. With `tls.doors` these nodes need its files, too."""
    port: int = Field(default=0, ge=0, le=65535, strict=True)
    """The first port that the decode workers of a node try. 0: any free one."""


class DoorsTlsSpec(Section):
    """PEM files for the doors that clients come to, gRPC and HTTP, on the routers' hosts."""

    cert: FilePath
    """The certificate that clients see, with those between it and its authority."""
    key: FilePath
    """Its key."""
    client_ca: FilePath | None = None
    """Who signs clients' certificates. With it, clients without one are refused; but for `/health`
    and `/ready`, which probes ask."""


class TlsSpec(Section):
    """Encryption. PEM files, at the same paths on every node; renewed ones are taken up. With `ca`,
    `cert` and `key`, processes of the cluster speak by mutual TLS only."""

    ca: FilePath | None = None
    """Who signed the certificates of all processes of the cluster, and of its operators."""
    cert: FilePath | None = None
    """The certificate that processes of the cluster show to each other."""
    key: FilePath | None = None
    """Its key."""
    name: DnsName = MEMBER_NAME
    """The DNS name that the certificates of the cluster's processes have, and no others: who shows
    it is one of them. Addresses are not compared."""
    operator_name: DnsName = OPERATOR_NAME
    """The DNS name of operators' certificates, which open the admin port and show metrics."""
    unencrypted_nccl: bool = False
    """On GPUs, what goes over NCCL is not encrypted: KV blocks between hosts, and what the ranks of
    a worker tell each other. True: so be it; else such a cluster is refused."""
    doors: DoorsTlsSpec | None = None
    """Without it clients are answered in the clear: put TLS in front."""

    @model_validator(mode="after")
    def _is_whole(self) -> TlsSpec:
        given = {"ca": self.ca, "cert": self.cert, "key": self.key}
        if any(given.values()):
            for name, path in given.items():
                if path is None:
                    fix = "is missing: tls needs it beside the others"
                    raise InvalidField(f"tls.{name}", None, fix)
        elif self.doors is None:
            raise ValueError("give ca, cert and key, or doors, or leave tls out")
        if self.operator_name == self.name:
            fix = "is tls.name, too: operators would be processes of the cluster; choose another"
            raise InvalidField("tls.operator_name", self.operator_name, fix)
        return self

    @property
    def files(self) -> TlsFiles | None:
        """Of the cluster's processes."""
        if self.ca is None or self.cert is None or self.key is None:
            return None
        return TlsFiles(self.ca, self.cert, self.key, self.name)

    @property
    def door_files(self) -> ServerFiles | None:
        doors = self.doors
        if doors is None:
            return None
        return ServerFiles(doors.cert, doors.key, doors.client_ca, "tls.doors")


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
            raise ValueError("required, but no tenant has a key: nobody could come in")
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


def field_paths(model: type[BaseModel] = ClusterSpec, prefix: str = "") -> list[str]:
    """Every valid dotted path, sections included; `ANY_NAME` where users choose names."""
    paths: list[str] = []
    for name, info in model.model_fields.items():
        paths.append(prefix + name)
        for kind in (info.annotation, *get_args(info.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                named = f".{ANY_NAME}" if get_origin(info.annotation) is dict else ""
                paths += field_paths(kind, f"{prefix}{name}{named}.")
    return paths


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
        return InvalidField(path, error["input"], _nearest(path), reason="UNKNOWN_FIELD")
    if error["type"] == "missing":
        section = ".".join(str(part) for part in error["loc"][:-1])
        return InvalidField(path, None, f"is missing: {section} needs it beside the others")
    message = error["msg"].removeprefix("Value error, ")
    # What stands where a key's hash should be may be the key, and a URL may hold a password.
    secret = not (_HASHES | {"store"}).isdisjoint(error["loc"])
    hidden = isinstance(error["input"], dict) or secret
    value = "…" if hidden else error["input"]
    return InvalidField(path or "config", value, message[0].lower() + message[1:])


def _nearest(path: str) -> str:
    """Point to the valid setting with the closest name, in its section if possible."""
    section, _, name = path.rpartition(".")
    known = [other.replace(ANY_NAME, _name_in(path)) for other in field_paths()]
    siblings = [other for other in known if other.rpartition(".")[0] == section]
    for candidates in (siblings, known):
        by_name = {other.rpartition(".")[2]: other for other in reversed(candidates)}
        close = difflib.get_close_matches(name, by_name, 1)
        if close:
            return f"unknown setting; did you mean `{by_name[close[0]]}`?"
    return f"unknown setting; valid here: {', '.join(siblings)}"


def _name_in(path: str) -> str:
    """The user's own name in it, if there is one."""
    parts = path.split(".")
    return parts[1] if parts[0] == "tenants" and len(parts) > 2 else ANY_NAME
