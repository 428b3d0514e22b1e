"""The router as a process: what it prints, how it stops, what it says when it can't start."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fake_worker import FakeRegistry, FakeWorker

from crossdock.client import AsyncClient, ServerError

pytestmark = pytest.mark.processes


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    started = await FakeRegistry().start()
    yield started
    await started.stop()


def arguments(registry: FakeRegistry, model_folder: Path, *more: str) -> list[str]:
    options = ["--registry", registry.address, "--model", str(model_folder), *more]
    return ["-m", "router.main", *options]


async def start(*args: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(sys.executable, *args, stdout=pipe, stderr=pipe)


async def ready_addresses(process: asyncio.subprocess.Process) -> dict[str, str]:
    assert process.stdout is not None
    word, *addresses = (await process.stdout.readline()).decode().split()
    assert word == "ready"
    return dict(address.split("=") for address in addresses)


async def test_it_serves_and_drains_on_sigterm(registry: FakeRegistry, model_folder: Path) -> None:
    worker = await FakeWorker("d0", "decode").start()
    await registry.list(worker.record())
    process = await start(*arguments(registry, model_folder))
    addresses = await ready_addresses(process)
    async with AsyncClient(addresses["grpc"]) as client:
        reading = asyncio.create_task(answer_when_ready(client))
        opened = await worker.got("open")
        process.send_signal(signal.SIGTERM)
        worker.output(opened.key, [9], "done", "stop")
        assert await reading == "done"
    assert await process.wait() == 0
    assert process.stdout is not None
    assert await process.stdout.read() == b""
    await worker.kill()


async def answer_when_ready(client: AsyncClient) -> str:
    """The router listens before it knows its workers."""
    while True:
        try:
            return "".join([r.chunk.text async for r in client.generate("hello")])
        except ServerError as error:
            if error.reason != "NO_WORKER":
                raise


async def test_a_taken_port_is_said_in_plain_words(
    registry: FakeRegistry, model_folder: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for door in ("grpc", "http"):
            process = await start(*arguments(registry, model_folder, f"--{door}-port", port))
            out, err = await process.communicate()
            assert process.returncode == 1
            assert out == b""
            assert f"{door} port 127.0.0.1:{port} is taken" in err.decode()
            assert f"--{door}-port" in err.decode()


async def test_a_folder_without_a_model_is_said_in_plain_words(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    process = await start(*arguments(registry, tmp_path))
    _, err = await process.communicate()
    assert process.returncode == 1
    assert "config.json can't be used" in err.decode()


async def test_it_does_not_outlive_its_parent(registry: FakeRegistry, model_folder: Path) -> None:
    own = arguments(registry, model_folder, "--die-with-parent")
    parent = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", parent, *own, stdin=pipe, stdout=pipe
    )
    assert process.stdout is not None
    router = int(await process.stdout.readline())
    gone = os.pidfd_open(router)
    process.kill()
    await process.wait()
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(gone, ended.set)
    await ended.wait()
    asyncio.get_running_loop().remove_reader(gone)
    os.close(gone)


async def test_it_needs_neither_torch_nor_ray() -> None:
    code = "import sys, router.main; print([m for m in ('torch', 'ray') if m in sys.modules])"
    process = await start("-c", code)
    out, err = await process.communicate()
    assert out.decode().strip() == "[]", err.decode()
