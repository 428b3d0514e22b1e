"""The section `kv` of the config: memory for keys and values, and how they travel. Sizes as people
write them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from core.config_section import Section
from core.request import REQUEST_ID_KEPT_S

# Of each rank, if the config gives no size and as far as host memory is free.
DEFAULT_KV_BYTES = 512 * 2**20

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


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
