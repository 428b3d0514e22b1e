"""Reads a line that starts a script of ours as the script would, and stops there.

The script is executed up to the reading of its arguments, so what it imports is there, and options
and values are such as it takes. Does not cover: what it does then.
"""

from __future__ import annotations

import argparse
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import typer

# Its options go on to pytest.
_PASSES_ON = {"gpu-check"}


class _LineRead(Exception):
    """The script would begin now."""


def read_script_line(script: Path, words: Sequence[str]) -> None:
    """Raises what the script would end with if it refuses ``words``, or can't be executed."""
    if "bash" in script.read_text(encoding="utf-8").partition("\n")[0]:
        subprocess.run(["bash", "-n", str(script)], check=True)
    elif script.name in _PASSES_ON:
        runpy.run_path(str(script))
    else:
        _execute(script, words)


def _execute(script: Path, words: Sequence[str]) -> None:
    threads = torch.get_num_threads()
    try:
        with (
            mock.patch.object(sys, "argv", [str(script), *words]),
            mock.patch.object(sys, "path", [str(script.parent), *sys.path]),
            mock.patch.object(argparse.ArgumentParser, "parse_args", _read_by_argparse),
            mock.patch.object(typer, "run", _read_by_typer),
        ):
            runpy.run_path(str(script), run_name="__main__")
    except _LineRead:
        return
    finally:
        torch.set_num_threads(threads)
    raise AssertionError(f"{script} reads no arguments")


def _read_by_argparse(parser: argparse.ArgumentParser) -> None:
    _, unknown = parser.parse_known_args()
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    raise _LineRead


def _read_by_typer(function: Callable[..., Any]) -> None:
    app = typer.Typer(add_completion=False)
    app.command()(function)
    command = without_effect(typer.main.get_command(app))
    command.main(sys.argv[1:], standalone_mode=False)
    raise _LineRead


def without_effect(command: Any) -> Any:
    """It and the commands below it take the same words and do nothing."""
    if command.callback is not None:
        command.callback = lambda **values: None
    for below in getattr(command, "commands", {}).values():
        without_effect(below)
    return command
