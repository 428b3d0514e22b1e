"""`crossdock router` beside a cluster: further routers, each a process of its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from pathlib import Path


class RouterCommand:
    """Runs, and listens, from when it is made."""

    def __init__(self, config: Path, registry: str) -> None:
        command = [*(sys.executable, "-P", "-m", "cluster.cli.main"), "router"]
        command += ["--config", str(config), "--registry", registry]
        command += ["--grpc-port", "0", "--http-port", "0", "--drain-s", "1"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        found = re.match(r"ready grpc=(\S+) http=(\S+)", self.process.stdout.readline())
        assert found is not None
        self.grpc_address, self.http_address = found[1], found[2]
        threading.Thread(target=self.process.stdout.read, daemon=True).start()

    def end(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Its exit status."""
        self.process.send_signal(how)
        return self.process.wait()
