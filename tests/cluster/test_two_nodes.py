"""Where Ray puts the ranks of a replica when there are two nodes of two CPUs each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

PROGRAM = Path(__file__).with_name("place_on_two_nodes.py")


def test_ranks_stay_together_where_they_can_and_a_replica_is_placed_as_a_whole() -> None:
    # A test before may have started a Ray of its own, which is told to keep to one node.
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ended = subprocess.run(
        [sys.executable, "-P", str(PROGRAM)], env=clean, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told.pop("all or none").startswith("no room for decode-0 after 3 s: it needs CPU 1.8")
    # Of each rank of each replica: on which of its nodes it is.
    assert told == {
        "together": [[0, 0]],
        "tensor ranks beside it": [[0, 0]],
        "stages apart": [[0, 0, 1, 1]],
        "no node holds three": [[0, 0, 1]],
        "half of each node": [[0, 1]],
        "nothing together is left": [[0, 1]],
    }
