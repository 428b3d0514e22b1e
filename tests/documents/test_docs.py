"""What the documents show can be typed: every fenced block is of a language that something checks,
commands parse, scripts read their options, files exist, YAML is accepted, links lead somewhere.

README, QUICKSTART and OPERATIONS are carried out as well (test_readme), TUNING up to what takes
minutes (test_tuning). What they say within the text: test_doc_facts.
"""

from __future__ import annotations

import functools
import itertools
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import helm_python
import pytest
import typer.main
import yaml
from bench_lines import read_bench_line
from charts import CHART, render
from script_lines import read_script_line, without_effect
from shown import DOCUMENTS, ROOT, Block, blocks
from typer.exceptions import TyperException

from cluster.cli.main import new_app
from core.config import make_spec
from core.errors import InvalidField

# Programs that are not ours: named here so that a slip in a name is noticed.
OTHERS = {
    "vllm",
    "pip",
    "curl",
    "kubectl",
    "docker",
    "cp",
    "export",
    "guidellm",
    "aiperf",
    "openssl",
}
# What makes sure that a block of a language is true.
CHECKED_BY = {
    "sh": "test_a_command_that_is_shown_can_be_typed",
    "yaml": "test_yaml_that_is_shown_is_accepted",
    "python": "test_python_that_is_shown_is_run",
    "console": "test_what_is_generated_is_fresh",
    "mermaid": "test_what_is_generated_is_fresh",
    "text": "nothing: a picture",
}
# Of this repository, where they stand in a command.
OURS = ("tests/", "examples/", "scripts/", "helm/", "docs/")
PICTURES = {"README.md", "ARCHITECTURE.md"}


def shell_lines() -> list[Any]:
    return [
        pytest.param(line, id=f"{block.where} {line[:40]}")
        for block in blocks("sh")
        for line in block.commands
    ]


@functools.cache
def app() -> Any:
    return without_effect(typer.main.get_command(new_app()))


def parse(words: list[str]) -> None:
    command = app()
    command.main(list(words), "crossdock", standalone_mode=False)


def test_every_block_says_what_it_is_and_is_checked() -> None:
    found = blocks()
    assert {block.language for block in found} == CHECKED_BY.keys()
    for name in CHECKED_BY.values():
        assert name in globals() or name.startswith("nothing")
    assert {block.document.name for block in blocks("text")} <= PICTURES
    assert {block.document.name for block in blocks("console")} == {"COMMANDS.md"}
    assert {block.document.name for block in blocks("mermaid")} == {"ARCHITECTURE.md"}


@pytest.mark.parametrize("line", shell_lines())
def test_a_command_that_is_shown_can_be_typed(line: str) -> None:
    words = [word for word in shlex.split(line) if word != "…"]
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    program = words[0]
    if program.rpartition("/")[2] == "crossdock":
        parse(words[1:])
        check_values(words[1:])
    elif program in ("python", ".venv/bin/python"):
        check_script(words[1:])
    elif program == "helm":
        check_helm(words[1:])
    elif program == "ray":
        check_ray(words[1:])
    elif "/" in program:
        check_script(words)
    else:
        assert program in OTHERS
    for word in words:
        if word.startswith(OURS):
            assert (ROOT / word).exists(), word
    if words[:2] == ["ray", "exec"]:
        ours, *rest = shlex.split(words[3])
        assert ours == "crossdock"
        parse(rest)


def check_values(words: list[str]) -> None:
    """What the command itself makes of its options, where it can be told without measuring."""
    command, *options = words
    if command == "bench":
        read_bench_line(options)


def check_ray(words: list[str]) -> None:
    """By Ray's own reading of its command line; what it is to execute elsewhere, by ours."""
    from ray.scripts.scripts import cli

    name, *rest = words
    cli.commands[name].make_context(name, list(rest))
    if name == "exec":
        parse(shlex.split(rest[1])[1:])


def check_script(words: list[str]) -> None:
    """Of this repository: it reads these options and values."""
    script = ROOT / words[0]
    assert script.is_file(), script
    read_script_line(script, words[1:])


def check_helm(words: list[str]) -> None:
    """Installed or upgraded from a checkout: the values are such that the chart renders."""
    assert words[0] in ("install", "upgrade", "test")
    if words[0] == "test":
        return
    assert ROOT / words[2] == CHART
    given: dict[str, Any] = {}
    for option, value in itertools.pairwise(words):
        if option == "--values":
            given |= yaml.safe_load((ROOT / value).read_text())
        elif option == "--set":
            put(given, *value.split("=", 1))
    assert render(given)


def put(values: dict[str, Any], name: str, text: str) -> None:
    *parents, last = name.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    values[last] = yaml.safe_load(text)


def test_a_value_that_the_chart_does_not_know_would_be_noticed() -> None:
    with pytest.raises(helm_python.HelmError):
        check_helm(shlex.split("install x helm/crossdock --set routr.replicas=2"))


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.where)
def test_yaml_that_is_shown_is_accepted(block: Block, tmp_path: Path) -> None:
    settings = yaml.safe_load(block.text)
    if "scrape_configs" in settings:
        check_prometheus(settings, tmp_path / "prometheus.yaml")
    elif "hardware" in settings or "rate" in settings:
        assert block.document.name == "TUNING.md"  # test_tuning reads those.
    else:
        make_spec(settings)


def check_prometheus(settings: dict[str, Any], file: Path) -> None:
    """The keys that are shown, what they name, and the files; by Prometheus' own program if it is
    there."""
    assert settings.keys() <= {"scrape_configs", "rule_files"}
    for job in settings["scrape_configs"]:
        assert job.keys() == {"job_name", "http_sd_configs"}
        for discovery in job["http_sd_configs"]:
            assert discovery.keys() == {"url"}
            assert discovery["url"].endswith(":8000/metrics/targets")
    rules = [ROOT / name for name in settings["rule_files"]]
    assert all(rule.is_file() for rule in rules)
    if promtool := shutil.which("promtool"):
        file.write_text(yaml.safe_dump({**settings, "rule_files": [str(rule) for rule in rules]}))
        subprocess.run([promtool, "check", "config", str(file)], check=True)


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.where)
def test_python_that_is_shown_is_run(block: Block) -> None:
    """By test_readme; here, that it is Python."""
    compile(block.text, block.where, "exec")
    source = (Path(__file__).parent / "test_readme.py").read_text()
    assert f'"{block.document.relative_to(ROOT)}"' in source


@pytest.mark.parametrize("script", ["reference", "diagrams"])
def test_what_is_generated_is_fresh(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--check"])
    found = runpy.run_path(str(ROOT / "scripts" / script))
    assert not found["main"](), f"run scripts/{script}"


def test_a_slip_would_be_noticed() -> None:
    for line in ("serv --prefill 1", "serve --prefil 1", "scale --prefill many", "bench engin"):
        with pytest.raises(TyperException):
            parse(line.split())
    for line in ("bench_variants.py avx3", "bench_path.py", "bench_sampling.py --no-such-option"):
        with pytest.raises(SystemExit):
            check_script(f"tests/benchmarks/{line}".split())
    with pytest.raises(TyperException):
        check_script(["scripts/tune-validate"])
    for line in ("--rate 2 --speed 2", "--duration soon", "engine --threads 1,1 --prompts 5"):
        with pytest.raises(InvalidField):
            read_bench_line(line.split())
    with pytest.raises(click.exceptions.NoSuchOption):
        check_ray(["start", "--hed"])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (document.parent / target).exists(), target


def test_every_document_is_reached_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for document in (ROOT / "docs").glob("*.md"):
        assert f"docs/{document.name}" in readme, document.name
