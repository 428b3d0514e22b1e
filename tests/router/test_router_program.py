"""The router as a process: what it prints, how it stops, what it says when it can't start."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from fake_worker import FakeRegistry, FakeWorker

from crossdock.client import AsyncClient, ServerError
from router.settings import RouterSettings, settings_to_json

pytestmark = pytest.mark.processes


@pytest.fixture
async def registry() -> AsyncIterator[FakeRegistry]:
    started = await FakeRegistry().start()
    yield started
    await started.stop()


def settings(registry: FakeRegistry, model_folder: Path, **more: int) -> bytes:
    return settings_to_json(RouterSettings(registry.address, model_folder, **more))


async def start(
    told: bytes, arguments: Sequence[str] = ("-m", "router.main")
) -> asyncio.subprocess.Process:
    """A program that is told this on its standard input."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=pipe, stdout=pipe, stderr=pipe
    )
    assert process.stdin is not None
    process.stdin.write(told)
    process.stdin.close()
    return process


async def ready_addresses(process: asyncio.subprocess.Process) -> dict[str, str]:
    assert process.stdout is not None
    word, *addresses = (await process.stdout.readline()).decode().split()
    assert word == "ready"
    return dict(address.split("=") for address in addresses)


async def test_it_serves_and_drains_on_sigterm(registry: FakeRegistry, model_folder: Path) -> None:
    worker = await FakeWorker("d0", "decode").start()
    await registry.list(worker.record())
    process = await start(settings(registry, model_folder))
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
        port = taken.getsockname()[1]
        for door in ("grpc", "http"):
            process = await start(settings(registry, model_folder, **{f"{door}_port": port}))
            out, err = await process.communicate()
            assert process.returncode == 1
            assert out == b""
            assert f"{door} port 127.0.0.1:{port} is taken" in err.decode()
            assert f"--{door}-port" in err.decode()


async def test_a_folder_without_a_model_is_said_in_plain_words(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    process = await start(settings(registry, tmp_path))
    _, err = await process.communicate()
    assert process.returncode == 1
    assert "config.json can't be used" in err.decode()


async def test_what_it_is_told_must_be_settings() -> None:
    process = await start(b'{"registry": 3}')
    out, err = await process.communicate()
    assert (process.returncode, out) == (1, b"")
    assert "crossdock router" in err.decode()
    assert "Traceback" not in err.decode()


async def test_it_does_not_outlive_its_parent(registry: FakeRegistry, model_folder: Path) -> None:
    code = (
        "import subprocess, sys\n"
        "pipe = subprocess.PIPE\n"
        "router = [sys.executable, '-m', 'router.main']\n"
        "child = subprocess.Popen(router, stdin=pipe, stdout=pipe)\n"
        "child.stdin.write(sys.stdin.buffer.readline())\n"
        "child.stdin.close()\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdin=pipe, stdout=pipe
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(settings(registry, model_folder) + b"\n")
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
    process = await start(b"", ("-c", code))
    out, err = await process.communicate()
    assert out.decode().strip() == "[]", err.decode()
