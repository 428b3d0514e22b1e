"""Which daemons a Ray of our own starts: only those that somebody needs.

Its autoscaler has no other hosts to ask for, and its reader of logs sends none, since the driver
wants none. They cost two seconds of a core at each start and 160 MiB while it runs. `ray start`
can leave them out (``--no-monitor``, ``--include-log-monitor=false``), ``ray.init`` can't.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

_UNNEEDED = ("start_monitor", "start_log_monitor")


@contextlib.contextmanager
def needed_daemons_only() -> Iterator[None]:
    """While entered, ``ray.init`` leaves the others out. A Ray that starts them by other methods
    than ours still works, with all its daemons."""
    from ray._private.node import Node

    with contextlib.ExitStack() as restored:
        for name in _UNNEEDED:
            if hasattr(Node, name):
                restored.callback(setattr, Node, name, getattr(Node, name))
                setattr(Node, name, _start_nothing)
        yield


def _start_nothing(node: object) -> None:
    del node
