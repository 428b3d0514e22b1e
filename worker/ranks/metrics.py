"""What a rank that does not lead its replica tells Prometheus: its process.

Does not cover: all else of a replica, which its leading rank tells (``worker.metrics``).
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from core.worker_settings import RankSettings
from wire.exposition import Labelled


class RankMetrics:
    """Samples have the label ``rank`` beside those of the worker."""

    def __init__(self, settings: RankSettings) -> None:
        own = CollectorRegistry()
        ProcessCollector(registry=own)
        worker = settings.worker
        labels = {"worker": worker.worker, "role": worker.role.value, "rank": str(settings.rank)}
        self._registry = CollectorRegistry()
        self._registry.register(Labelled(own, labels))

    async def render(self) -> bytes:
        """The text of a scrape."""
        return generate_latest(self._registry)
