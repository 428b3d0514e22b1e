"""A profile for people and for programs: how good its fits are, and what it says of usual steps.
Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.latency_profile import (
    EngineProfile,
    FitError,
    LatencyProfile,
    StepModel,
    StepWork,
    TransferProfile,
    chunk_pairs,
)
from tuner.profile.profile_file import to_plain

Row = tuple[str, ...]
_NONE = "–"
_CHUNK = 256
_BATCHES = (1, 8, 32)
_CONTEXT = 512
_BLOCKS_TOKENS = 256


def headings(profile: LatencyProfile) -> list[str]:
    lines = [
        f"{profile.model}, {profile.dtype}, on {profile.hardware}: {profile.origin.value}, "
        f"{profile.created}",
        f"a message between processes {profile.message_s * 1e3:.2f} ms, "
        f"router and doors {profile.request_s * 1e3:.2f} ms one way",
    ]
    if (found := profile.interference) is not None:
        lines.append(
            "while others serve on all other cores, decode steps take "
            f"{found.decode_beside_decode:.2f} (they decode) and {found.decode_beside_prefill:.2f} "
            f"(prompts) times as long, prompts {found.prefill_beside_decode:.2f} and "
            f"{found.prefill_beside_prefill:.2f}"
        )
    return lines


def engine_table(profile: LatencyProfile) -> tuple[Row, list[Row]]:
    """Columns and rows: errors of the fit, then what a few usual steps take by it."""
    columns = (
        *("ranks", "threads", "core share", "beside"),
        *("median error", "p95", "worst"),
        *(f"prefill {_CHUNK}, ms", *(f"decode {b} × {_CONTEXT}, ms" for b in _BATCHES)),
    )
    return columns, [_engine_row(engine) for engine in profile.engines]


def transfer_table(profile: LatencyProfile) -> tuple[Row, list[Row]]:
    columns = (
        *("transport", "from", "to", "median error", "p95", "worst"),
        *("each batch, ms", f"{_BLOCKS_TOKENS} tokens, ms"),
    )
    return columns, [_transfer_row(transfer) for transfer in profile.transfers]


def as_json(profile: LatencyProfile, warnings: Sequence[str]) -> dict[str, Any]:
    """All of the profile, with what people are warned of."""
    return to_plain(profile) | {"warnings": list(warnings)}


def _engine_row(engine: EngineProfile) -> Row:
    chunk = StepWork(_CHUNK, 1, chunk_pairs(0, _CHUNK), 0, 0)
    decodes = (StepWork(batch, batch, 0, batch, batch * _CONTEXT) for batch in _BATCHES)
    return (
        *(str(engine.shape), str(engine.threads), f"{engine.core_share:g}", str(engine.company)),
        *_errors(engine.error),
        *(_ms(engine.step, work) for work in (chunk, *decodes)),
    )


def _transfer_row(transfer: TransferProfile) -> Row:
    return (
        *(transfer.transport, str(transfer.source), str(transfer.target)),
        *_errors(transfer.error),
        f"{transfer.model.per_batch / 1e12:.2f}",
        f"{transfer.model.time(_BLOCKS_TOKENS) / 1e12:.2f}",
    )


def _errors(error: FitError | None) -> Row:
    if error is None:
        return (_NONE, _NONE, _NONE)
    return tuple(f"{value:.1%}" for value in (error.median, error.p95, error.worst))


def _ms(step: StepModel, work: StepWork) -> str:
    return f"{step.time(work) / 1e12:.1f}"
