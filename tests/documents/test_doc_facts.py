"""What the documents name within their text is there: files, commands with their options, keys of a
cluster.yaml, metrics, values of the chart."""

from __future__ import annotations

import functools
import re
import shlex
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pydantic
import pytest
import typer.main
import yaml
from shown import DOCUMENTS, ROOT, code_within

from cluster.cli.main import new_app
from cluster.metric_table import TABLE as CONTROLLER
from core.config import ClusterSpec
from core.metric_spec import COMMON
from router.metrics.metric_table import TABLE as ROUTER
from worker.metric_table import TABLE as WORKER

FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir()}
SOURCES = {path.name for path in ROOT.rglob("*") if path.suffix in (".py", ".cpp", ".h", ".proto")}
PATH = re.compile(r"[\w./-]+\.(py|proto|cpp|h|yaml|json|md)|(?:[\w-]+/)+[\w*.-]*")
KEY = re.compile(r"[a-z_]+(\.[a-zA-Z_*]+)+")
METRIC = re.compile(r"crossdock_[a-z0-9_]+")
# Ray's resources, which the chart gives the pools.
RESOURCES = {"crossdock_prefill", "crossdock_decode"}
# Files that a reader of the documents makes or has, or that belong to others.
THEIRS = {
    *("cluster.yaml", "values.yaml", "cluster-KIND.yaml", "values-KIND.yaml"),
    *("config.json", "tokenizer.json", "profile.json", "profile.json.partial.jsonl"),
}
# Options of programs that are not ours.
FOREIGN = {"-v", "--migration-limit"}


each_document = pytest.mark.parametrize(
    "document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT))
)


def said(pattern: re.Pattern[str], document: Path) -> set[str]:
    return {code for code in code_within(document) if pattern.fullmatch(code)}


# Files


def is_there(document: Path, name: str) -> bool:
    if "*" in name:
        return any(ROOT.glob(name))
    if "/" not in name:
        return name in SOURCES | THEIRS or (document.parent / name).exists()
    places = (ROOT, document.parent, ROOT / "protos")
    return any((place / name).exists() for place in places)


@each_document
def test_files_that_are_named_are_there(document: Path) -> None:
    ours = {n for n in said(PATH, document) if "/" not in n or n.split("/")[0] in FOLDERS}
    assert not {name for name in ours if not is_there(document, name)}


# Commands


@functools.cache
def app() -> Any:
    return typer.main.get_command(new_app())


def commands_below(command: click.Command) -> Iterator[click.Command]:
    yield command
    for below in getattr(command, "commands", {}).values():
        yield from commands_below(below)


def options_of(command: click.Command) -> set[str]:
    return {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}


def check_command(words: list[str]) -> None:
    command = app()
    for word in words:
        if word.startswith("-"):
            assert word.partition("=")[0] in options_of(command), word
        elif getattr(command, "commands", None):
            assert word in command.commands, word
            command = command.commands[word]


@each_document
def test_commands_that_are_named_are_there(document: Path) -> None:
    for code in said(re.compile("crossdock [a-z].*"), document):
        check_command(shlex.split(code)[1:])


@each_document
def test_options_that_are_named_are_those_of_some_command(document: Path) -> None:
    codes = said(re.compile(r"--?[a-z][a-z-]*( .*)?"), document)
    named = {name for code in codes for name in re.findall(r"(?<!\S)--?[a-z][a-z-]*", code)}
    known = {option for command in commands_below(app()) for option in options_of(command)}
    scripts = (ROOT / "scripts" / "test").read_text()
    assert not {name for name in named - known - FOREIGN if name not in scripts}


# Keys


def sections(model: Any, part: str) -> Iterator[Any]:
    """Of what the key ``part`` holds: models in which the next part is looked for."""
    if typing.get_origin(model) in (types.UnionType, typing.Union):
        for member in typing.get_args(model):
            yield from sections(member, part)
    elif typing.get_origin(model) is dict:
        # A name of the user's own; documents write it as NAME or give an example.
        yield typing.get_args(model)[1]
    elif isinstance(model, type) and issubclass(model, pydantic.BaseModel):
        wanted = model.model_fields if part == "*" else {part} & model.model_fields.keys()
        for name in wanted:
            yield model.model_fields[name].annotation


def is_key_of_cluster(code: str) -> bool:
    found: list[Any] = [ClusterSpec]
    for part in code.split("."):
        found = [below for model in found for below in sections(model, part)]
    return bool(found)


@functools.cache
def values_of_chart() -> Any:
    return yaml.safe_load((ROOT / "helm/crossdock/values.yaml").read_text())


def is_value_of_chart(code: str) -> bool:
    first, _, rest = code.partition(".")
    if first == "cluster":
        return is_key_of_cluster(rest)
    found = values_of_chart()
    for part in code.split("."):
        if not isinstance(found, dict) or part not in found:
            return False
        found = found[part]
    return True


def is_module(code: str) -> bool:
    folder, *names = code.split(".")
    return not names or any(
        (ROOT / base / folder / f"{names[0]}{end}").exists()
        for base in ("", "protos")
        for end in ("", ".py")
    )


@each_document
def test_keys_that_are_named_are_those_of_a_cluster_or_of_the_chart(document: Path) -> None:
    first = ClusterSpec.model_fields.keys() | FOLDERS | {"cluster"}
    named = {code for code in said(KEY, document) - THEIRS if code.split(".")[0] in first}
    keys = {code for code in named if not PATH.fullmatch(code)}
    tests = (is_key_of_cluster, is_value_of_chart, is_module)
    assert not {code for code in keys if not any(known(code) for known in tests)}


# Metrics


@each_document
def test_metrics_that_are_named_are_told(document: Path) -> None:
    specs = (*ROUTER, *WORKER, *CONTROLLER, *COMMON)
    known = {s.family for s in specs} | {sample for s in specs for sample in s.samples} | RESOURCES
    named = {name for code in code_within(document) for name in METRIC.findall(code)}
    prefixes = {n for n in named if n.endswith("_") and any(k.startswith(n) for k in known)}
    assert not named - known - prefixes


def test_a_slip_would_be_noticed() -> None:
    assert not is_there(ROOT / "README.md", "router/polcy.py")
    assert not is_key_of_cluster("pools.prefil.replicas")
    assert not is_value_of_chart("router.replicaz")
    assert is_key_of_cluster("pools.*.resources")
    with pytest.raises(AssertionError):
        check_command(["serve", "--prefil", "1"])
