"""A replica that computes for as long as another one is measured.

    python -m cluster.profiling.company_child

Reads a ``CompanyTask``, then computes prompts or decodes, as the last line of its stdin tells it,
and says when it begins to; ends with its stdin.
"""

from __future__ import annotations

import queue

from cluster.process_binding import bind_process
from cluster.profiling.in_child import end_with_stdin, leave, run_task, say
from cluster.profiling.tasks import DECODING, PREFILLING, CompanyTask
from tuner.profile.points import Chunk, StepPoint

# Ordinary work of each kind.
_WORK = {
    PREFILLING: StepPoint((Chunk(256, 256, draws=True),)),
    # Few sequences: the weights are read all the time, which others feel most.
    DECODING: StepPoint(decodes=2, context=512),
}
# Then from the start again: contexts stay as long as they are said to be.
_RUNS = 4


def keep_company(task: CompanyTask) -> None:
    wanted: queue.SimpleQueue[str] = queue.SimpleQueue()
    end_with_stdin(wanted.put)
    bind_process(task.worker.cores, task.worker.threads)
    # Imported only now: torch reads the affinity of the process when it is imported.
    from cluster.profiling.step_runs import StepRuns
    from cluster.worker_parts import load_leading_rank, make_replica

    rank = load_leading_rank(task.worker, None)
    runs = StepRuns(rank.model, make_replica(task.worker, rank.model, None).executor)
    longest = rank.model.config.max_positions
    while True:
        work = _shortened(_WORK[wanted.get()], longest)
        say(computing=True)
        while wanted.empty():
            # Who is measured waits for the change: a whole prompt, not four of them.
            runs.until(lambda: not wanted.empty(), work, _RUNS)


def _shortened(point: StepPoint, max_positions: int) -> StepPoint:
    """For models with sequences shorter than that."""
    quarter = max(1, (max_positions - _RUNS) // 4)
    chunks = tuple(
        Chunk(min(c.start, quarter), min(c.count, quarter), c.draws) for c in point.chunks
    )
    return StepPoint(chunks, point.decodes, min(point.context, quarter))


if __name__ == "__main__":
    leave(run_task(CompanyTask, keep_company))
