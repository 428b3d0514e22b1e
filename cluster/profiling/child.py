"""Starts a measuring process and reads what it says, line by line. No torch in here."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from pydantic import TypeAdapter

from cluster.plan import thread_environment
from core.errors import InternalError

_END_LIMIT_S = 30.0


class Child:
    """A process that runs ``module`` with one task on its stdin, which stays open while it works:
    a child whose parent is gone finds it closed and ends."""

    def __init__(self, module: str, task: object, threads: int, gpu: str | None = None) -> None:
        """``gpu``: the only one that it sees; None: as we do."""
        self._module = module
        # -P: a file in the current directory must not hide our modules.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | thread_environment(threads) | _only(gpu),
            # Ctrl-C is for the command, which ends it.
            process_group=0,
        )
        self.tell(TypeAdapter(type(task)).dump_json(task).decode())

    def tell(self, line: str) -> None:
        """Raises ``InternalError`` if the child has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._fail("")

    def hear(self) -> dict[str, Any]:
        """The next line. Raises ``InternalError`` with the child's words if it failed."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            said = json.loads(line)
        except ValueError:
            said = None
        if not isinstance(said, dict) or "reason" in said:
            self._fail(line)
        assert isinstance(said, dict)
        return said

    def lines(self) -> Iterator[dict[str, Any]]:
        """All until it says that it is done."""
        while "done" not in (said := self.hear()):
            yield said

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if error is not None:
            self._process.kill()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _fail(self, line: str) -> None:
        """Raises what the child said last, or how it ended."""
        try:
            error = TypeAdapter(dict[str, str]).validate_json(line)
            raise InternalError(error["message"], reason=error["reason"])
        except (ValueError, KeyError):
            code = self._wait()
        ended = f"signal {-code}" if code < 0 else f"exit code {code}"
        message = f"{self._module}, a process that measures, ended with {ended}"
        raise InternalError(message, reason="PROFILE_PROCESS_ENDED") from None

    def _wait(self) -> int:
        try:
            return self._process.wait(_END_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def _only(gpu: str | None) -> dict[str, str]:
    return {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
