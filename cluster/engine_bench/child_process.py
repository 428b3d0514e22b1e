"""Starts the process that measures the engine, and reads what it found. No torch in here."""

from __future__ import annotations

import os
import subprocess
import sys

from pydantic import TypeAdapter, ValidationError

from cluster.engine_bench.child import ChildTask
from cluster.engine_bench.results import EngineResult
from cluster.plan import thread_environment
from core.errors import InternalError

_MODULE = "cluster.engine_bench.child"


def measure_in_child(task: ChildTask) -> EngineResult:
    """Returns when the process has ended. Raises ``InternalError`` with its words if it failed."""
    command = [sys.executable, "-P", "-m", _MODULE]
    environment = os.environ | thread_environment(task.threads)
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        # Ctrl-C is for the command, which ends it.
        process_group=0,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            # It ends when its stdin is closed, so that stays open while it works.
            process.stdin.write(TypeAdapter(ChildTask).dump_json(task).decode() + "\n")
            process.stdin.flush()
            said = process.stdout.read()
        except BrokenPipeError:
            said = ""
        except BaseException:
            process.kill()
            raise
    return read_result(said, process.returncode)


def read_result(said: str, exit_code: int) -> EngineResult:
    """``said``: the process's stdout. Raises ``InternalError`` unless it is a result."""
    if exit_code == 0:
        return TypeAdapter(EngineResult).validate_json(said)
    try:
        error = TypeAdapter(dict[str, str]).validate_json(said)
    except ValidationError:
        ended = f"signal {-exit_code}" if exit_code < 0 else f"exit code {exit_code}"
        message = f"the process that measured the engine ended with {ended}"
        raise InternalError(message, reason="BENCH_PROCESS_ENDED") from None
    raise InternalError(error["message"], reason=error["reason"])
