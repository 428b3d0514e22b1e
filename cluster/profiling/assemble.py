"""From findings to a profile: fits, warnings. Pure.

Does not cover: what serving adds to a step (``cluster.profiling.overhead``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from cluster.profiling.neighbours import interference
from cluster.profiling.overhead import Findings, Overhead, as_served, overheads
from cluster.profiling.subject import Subject
from cluster.profiling.tasks import AGAIN, FIRST
from core.latency_profile import (
    EngineProfile,
    FitError,
    LatencyProfile,
    Origin,
    TransferProfile,
)
from tuner.profile.fit import (
    MeasuredStep,
    MeasuredTransfer,
    fit_steps,
    fit_transfer,
    fit_warning,
    worst_points,
)
from tuner.profile.points import EdgeSetting, EngineSetting

KV_BYTES = "kv bytes"
WAY = "way of a request"
TICKET = "ticket"
SERVING = "serving"
# A point that takes that much longer or shorter at the end than before: the machine has changed.
_ACCEPTED_DRIFT = 0.10
# Of the time of steps that have a core to themselves, waiting for it.
_ACCEPTED_WAITING = 0.03


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fit as people are told of it: its worst points with measured / fitted."""

    name: str
    points: int
    error: FitError
    worst: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class ProfileResult:
    """``warnings``: why numbers should be trusted less."""

    profile: LatencyProfile
    fits: tuple[Fitted, ...]
    warnings: tuple[str, ...]


def assemble(
    subject: Subject,
    engines: Mapping[EngineSetting, Findings],
    edges: Mapping[EdgeSetting, Findings],
    served: Mapping[EngineSetting, Findings],
    created: str,
    failed: Mapping[EdgeSetting, str],
) -> ProfileResult:
    """``engines``: all points of each; ``edges``: batches of each that was measured; ``served``: of
    workers that served, the first engine's first; ``failed``: why edges could not be measured;
    ``created``: ISO 8601."""
    serving = served[subject.engines[0]]
    overhead = overheads(engines, serving, subject.device)
    for one, found in served.items():
        overhead[one] = as_served(overhead[one], subject.points(one), engines[one], found)
    fits, profiles = [], []
    left_out = [*_left_out(subject), *_edges_left_out(subject, edges, failed)]
    warnings = [*left_out, *_within_one_gpu(subject, edges)]
    for setting, findings in engines.items():
        steps = _steps(subject, setting, findings, overhead)
        profile, fitted = _engine(subject, setting, findings, steps)
        profiles.append(profile)
        fits.append(fitted)
        warnings += _warnings(setting.name, findings, fitted)
        if setting.core_share == 1.0:
            warnings += _disturbance(setting.name, findings)
    message_s = _message_s(edges)
    transfers = []
    for edge, findings in edges.items():
        transfer, fitted = _transfer(edge, findings, message_s, subject.layout.block_size)
        transfers.append(transfer)
        fits.append(fitted)
        warnings += _warnings(fitted.name, findings, fitted)
    way_s = serving[WAY].seconds
    profile_of_all = LatencyProfile(
        origin=Origin.MEASURED,
        hardware=subject.hardware,
        model=subject.model.name,
        model_hash=subject.model_hash,
        dtype=subject.dtype,
        created=created,
        max_positions=subject.model.max_positions,
        weight_bytes=subject.weight_bytes,
        kv_bytes_per_token=subject.kv_bytes_per_token,
        message_s=message_s,
        # There and back, each time with a message between router and worker.
        request_s=max(0.0, way_s / 2 - message_s),
        engines=tuple(profiles),
        transfers=tuple(transfers),
        device="cuda" if subject.device == "cuda" else "cpu",
        cores=len(subject.cores),
        interference=interference({name: found.seconds for name, found in serving.items()}),
        left_out=tuple(left_out),
    )
    return ProfileResult(profile_of_all, tuple(fits), tuple(warnings))


def _left_out(subject: Subject) -> list[str]:
    """Shapes that were asked for and can't be measured here."""
    parts = "GPUs" if subject.device == "cuda" else "cores"
    return [
        f"{shape} is not measured: it needs {shape.num_ranks} {parts}" for shape in subject.left_out
    ]


def _edges_left_out(
    subject: Subject, edges: Mapping[EdgeSetting, Findings], failed: Mapping[EdgeSetting, str]
) -> list[str]:
    """Ways of blocks that nothing is known of."""
    said = [f"transfer over {edge.name} is not measured: {why}" for edge, why in failed.items()]
    for edge in subject.edges_left_out:
        said.append(f"transfer over {edge.name} is not measured: it needs {edge.num_ranks} GPUs")
    if not edges and not said:
        transport = subject.spec.kv.transport
        said.append(f"no transfer is measured: not over {transport} between processes of one host")
    return said


def _within_one_gpu(subject: Subject, edges: Iterable[EdgeSetting]) -> list[str]:
    return [
        f"transfer over {edge.name} is measured within one GPU: to another it takes longer"
        for edge in edges
        if len(set(subject.edge_gpus(edge))) == 1
    ]


def _steps(
    subject: Subject,
    setting: EngineSetting,
    findings: Findings,
    overhead: Mapping[EngineSetting, Overhead],
) -> list[MeasuredStep]:
    return [
        MeasuredStep(
            point.name,
            point.work,
            findings[point.name].seconds + overhead[setting].of(point.work),
        )
        for point in subject.points(setting)
        if point.name in findings
    ]


def _engine(
    subject: Subject, setting: EngineSetting, findings: Findings, steps: Sequence[MeasuredStep]
) -> tuple[EngineProfile, Fitted]:
    model, error = fit_steps(steps)
    profile = EngineProfile(
        shape=setting.shape,
        threads=setting.threads,
        core_share=setting.core_share,
        step=model,
        kv_tokens=_kv_tokens(subject, setting, findings),
        error=error,
        company=setting.company,
    )
    worst = tuple(worst_points([step.name for step in steps], error))
    return profile, Fitted(f"engine {setting.name}", len(steps), error, worst)


def _kv_tokens(subject: Subject, setting: EngineSetting, findings: Findings) -> int:
    """A replica's part: on a CPU memory is shared out among all that were measured together."""
    if subject.kv_tokens is not None:
        return max(1, subject.kv_tokens // (1 + setting.company))
    on_gpu = findings.get(KV_BYTES)
    if on_gpu is None:
        return max(1, subject.edge_blocks * subject.layout.block_size)
    # Each rank has its part of a token.
    all_ranks = int(on_gpu.seconds) * setting.shape.num_ranks
    return max(1, all_ranks // subject.kv_bytes_per_token)


def _message_s(edges: Mapping[EdgeSetting, Findings]) -> float:
    """Half of the shortest question and answer: the smallest batch's ticket."""
    tickets = [
        one.seconds
        for findings in edges.values()
        for name, one in findings.items()
        if name.startswith(TICKET)
    ]
    return min(tickets) / 2 if tickets else 0.0


def _transfer(
    edge: EdgeSetting, findings: Findings, message_s: float, block_size: int
) -> tuple[TransferProfile, Fitted]:
    """Until blocks are verified: without the way back of the news, which is a message."""
    transfers = [
        MeasuredTransfer(int(name) * block_size, max(one.seconds - message_s, 1e-9))
        for name, one in findings.items()
        if name.isdecimal()
    ]
    model, error = fit_transfer(transfers)
    profile = TransferProfile(edge.transport, edge.source, edge.target, model, error)
    worst = tuple(worst_points([one.name for one in transfers], error))
    return profile, Fitted(f"transfer over {edge.name}", len(transfers), error, worst)


def _disturbance(name: str, findings: Findings) -> list[str]:
    """Points of which no run had its core to itself."""
    disturbed = [one.waited for one in findings.values() if one.waited > _ACCEPTED_WAITING]
    if not disturbed:
        return []
    return [
        f"engine {name}: other processes took up to {max(disturbed):.0%} of its cores during "
        f"{len(disturbed)} of {len(findings)} points: measure again with nothing else running"
    ]


def _warnings(name: str, findings: Findings, fitted: Fitted) -> list[str]:
    said = []
    if warning := fit_warning(fitted.error):
        said.append(f"{fitted.name}: {warning}")
    for name_of_first, first in findings.items():
        point = name_of_first.removeprefix(FIRST)
        if name_of_first.startswith(FIRST) and point in findings:
            off = first.seconds / findings[point].seconds - 1
            said.append(
                f"engine {name}: {point} took {off:+.0%} at first, then not again: something "
                "disturbed the machine; the middle of three times counts"
            )
    for again, found in findings.items():
        before = findings.get(again.removeprefix(AGAIN))
        if not again.startswith(AGAIN) or before is None:
            continue
        drift = found.seconds / before.seconds - 1
        if abs(drift) > _ACCEPTED_DRIFT:
            said.append(
                f"engine {name}: {before.name} took {drift:+.0%} at the end: the machine changed "
                "its speed meanwhile, or something else ran"
            )
    return said
