"""The client as others get it: its own wheel, in an environment with what it asks for, no more."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from scripted_server import Answer, ScriptedServer

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parent.parent.parent
ASK = """
import json, sys
from crossdock.client import Client
with Client(sys.argv[1]) as client:
    answer = client.answer("hi", max_tokens=3, timeout=60)
loaded = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"text": answer.text, "modules": loaded}))
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both distributions of this repository, by name."""
    folder = tmp_path_factory.mktemp("wheels")
    for project in (ROOT / "protos", ROOT):
        build = [sys.executable, "-P", "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        subprocess.run(build, cwd=project, check=True, capture_output=True)
    return {wheel.name.partition("-")[0]: wheel for wheel in folder.glob("*.whl")}


@pytest.fixture(scope="module")
def python(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the client's wheel and what it depends on.

    The dependencies are links to what is installed here, so that no index is needed.
    """
    folder = tmp_path_factory.mktemp("environment")
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    wheel = wheels["crossdock_client"]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", str(wheel)], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    for name in dependencies(requirements_of(wheel)):
        link_files(metadata.distribution(name), packages)
    return python


def requirements_of(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
    return [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]


def dependencies(requirements: list[str]) -> set[str]:
    """Names of all distributions that an installer would bring; their versions must fit."""
    found: set[str] = set()
    waiting = [Requirement(text) for text in requirements]
    while waiting:
        requirement = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        assert metadata.version(requirement.name) in requirement.specifier, str(requirement)
        if requirement.name not in found:
            found.add(requirement.name)
            more = metadata.requires(requirement.name) or []
            waiting += [Requirement(text) for text in more]
    return found


def link_files(distribution: metadata.Distribution, target: Path) -> None:
    for file in distribution.files or ():
        if ".." in file.parts or "__pycache__" in file.parts:
            continue
        place = target / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(Path(str(distribution.locate_file(file))).resolve())


def files_of(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_two_distributions_share_no_file(wheels: dict[str, Path]) -> None:
    client, server = files_of(wheels["crossdock_client"]), files_of(wheels["crossdock"])
    assert {name.partition("/")[0] for name in client} == {"crossdock"}
    assert not {name for name in server if name.startswith("crossdock/")}
    assert {
        "crossdock/py.typed",
        "crossdock/client/sync.py",
        "crossdock/v1/inference.proto",
    } <= client
    assert {"core/request.py", "router/server.py", "cluster/cli/main.py"} <= server


def test_the_server_needs_the_client_of_the_same_version(wheels: dict[str, Path]) -> None:
    version = wheels["crossdock_client"].name.split("-")[1]
    assert f"crossdock-client=={version}" in requirements_of(wheels["crossdock"])


def test_the_client_asks_for_grpc_and_protobuf_only(wheels: dict[str, Path]) -> None:
    names = dependencies(requirements_of(wheels["crossdock_client"]))
    assert names == {
        "googleapis-common-protos",
        "grpcio",
        "grpcio-status",
        "protobuf",
        "typing-extensions",
    }


async def test_it_gets_an_answer_with_nothing_else_installed(python: Path, tmp_path: Path) -> None:
    server = ScriptedServer([Answer(["hello", " world"])])
    address = await server.start()
    try:
        process = await asyncio.create_subprocess_exec(
            *(str(python), "-I", "-c", ASK, address),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
    finally:
        await server.server.stop(None)
    assert process.returncode == 0, err.decode()
    answer = json.loads(out)
    assert answer["text"] == "hello world"
    loaded = set(answer["modules"])
    assert {"crossdock", "grpc", "google"} <= loaded
    ours = {"core", "kernels", "text", "engine", "wire", "kv_transfer", "worker", "router"}
    assert not loaded & (ours | {"prefill_worker", "decode_worker", "cluster"})
    assert not loaded & {"torch", "ray", "numpy", "aiohttp", "pydantic"}
