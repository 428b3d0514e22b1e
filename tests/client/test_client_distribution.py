"""The client as others get it: its own wheel, in an environment with what it asks for, no more."""

from __future__ import annotations

import asyncio
import json
import zipfile
from pathlib import Path

import pytest
from scripted_server import Answer, ScriptedServer

from distributions import build_wheels, dependencies, make_environment, requirements_of

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

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
    return build_wheels(tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def python(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the client's wheel and what it depends on."""
    return make_environment(tmp_path_factory.mktemp("environment"), [wheels["crossdock_client"]])


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
    ours = {"core", "kernels", "native", "text", "engine", "wire", "kv_transfer", "worker"}
    assert not loaded & (ours | {"router", "prefill_worker", "decode_worker", "cluster"})
    assert not loaded & {"torch", "ray", "numpy", "aiohttp", "pydantic"}
