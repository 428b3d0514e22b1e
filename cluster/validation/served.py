"""One `crossdock serve` of a given config, in a process of its own, for as long as it is needed.

Listens on loopback, on ports that are free. Does not cover: clusters that go on running
(``cluster.detached``).
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from cluster.detached import STOP_GRACE_S, StartFailed
from core.config import ClusterSpec
from core.errors import Unavailable
from core.tenant_config import AuthSpec
from tuner.search.outputs import cluster_yaml

_READY = re.compile(r"ready grpc=(\S+) http=(\S+)\n")
# What is cut off at the end is nobody's answer any more.
_DRAIN_S = 2
_WORDS_OF_A_FAILURE = 2000


@contextmanager
def served(spec: ClusterSpec) -> Iterator[str]:
    """The URL of its HTTP door, from when it is ready.

    Raises ``StartFailed`` with its last words if it never is, ``Unavailable`` if it does not end.
    """
    with tempfile.TemporaryDirectory(prefix="crossdock-validate-") as folder:
        config = Path(folder) / "cluster.yaml"
        text = cluster_yaml(_open(spec), "For `crossdock tune --validate`.")
        config.write_text(text, encoding="utf-8")
        with (Path(folder) / "log").open("w+", encoding="utf-8") as log:
            process = _spawn(config, log)
            try:
                yield f"http://{_wait_ready(process, log)}"
            finally:
                _stop(process)


def _open(spec: ClusterSpec) -> ClusterSpec:
    """To whoever reaches its loopback: the load generator has neither key nor certificate."""
    tls = spec.tls
    if tls is not None:
        tls = tls.model_copy(update={"doors": None}) if tls.files is not None else None
    return spec.model_copy(update={"tenants": {}, "auth": AuthSpec(), "tls": tls})


def _spawn(config: Path, log: IO[str]) -> subprocess.Popen[str]:
    # -P: a file in the current directory must not hide our modules.
    command = [sys.executable, "-P", "-m", "cluster.cli.main", "serve", "--config", str(config)]
    command += ["--grpc-port", "0", "--http-port", "0", "--admin-port", "0"]
    return subprocess.Popen(
        [*command, "--drain-s", str(_DRAIN_S)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        # Ctrl-C is for the command, which ends it.
        process_group=0,
    )


def _wait_ready(process: subprocess.Popen[str], log: IO[str]) -> str:
    """Its HTTP address. It gives up by itself if it can't get ready."""
    assert process.stdout is not None
    ready = _READY.fullmatch(process.stdout.readline())
    if ready is not None:
        return ready[2]
    code = process.wait()
    log.seek(0)
    said = log.read()[-_WORDS_OF_A_FAILURE:].strip()
    raise StartFailed(f"crossdock serve ended with exit code {code}: {said}", code)


def _stop(process: subprocess.Popen[str]) -> None:
    """The first signal drains, the second ends at once."""
    assert process.stdout is not None
    try:
        for patience in (_DRAIN_S + STOP_GRACE_S, STOP_GRACE_S):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(patience)
                return
            except subprocess.TimeoutExpired:
                continue
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise Unavailable("a cluster had to be killed", reason="DOES_NOT_END")
    finally:
        process.stdout.close()
