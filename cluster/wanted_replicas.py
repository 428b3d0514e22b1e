"""The numbers of replicas that a config file wants, followed while the cluster runs.

On Kubernetes the file changes with `helm upgrade`, and nodes come or go with it a little earlier or
later: a number that can't be had yet is tried again until it can, or the file wants another.
Numbers that operators set meanwhile stay until the file changes.
Does not cover: other settings, which take a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from cluster.pool_messages import ScaleTo
from cluster.spec_file import read_spec
from cluster.wanted import Wanted
from core.config import ClusterSpec
from core.errors import CrossdockError, InvalidField
from core.pool_config import PoolsSpec

PAUSE_S = 5.0


class WantedReplicas:
    """What of the file at ``path`` differs from what was adopted last, ``spec`` at first."""

    def __init__(self, path: Path, spec: ClusterSpec) -> None:
        self._path = path
        self._spec = spec
        self._adopted = _wanted(spec)
        self._said = ""

    def look(self) -> Wanted | None:
        """Numbers to adopt; None if there is nothing new. Raises ``InvalidField``."""
        spec = read_spec(self._path)
        if _apart_from_replicas(spec) != _apart_from_replicas(self._spec):
            fix = "has changed in more than the numbers of replicas, which takes a restart"
            raise InvalidField("config", str(self._path), fix)
        wanted = _wanted(spec)
        return None if wanted == self._adopted else wanted

    async def follow(
        self, change: Callable[[ScaleTo], Awaitable[None]], note: Callable[[str], None]
    ) -> None:
        """Never returns. ``note`` is told each problem once."""
        while True:
            await asyncio.sleep(PAUSE_S)
            try:
                await self._adopt(change, note)
            except CrossdockError as error:
                if error.message != self._said:
                    note(f"the config's replicas are not taken over yet: {error.message}")
                self._said = error.message

    async def _adopt(
        self, change: Callable[[ScaleTo], Awaitable[None]], note: Callable[[str], None]
    ) -> None:
        wanted = self.look()
        if wanted is None:
            return
        await change(ScaleTo(wanted.prefill, wanted.decode))
        note(f"scaling to {wanted.prefill}P:{wanted.decode}D, as the config wants now")
        self._adopted = wanted
        self._said = ""


def _wanted(spec: ClusterSpec) -> Wanted:
    return Wanted(spec.pools.prefill.replicas, spec.pools.decode.replicas)


def _apart_from_replicas(spec: ClusterSpec) -> ClusterSpec:
    pools = PoolsSpec(
        prefill=spec.pools.prefill.model_copy(update={"replicas": 1}),
        decode=spec.pools.decode.model_copy(update={"replicas": 1}),
    )
    return spec.model_copy(update={"pools": pools, "tls": None})
