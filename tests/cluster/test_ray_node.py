"""A node of our own in somebody's Ray, from its start to its end; a stand-in for Ray's command."""

from __future__ import annotations

import asyncio
import itertools
import socket
import sys
from collections.abc import Iterator, Sequence

import pytest

from cluster.ray_node import RayNode
from core.errors import Unavailable

pytestmark = pytest.mark.processes


class StandIn(RayNode):
    """Runs another program in the place of Ray's."""

    code = ""

    def command(self) -> Sequence[str]:
        return (sys.executable, "-c", self.code)


STARTED = "print('This command will now block forever', flush=True)\n"
WAITING = "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(0))\n"


@pytest.fixture
def head() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def node(head: str, code: str) -> StandIn:
    made = StandIn(head)
    made.code = code
    return made


async def test_it_is_started_when_it_says_so_and_ends_when_it_is_told(head: str) -> None:
    started = node(head, WAITING + STARTED + "signal.pause()")
    await started.start(patience_s=0.0)
    await started.stop()
    assert await started.wait_closed() == 0


async def test_why_it_can_not_join_is_told(head: str) -> None:
    failing = node(head, "raise SystemExit('version mismatch: 2.60.0 and 2.59.0')")
    with pytest.raises(Unavailable, match=r"no Ray node could join.*version mismatch"):
        await failing.start(patience_s=0.0)
    assert await failing.wait_closed() == 1


async def test_its_end_is_noticed(head: str) -> None:
    dying = node(head, STARTED + "raise SystemExit(7)")
    await dying.start(patience_s=0.0)
    assert await asyncio.wait_for(dying.wait_closed(), 10) == 7
    await dying.stop()


async def test_a_head_that_does_not_come_is_told_and_one_that_comes_late_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.ray_node._PAUSE_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(Unavailable, match="no Ray cluster answers"):
        await node(address, STARTED).start(patience_s=0.0)
    patient = node(address, STARTED)
    late = asyncio.create_task(patient.start(patience_s=60.0))
    await asyncio.sleep(0)
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        await late
    await patient.stop()


def test_it_offers_nothing_and_ends_with_its_parent() -> None:
    command = RayNode("head:6379", "10.0.0.3").command()
    options = dict(itertools.pairwise(command))
    assert (options["--num-cpus"], options["--num-gpus"]) == ("0", "0")
    assert (options["--address"], options["--node-ip-address"]) == ("head:6379", "10.0.0.3")
    assert "cluster.ray_node_child" in command
