"""What the documents show can be typed: commands parse, files exist, YAML is accepted, links lead
somewhere. README's commands are run as well (test_readme)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from typer.exceptions import TyperException

from cluster.cli.main import new_app
from core.config import make_spec

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "ARCHITECTURE.md", *(ROOT / "docs").glob("*.md")])
# Programs that are not ours: named here so that a slip in a name is noticed.
OTHERS = {"vllm", "pip", "curl", "kubectl", "helm", "ray", "docker", "cp", "export"}


def blocks(language: str) -> Iterator[tuple[Path, str]]:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for block in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL):
            yield document, block


def shell_lines() -> list[tuple[str, str]]:
    return [
        (document.name, line.split(" #")[0].strip())
        for document, block in blocks("sh")
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip() and not line.lstrip().startswith("#")
    ]


def without_effect(command: Any) -> Any:
    """It and the commands below it take the same words and do nothing."""
    if command.callback is not None:
        command.callback = lambda **values: None
    for below in getattr(command, "commands", {}).values():
        without_effect(below)
    return command


def parse(words: list[str]) -> None:
    command = without_effect(typer.main.get_command(new_app()))
    command.main(list(words), "crossdock", standalone_mode=False)


@pytest.mark.parametrize(("document", "line"), shell_lines())
def test_a_command_that_is_shown_can_be_typed(document: str, line: str) -> None:
    words = [word for word in shlex.split(line) if word != "…"]
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    program = words[0]
    if program.rpartition("/")[2] == "crossdock":
        parse(words[1:])
    elif program in ("python", ".venv/bin/python"):
        assert words[1] == "-m" or (ROOT / words[1]).is_file()
    elif "/" in program:
        assert (ROOT / program).is_file()
    else:
        assert program in OTHERS
    if words[:2] == ["ray", "exec"]:
        ours, *rest = shlex.split(words[3])
        assert ours == "crossdock"
        parse(rest)


@pytest.mark.parametrize("block", [block for _, block in blocks("yaml")])
def test_a_cluster_that_is_shown_is_accepted(block: str) -> None:
    settings = yaml.safe_load(block)
    if "pools" in settings:
        make_spec(settings)


def test_a_slip_would_be_noticed() -> None:
    for line in ("serv --prefill 1", "serve --prefil 1", "scale --prefill many", "bench engin"):
        with pytest.raises(TyperException):
            parse(line.split())


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def test_every_document_is_reached_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for document in (ROOT / "docs").glob("*.md"):
        assert f"docs/{document.name}" in readme, document.name
