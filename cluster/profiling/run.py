"""`crossdock profile` from a subject to a profile: what is missing is measured, the rest reused.

Everything runs in processes of its own, one measurement after the other. No torch in here.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from cluster.profiling.assemble import (
    SERVING,
    TICKET,
    WAY,
    ProfileResult,
    assemble,
)
from cluster.profiling.child import Child
from cluster.profiling.edges import EdgeFailed, measure_edges
from cluster.profiling.machine import visible_gpus
from cluster.profiling.neighbours import NAMES, NeighbourWork
from cluster.profiling.overhead import AROUND, BESIDE, SERVED_STEP
from cluster.profiling.partial_file import PartialFile, partial_path
from cluster.profiling.placing import Cores, Placing, place, place_edge
from cluster.profiling.serving import ServingPlan, measure_serving
from cluster.profiling.subject import Subject
from cluster.profiling.tasks import EdgeEnd, EdgeTask, EngineTask, Found
from cluster.progress import Progress, ProgressBar
from core.errors import CrossdockError
from core.request import Role
from core.shards import ParallelShape
from core.worker_settings import WorkerSettings
from tuner.profile.points import EdgeSetting, EngineSetting, StepPoint
from tuner.profile.profile_file import check_profile_path, write_profile
from tuner.profile.store import store_profile

# Of the time that a point takes; for the progress bar.
_LOADING = 25.0
_SERVING = 60.0
_FIRST_TOKENS = 15
# Findings of an earlier run that are older (seconds) are told of in the profile's warnings.
_OLD_S = 3600.0


@dataclass(slots=True)
class _Run:
    """``failed``: ways of blocks that do not work here, and why."""

    subject: Subject
    partial: PartialFile
    bar: ProgressBar = field(init=False)
    failed: dict[EdgeSetting, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bar = ProgressBar(self._work())

    def engine(self, setting: EngineSetting) -> None:
        """Measures what is missing of one replica."""
        section = f"engine {setting.name}"
        points = self._missing(setting)
        overhead = self._missing_overhead(setting)
        if not points and not overhead:
            return
        self.bar.advance(_LOADING, f"{section}: loading")
        task = self._task(setting, points, overhead)
        gpu = task.rank_gpus[0] if task.rank_gpus else None
        with Child("cluster.profiling.engine_child", task, setting.threads, gpu) as child:
            for said in child.lines():
                found = Found(**said)
                self.partial.add(section, found)
                self.bar.advance(1 / setting.core_share, f"{section}: {found.name}")

    def edges(self) -> None:
        """Measures ways that are missing."""
        missing: dict[tuple[ParallelShape, ParallelShape], list[EdgeSetting]] = {}
        for edge in self.subject.edges:
            if not self._is_measured(edge):
                missing.setdefault((edge.source, edge.target), []).append(edge)
        for (source, target), edges in missing.items():
            self._measure_edges(source, target, edges)

    def _measure_edges(
        self, source: ParallelShape, target: ParallelShape, edges: Sequence[EdgeSetting]
    ) -> None:
        """All transports between two shapes."""
        by_transport = {edge.transport: edge for edge in edges}
        self.bar.advance(_LOADING, f"transfers, {source} to {target}: loading")
        for said in measure_edges(self._edge_task(source, target, edges)):
            edge = by_transport[said.transport]
            if isinstance(said, EdgeFailed):
                self.failed[edge] = said.failed
                continue
            ticket = f"{TICKET} {said.blocks}"
            self.partial.add(edge.name, Found(ticket, said.ticket_s, said.runs))
            self.partial.add(edge.name, Found(str(said.blocks), said.verified_s, said.runs))
            self.bar.advance(1.0, f"transfers over {edge.name}: {said.blocks} blocks")

    def serving(self) -> None:
        """Measures router, doors, the worker's own event loop and its neighbours, if they are
        missing; of other engines that are served, their steps."""
        others = self.subject.served_engines[1:]
        plan = self._serving_plan(_FIRST_TOKENS)
        self._serve(SERVING, self._served_workers(max(plan.batches)), plan)
        for setting in others:
            plan = self._serving_plan(1)
            worker = self._light_worker(setting, self._place(setting)[0].ranks[0])
            alone = [replace(worker, max_num_seqs=max(plan.batches))]
            self._serve(_served_section(self.subject, setting), alone, plan)

    def _serving_plan(self, first_tokens: int) -> ServingPlan:
        subject, steps = self.subject, self.subject.served_steps
        work = NeighbourWork(subject.served_prompt, steps, subject.patience.least)
        return ServingPlan(subject.vocab_size, first_tokens, subject.served_batches, work)

    def _serve(self, section: str, workers: Sequence[WorkerSettings], plan: ServingPlan) -> None:
        """The first of ``workers``, in company of the others."""
        neighbours = NAMES if len(workers) > 1 else ()
        of_batches = [f"{what}{batch}" for what in (BESIDE, SERVED_STEP) for batch in plan.batches]
        names = [WAY, *of_batches, *neighbours]
        if all(self.partial.get(section, name) for name in names):
            return
        self.bar.advance(0.0, f"{section}: loading")
        times = measure_serving(workers, plan)
        for what, by_batch in ((BESIDE, times.beside_step_s), (SERVED_STEP, times.step_s)):
            for batch, seconds in by_batch.items():
                self.partial.add(section, Found(f"{what}{batch}", seconds, plan.work.answer_tokens))
        for name, seconds in times.neighbours_s.items():
            self.partial.add(section, Found(name, seconds, plan.work.rounds))
        self.partial.add(section, Found(WAY, times.way_s, plan.runs))
        self.bar.advance(_SERVING / len(self.subject.served_engines), section)

    def result(self) -> ProfileResult:
        subject, partial = self.subject, self.partial
        return assemble(
            subject,
            {one: partial.section(f"engine {one.name}") for one in subject.engines},
            {edge: partial.section(edge.name) for edge in subject.edges if self._is_measured(edge)},
            {one: partial.section(_served_section(subject, one)) for one in subject.served_engines},
            datetime.now(UTC).isoformat(timespec="seconds"),
            self.failed,
        )

    def _work(self) -> float:
        """For the progress bar: what is still to be done."""
        total = 0.0
        for setting in self.subject.engines:
            missing = len(self._missing(setting)) + len(self._missing_overhead(setting))
            total += missing / setting.core_share + _LOADING * (missing > 0)
        pairs = {
            (edge.source, edge.target): len(self.subject.transfer_blocks(edge))
            for edge in self.subject.edges
            if not self._is_measured(edge)
        }
        transports = len(self.subject.transports())
        total += sum(_LOADING + transports * batches for batches in pairs.values())
        return total + _SERVING

    def _is_measured(self, edge: EdgeSetting) -> bool:
        blocks = self.subject.transfer_blocks(edge)
        return all(self.partial.get(edge.name, str(count)) is not None for count in blocks)

    def _missing(self, setting: EngineSetting) -> list[StepPoint]:
        """In an order that has nothing to do with their sizes: what drifts hits all alike."""
        section = f"engine {setting.name}"
        points = list(self.subject.points(setting))
        random.Random(section).shuffle(points)
        return [point for point in points if self.partial.get(section, point.name) is None]

    def _missing_overhead(self, setting: EngineSetting) -> tuple[int, ...]:
        if setting.shape.num_ranks > 1:
            return ()
        section = f"engine {setting.name}"
        batches = self.subject.overhead_batches
        return tuple(b for b in batches if self.partial.get(section, f"{AROUND}{b}") is None)

    def _task(
        self, setting: EngineSetting, points: Sequence[StepPoint], overhead: tuple[int, ...]
    ) -> EngineTask:
        placing, gpus = self._place(setting)
        return EngineTask(
            worker=self.subject.worker(setting, placing.ranks[0]),
            rank_cores=placing.ranks,
            company=placing.company,
            points=tuple(points),
            patience=self.subject.patience_for(setting),
            overhead_batches=overhead,
            overhead_steps=self.subject.overhead_steps,
            shares_cores=setting.core_share < 1,
            rank_gpus=gpus,
        )

    def _place(self, setting: EngineSetting) -> tuple[Placing, tuple[str, ...]]:
        """Cores and GPUs of each rank: where GPUs compute, nothing is bound to cores."""
        count = setting.shape.num_ranks
        if self.subject.device == "cuda":
            return Placing(((),) * count, ()), tuple(visible_gpus()[:count])
        return place(setting, self.subject.cores), ()

    def _edge_task(
        self, source: ParallelShape, target: ParallelShape, edges: Sequence[EdgeSetting]
    ) -> EdgeTask:
        subject = self.subject
        gpus = subject.edge_gpus(edges[0])
        prefill: tuple[Cores, ...] = ((),) * source.num_ranks
        decode: tuple[Cores, ...] = ((),) * target.num_ranks
        if not gpus:
            threads = subject.engines[0].threads
            prefill, decode = place_edge(source, target, threads, subject.cores)
        return EdgeTask(
            layout=subject.layout,
            device=subject.device,
            transports=tuple(edge.transport for edge in edges),
            num_blocks=subject.edge_blocks,
            prefill=EdgeEnd(source, prefill, gpus[: source.num_ranks]),
            decode=EdgeEnd(target, decode, gpus[source.num_ranks :]),
            batches=subject.transfer_blocks(edges[0]),
            patience=replace(subject.patience, least=5, most=30),
        )

    def _served_workers(self, max_num_seqs: int) -> list[WorkerSettings]:
        """One with the fewest threads that are measured, and its neighbours on all other cores."""
        setting = self.subject.engines[0]
        beside = [s for s in self.subject.engines if replace(s, company=0) == setting]
        placing, _ = self._place(max(beside, key=lambda s: s.company))
        cores_of_each = (placing.ranks[0], *placing.company)
        workers = [self._light_worker(setting, cores) for cores in cores_of_each]
        return [replace(worker, max_num_seqs=max_num_seqs) for worker in workers]

    def _light_worker(self, setting: EngineSetting, cores: tuple[int, ...]) -> WorkerSettings:
        """With a pool for its own few sequences."""
        worker = self.subject.worker(setting, cores)
        return replace(worker, role=Role.MIXED, num_blocks=min(worker.num_blocks, 1024))


def _served_section(subject: Subject, setting: EngineSetting) -> str:
    return SERVING if setting == subject.engines[0] else f"{SERVING} {setting.name}"


def measure_profile(subject: Subject, out: Path, progress: Progress) -> ProfileResult:
    """Measures, fits, writes ``out`` and keeps a copy for later commands.

    What was measured of the same subject before an interruption is not measured again. Raises
    ``CrossdockError``; then, and when interrupted, all findings so far stay in a file beside
    ``out``.
    """
    check_profile_path(out)
    path = partial_path(out)
    with PartialFile(path, subject.identity) as partial:
        warnings = _resumed(partial, path, progress)
        run = _Run(subject, partial)
        try:
            for setting in subject.engines:
                run.engine(setting)
            run.edges()
            run.serving()
        finally:
            run.bar.close()
        result = run.result()
        result = replace(result, warnings=(*warnings, *result.warnings))
        write_profile(result.profile, out)
        partial.remove()
    _keep(result, progress)
    return result


def _resumed(partial: PartialFile, path: Path, progress: Progress) -> tuple[str, ...]:
    """Says what is there already. Returns a warning if it is old."""
    if not len(partial):
        return ()
    age = f"{partial.age_s / 3600:.1f} h" if partial.age_s > _OLD_S else f"{partial.age_s:.0f} s"
    progress.note(
        f"{len(partial)} points are there already, from {path}; the oldest was measured {age} ago"
    )
    if partial.age_s <= _OLD_S:
        return ()
    return (
        f"{len(partial)} points are of an earlier run, up to {age} old: if the machine was busier "
        "or otherwise different then, the fits mix both; measure anew to be sure",
    )


def _keep(result: ProfileResult, progress: Progress) -> None:
    """The profile is written: that a later command has to be told where is no failure."""
    try:
        store_profile(result.profile)
    except (CrossdockError, OSError) as error:
        progress.note(f"no copy is kept for `crossdock tune`: {error}")
