"""The process that measures one replica: its leading rank. It starts the others, and its company.

    python -m cluster.profiling.engine_child

Reads an ``EngineTask``; says each finding, how many bytes of KV a GPU still holds, the parts of a
step around the model, and whether the machine drifted meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from cluster.process_binding import bind_process
from cluster.profiling.child import Child
from cluster.profiling.in_child import end_with_stdin, leave, run_task, say
from cluster.profiling.tasks import (
    AGAIN,
    DECODING,
    FIRST,
    PREFILLING,
    CompanyTask,
    EngineTask,
    FollowerTask,
    Found,
)
from core.request import Role
from tuner.profile.fit import MeasuredStep
from tuner.profile.points import StepPoint
from tuner.profile.recheck import recheck

if TYPE_CHECKING:
    from cluster.profiling.step_runs import StepRun, StepRuns
    from engine.runner import LoadedModel
    from worker.ranks.group import RankGroup

# Of a companion's pool: what its own steps need.
_COMPANY_BLOCKS = 512
# A run that waited for its core for more than this share of its time is none of ours.
_DISTURBED = 0.03
# Most of what is free after loading; the rest is for what a step allocates.
_KV_SHARE_OF_GPU = 0.9


class Company:
    """Other replicas. They compute from the first `change` on, which returns when all do."""

    def __init__(self, members: Sequence[Child]) -> None:
        self._members = members
        self._mode = ""

    def change(self, mode: str) -> None:
        if mode == self._mode:
            return
        for member in self._members:
            member.tell(mode)
        for member in self._members:
            member.hear()
        self._mode = mode


def measure(task: EngineTask) -> None:
    end_with_stdin()
    worker = task.worker
    bind_process(task.rank_cores[0], worker.threads)
    # Imported only now: torch reads the affinity of the process when it is imported.
    from cluster.profiling.step_runs import StepRuns
    from cluster.worker_parts import load_leading_rank, make_replica
    from worker.ranks.group import RankGroup

    with contextlib.ExitStack() as others:
        group = RankGroup(worker) if worker.shape.num_ranks > 1 else None
        if group is not None:
            _start_followers(task, group, others)
        rank = load_leading_rank(worker, group)
        replica = make_replica(worker, rank.model, group)
        company = Company([others.enter_context(_companion(task, cores)) for cores in task.company])
        _say_memory(rank.model)
        runs = StepRuns(rank.model, replica.executor)
        measure_points(task, runs, company)
        _measure_overhead(task, rank.model, company)
        if group is not None:
            group.close()
        rank.close()


def measure_points(task: EngineTask, runs: StepRuns, company: Company) -> None:
    """Those that don't fit are measured again. The first one a second time at the end: a machine
    that drifts is found out."""

    def measure(point: StepPoint) -> Found:
        company.change(DECODING if point.chunks else PREFILLING)
        patience = task.patience
        measured = runs.measure(point, patience.least, patience.most, patience.seconds)
        return _found(point.name, measured if task.shares_cores else _undisturbed(measured))

    points = []
    for point in task.points:
        points.append((point, measure(point)))
        _say_found(points[-1][1])
    _recheck(points, measure)
    if len(points) > 1:
        first = task.points[0]
        _say_found(replace(measure(first), name=f"{AGAIN}{first.name}"))


def _recheck(
    points: Sequence[tuple[StepPoint, Found]], measure: Callable[[StepPoint], Found]
) -> None:
    """Says the believed times of points that were disturbed, and what was measured at first."""
    tried = [[found] for _, found in points]

    def seconds(index: int) -> float:
        tried[index].append(measure(points[index][0]))
        return tried[index][-1].seconds

    steps = [MeasuredStep(point.name, point.work, found.seconds) for point, found in points]
    for index, believed in recheck(steps, seconds):
        first = tried[index][0]
        _say_found(replace(first, name=f"{FIRST}{first.name}"))
        _say_found(next(found for found in tried[index] if found.seconds == believed))


def _found(name: str, runs: Sequence[StepRun]) -> Found:
    return Found(
        name,
        seconds=median(run.seconds for run in runs),
        runs=len(runs),
        waited=median(run.waited_s / run.seconds for run in runs),
    )


def _say_found(found: Found) -> None:
    say(**asdict(found))


def _undisturbed(measured: list[StepRun]) -> list[StepRun]:
    """Those in which no other process took the core; all if there is none."""
    usable = [run for run in measured if run.waited_s < _DISTURBED * run.seconds]
    return usable or measured


def _measure_overhead(task: EngineTask, model: LoadedModel, company: Company) -> None:
    """What the scheduler, booking and text take around a decode step, on the engine's thread."""
    if not task.overhead_batches:
        return
    from cluster.engine_bench.step_overhead import measure_step_overhead

    company.change(PREFILLING)
    folder = Path(task.worker.model_folder)
    for batch in task.overhead_batches:
        found = measure_step_overhead(model, folder, task.overhead_steps, batch)
        around = max(0.0, found.outside_s - found.arrays_and_sampling_s)
        say(name=f"around a step of {batch}", seconds=around, runs=task.overhead_steps)


def _say_memory(model: LoadedModel) -> None:
    import torch

    if model.pool.tensor.is_cuda:
        free, _ = torch.cuda.mem_get_info()
        size = model.pool.tensor.numel() * model.pool.tensor.element_size()
        say(name="kv bytes", seconds=int((free + size) * _KV_SHARE_OF_GPU), runs=1)


def _start_followers(task: EngineTask, group: RankGroup, others: contextlib.ExitStack) -> None:
    for index, cores in enumerate(task.rank_cores[1:]):
        follower = FollowerTask(
            task.worker, index + 1, cores, group.address.port, group.address.token.hex()
        )
        module = "cluster.profiling.follower_child"
        gpu = task.rank_gpus[index + 1] if task.rank_gpus else None
        others.enter_context(Child(module, follower, task.worker.threads, gpu))


def _companion(task: EngineTask, cores: tuple[int, ...]) -> Child:
    worker = replace(
        task.worker, cores=cores, threads=len(cores), role=Role.MIXED, num_blocks=_COMPANY_BLOCKS
    )
    return Child("cluster.profiling.company_child", CompanyTask(worker), len(cores))


if __name__ == "__main__":
    leave(run_task(EngineTask, measure))
