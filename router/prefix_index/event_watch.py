"""Which workers tell nothing of their caches though they must have something to tell.

Pure: the clock is passed in. A worker that answers a prompt has cached its blocks; its events come
before the answer, however long that took.
"""

from __future__ import annotations

from dataclasses import dataclass

from router.placement import WorkerId

# So many answers, over at least so many seconds, without one event between them.
SILENT_AFTER_ANSWERS = 16
SILENT_AFTER_S = 1.0


@dataclass(slots=True)
class _Silence:
    answers: int
    since: float


class EventWatch:
    def __init__(self) -> None:
        self._quiet: dict[WorkerId, _Silence] = {}

    def heard(self, worker: WorkerId) -> None:
        """It told of its cache."""
        self._quiet.pop(worker, None)

    def answered(self, worker: WorkerId, now: float) -> bool:
        """It answered a prompt with blocks that it never told of. Tells whether it is silent."""
        quiet = self._quiet.setdefault(worker, _Silence(0, now))
        quiet.answers += 1
        return quiet.answers >= SILENT_AFTER_ANSWERS and now - quiet.since >= SILENT_AFTER_S

    def forget(self, worker: WorkerId) -> None:
        self._quiet.pop(worker, None)
