"""Runs inside of the finished image: what the chart's pods start, all on one host.

On stdin: JSON with the config's text, `ray start` lines, and command lines, as `test_dockerfile`
takes them from the rendered chart. On stdout: JSON of what was seen. Only the standard library, and
what is in the image.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

CONFIG = Path("/tmp/crossdock/cluster.yaml")
LIMIT_S = 600.0


def main() -> None:
    told = json.load(sys.stdin)
    os.chdir("/tmp")
    # As KubeRay passes it on.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    CONFIG.parent.mkdir()
    CONFIG.write_text(told["config"])
    seen: dict[str, object] = {"user": os.getuid(), "writable": writable("/opt"), "model": model()}
    started = [shell(told["head"])]
    # As a kubelet asks, from outside.
    pod = told["address"]
    seen["head"] = answer(f"http://{pod}:52365/api/healthz", started)
    started += [shell(told["node"])]
    seen["node"] = answer(f"http://{pod}:52366/api/healthz", started)
    started += [subprocess.Popen(told["controller"], stdout=sys.stderr)]
    started += [subprocess.Popen(told["router"], stdout=sys.stderr)]
    seen["ready"] = answer(f"http://{pod}:8000/ready", started)
    seen["doctor"] = json.loads(output(["crossdock", "doctor", "--output", "json"]))
    seen["test"] = output(told["test"])
    seen["running"] = [process.poll() is None for process in started]
    print(json.dumps(seen))


def shell(line: str) -> subprocess.Popen[bytes]:
    """As KubeRay has it started."""
    return subprocess.Popen(["/bin/bash", "-c", "--", line], stdout=sys.stderr)


def output(command: list[str]) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def answer(url: str, started: list[subprocess.Popen[bytes]]) -> int:
    """The status of the first answer that is none of an error, while all that was started runs."""
    end = time.monotonic() + LIMIT_S
    while time.monotonic() < end and all(process.poll() is None for process in started):
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as response:
            return int(response.status)
        time.sleep(0.5)
    codes = [process.poll() for process in started]
    raise SystemExit(f"no good answer from {url}; exit codes of what was started: {codes}")


def writable(folder: str) -> bool:
    with contextlib.suppress(OSError):
        (Path(folder) / "tried").touch()
        return True
    return False


def model() -> list[str]:
    return sorted(path.name for path in Path("/models/SmolLM2-135M-Instruct").iterdir())


if __name__ == "__main__":
    main()
