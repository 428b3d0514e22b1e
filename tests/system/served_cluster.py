"""A real `crossdock serve` for tests: its processes, its doors, and proof that nothing is left."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from crossdock.client.tls import Tls, open_channel
from crossdock.v1 import admin_pb2, admin_pb2_grpc, inference_pb2, inference_pb2_grpc, worker_pb2
from waiting import wait_until

START_TIMEOUT_S = 180
STOP_TIMEOUT_S = 90


@dataclass(frozen=True, slots=True)
class Identity:
    """By what clients and operators come; None: in the clear."""

    client: Tls | None = None
    operator: Tls | None = None


IN_THE_CLEAR = Identity()


class ServedCluster:
    """One running cluster and how to speak to it. ``notes``: what its processes write to stderr."""

    def __init__(
        self,
        process: subprocess.Popen[str],
        grpc_address: str,
        http: str,
        admin: str,
        identity: Identity,
        notes: list[str],
    ):
        self.process = process
        self.notes = notes
        self.grpc_address = grpc_address
        self.http_url = f"{'http' if identity.client is None else 'https'}://{http}"
        self.admin_address = admin
        self._channel = open_channel(grpc_address, identity.client, ())
        self._admin_channel = open_channel(admin, identity.operator, ())
        self.inference = inference_pb2_grpc.InferenceStub(self._channel)
        self.admin = admin_pb2_grpc.ClusterAdminStub(self._admin_channel)

    def answer(self, prompt: Sequence[int], max_tokens: int) -> list[int]:
        """Greedy token ids of the answer to a prompt of token ids."""
        return [t for chunk in self.stream(prompt, max_tokens) for t in chunk.chunk.token_ids]

    def stream(
        self, prompt: Sequence[int], max_tokens: int, n: int = 1
    ) -> Iterator[inference_pb2.GenerateResponse]:
        sampling = inference_pb2.SamplingParams(
            temperature=0.0, max_tokens=max_tokens, ignore_eos=True, n=n
        )
        request = inference_pb2.GenerateRequest(
            token_ids=inference_pb2.TokenIds(ids=list(prompt)), sampling=sampling
        )
        return self.inference.Generate(request, timeout=240)

    def answers(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """All at once."""
        with ThreadPoolExecutor(max(1, len(prompts))) as pool:
            return list(pool.map(lambda prompt: self.answer(prompt, max_tokens), prompts))

    def is_ready(self) -> bool:
        """Whether the router has a decode worker to send prompts to."""
        try:
            with urllib.request.urlopen(f"{self.http_url}/ready", timeout=10) as response:
                return bool(response.status == 200)
        except urllib.error.HTTPError:
            return False

    def wait_replaced(self, restarts: int) -> None:
        """Until the controller has replaced so many workers that died, and prompts are taken."""
        wait_until(lambda: self._has_replaced(restarts))
        # The controller knows a new worker a moment before the router has attached to it.
        wait_until(self.is_ready)

    def _has_replaced(self, restarts: int) -> bool:
        status = self.status()
        return status.restarts >= restarts and all(w.state == "ready" for w in status.workers)

    def status(self, *, validate: bool = False) -> admin_pb2.ClusterStatus:
        return self.admin.GetStatus(admin_pb2.GetStatusRequest(validate=validate), timeout=30)

    def stats(self, role: str, *, validate: bool = False) -> list[worker_pb2.WorkerStats]:
        """Statistics of all workers of a role; every worker must answer."""
        workers = self.status(validate=validate).workers
        assert all(w.state == "ready" for w in workers), [(w.worker, w.detail) for w in workers]
        return [w.stats for w in workers if w.stats.role == role]

    def wait_settled(self) -> admin_pb2.ClusterStatus:
        """Until as many workers serve as are wanted. The test's timeout bounds it."""
        return wait_until(self._settled_status)

    def _settled_status(self) -> admin_pb2.ClusterStatus | None:
        status = self.status()
        return status if status.settled else None

    def scale(self, prefill: int | None = None, decode: int | None = None) -> None:
        """Returns when it is done."""
        self.admin.Scale(admin_pb2.ScaleRequest(prefill=prefill, decode=decode), timeout=30)
        self.wait_settled()

    def drain(self, worker: str, **options: Any) -> None:
        """Returns when it has begun."""
        self.admin.Drain(admin_pb2.DrainRequest(worker=worker, **options), timeout=30)

    def flip(self, worker: str) -> None:
        """Returns when it is done."""
        self.begin_flip(worker)
        self.wait_settled()

    def begin_flip(self, worker: str) -> None:
        self.admin.Flip(admin_pb2.FlipRequest(worker=worker), timeout=30)

    def worker_names(self) -> set[str]:
        return {worker.worker for worker in self.status().workers}

    def assert_nothing_is_held(self) -> None:
        """Every invariant of every worker, and no block, lease or sequence left over.

        First waits for what is on its way: a client has its last token before a worker has heard
        that nobody needs its blocks, and the router may still have sent prompts of clients that
        had left. The test's timeout bounds the wait.
        """
        for worker in wait_until(self._idle_workers):
            stats = worker.stats
            assert worker.state == "ready", f"{worker.worker}: {worker.detail}"
            assert stats.free_blocks + stats.cached_blocks == stats.total_blocks

    def _idle_workers(self) -> list[admin_pb2.WorkerStatus]:
        """All workers, checked; none as long as one of them holds anything."""
        workers = list(self.status(validate=True).workers)
        return workers if all(_is_idle(worker.stats) for worker in workers) else []

    def close(self) -> None:
        self._channel.close()
        self._admin_channel.close()


def _is_idle(stats: worker_pb2.WorkerStats) -> bool:
    busy = stats.load.running + stats.load.waiting + stats.leases
    return busy + stats.leased_blocks + stats.quarantined_blocks == 0


@contextmanager
def served(
    model: Path,
    prefill: int,
    decode: int,
    *options: str,
    cwd: Path | None = None,
    identity: Identity = IN_THE_CLEAR,
) -> Iterator[ServedCluster]:
    """Starts `crossdock serve`, and stops it by SIGTERM; fails if anything is left behind.

    Without a config of its own every prompt is handed off: the small ones would go to D alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        if "--config" not in options:
            config = Path(folder, "handoffs.yaml")
            config.write_text("router: {disaggregation: prefer}\n")
            options = (*options, "--config", str(config))
        with _served(model, prefill, decode, *options, cwd=cwd, identity=identity) as cluster:
            yield cluster


@contextmanager
def _served(
    model: Path, prefill: int, decode: int, *options: str, cwd: Path | None, identity: Identity
) -> Iterator[ServedCluster]:
    command = [
        *(sys.executable, "-P", "-m", "cluster.cli.main", "serve", "--model", str(model)),
        *("--prefill", str(prefill), "--decode", str(decode)),
        *("--grpc-port", "0", "--http-port", "0", "--admin-port", "0"),
        *options,
    ]
    mark = new_mark()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        process_group=0,
        env=os.environ | mark,
    )
    notes: list[str] = []
    cluster: ServedCluster | None = None
    try:
        cluster = _wait_ready(process, notes, identity)
        yield cluster
        if process.poll() is None:
            cluster.assert_nothing_is_held()
    finally:
        if cluster is not None:
            cluster.close()
        code = _stop(process)
    assert code == 0, f"serve ended with {code}: {notes[-20:]}"
    assert_none_runs(mark)
    assert not list(Path(tempfile.gettempdir()).glob(f"crossdock-{process.pid}-*"))


def new_mark() -> dict[str, str]:
    """A variable that every process below inherits, also one that a dead parent leaves to init."""
    return {"CROSSDOCK_TEST_RUN": secrets.token_hex(8)}


def assert_none_runs(mark: dict[str, str]) -> None:
    """No process with this variable is left, after a while to end in."""
    _, alive = psutil.wait_procs(_marked(mark), timeout=40)
    assert not alive, f"left running: {[p.cmdline() for p in alive if p.is_running()]}"


def _marked(mark: dict[str, str]) -> list[psutil.Process]:
    """All processes of this machine that were started with ``mark`` in their environment."""
    [wanted] = [f"{name}={value}".encode() for name, value in mark.items()]
    found = []
    for process in psutil.process_iter():
        try:
            environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        except OSError:
            continue
        if wanted in environment.split(b"\0"):
            found.append(process)
    return found


def _wait_ready(
    process: subprocess.Popen[str], notes: list[str], identity: Identity
) -> ServedCluster:
    assert process.stdout is not None
    assert process.stderr is not None
    threading.Thread(target=_collect, args=(process.stderr, notes), daemon=True).start()
    watchdog = threading.Timer(START_TIMEOUT_S, process.kill)
    watchdog.start()
    line = process.stdout.readline()
    watchdog.cancel()
    ready = re.fullmatch(r"ready grpc=(\S+) http=(\S+)\n", line)
    assert ready is not None, f"no ready line but {line!r}; stderr: {notes[-20:]}"
    admin = next(note.split()[-1] for note in notes if note.startswith("for operators"))
    return ServedCluster(process, ready[1], ready[2], admin, identity, notes)


def _collect(stream: Iterator[str], notes: list[str]) -> None:
    for line in stream:
        notes.append(line.strip())


def _stop(process: subprocess.Popen[str]) -> int:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
