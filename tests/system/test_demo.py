"""The demo, as `scripts/demo` runs it: a cluster for one question."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.timeout(200)]

DEMO = Path(__file__).resolve().parent.parent.parent / "examples" / "demo.py"


def test_the_demo_answers_and_shows_what_was_handed_off(smollm2: Path) -> None:
    command = [sys.executable, str(DEMO), "What is a warehouse?", "--model", str(smollm2)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if " " in line)
    assert (told["ratio"], told["transport"]) == ("1 prefill : 1 decode", "shm")
    assert not told["KV"].startswith("shipped 0 bytes")
