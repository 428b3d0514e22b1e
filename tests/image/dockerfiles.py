"""A Dockerfile carried out without Docker: each stage in a root of its own, over this machine's.

What a RUN writes lands in the stage's layer (overlayfs); what it reads and was not written by it or
by a stage before is this machine's, which stands for the base image. `python` is this interpreter.
Needs root and a kernel that mounts overlays. Covers FROM of stages, ARG, ENV, SHELL, WORKDIR, COPY
without wildcards, RUN; the rest only says how an image is started.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import dockerfile

# What the network and pip need here.
_PASSED_ON = ("PIP_", "SSL_", "HTTP_", "HTTPS_", "NO_PROXY", "REQUESTS_")
# A pod's address, with a way that leads nowhere.
ADDRESS = "10.77.1.1"
_NETWORK = (
    "ip link set lo up && ip link add pod type veth peer name end && "
    f"ip address add {ADDRESS}/24 dev pod && ip link set pod up && ip route add default dev pod"
)
_DISK_BYTES = 24 * 2**30
_STARTED = {"user", "cmd", "entrypoint", "expose", "label", "healthcheck"}


@dataclass
class Stage:
    """``layers``: its own first, then those of the stages that it is from."""

    name: str
    parent: str
    steps: list[dockerfile.Command] = field(default_factory=list)

    @property
    def needs(self) -> set[str]:
        copied = {flag.partition("=")[2] for s in self.steps for flag in s.flags}
        return {self.parent} | copied


def read_stages(path: Path) -> dict[str, Stage]:
    """By name. What comes before the first FROM is for the base image."""
    stages: dict[str, Stage] = {}
    for step in dockerfile.parse_file(str(path)):
        if step.cmd.lower() == "from":
            parent, _, name = step.value
            current = stages[name] = Stage(name, parent)
        elif stages:
            current.steps.append(step)
    return stages


def order_for(target: str, stages: dict[str, Stage]) -> list[Stage]:
    """The stages that ``target`` is made of, each after what it needs."""
    ordered: list[Stage] = []

    def add(name: str) -> None:
        if name not in stages or stages[name] in ordered:
            return
        for other in sorted(stages[name].needs):
            add(other)
        ordered.append(stages[name])

    add(target)
    return ordered


@dataclass
class Settings:
    """What a stage hands on to those that are from it."""

    environment: dict[str, str]
    shell: tuple[str, ...] = ("/bin/sh", "-c")
    directory: str = "/"


class Builder:
    """Layers and settings of the stages so far, under ``folder``, on a disk with room for them."""

    def __init__(self, context: Path, folder: Path) -> None:
        self._context = context
        self._folder = folder
        self._layers: dict[str, list[Path]] = {}
        self._settings: dict[str, Settings] = {}

    def build(self, stage: Stage) -> None:
        own = self._folder / stage.name / "layer"
        own.mkdir(parents=True)
        below = self._layers.get(stage.parent, [])
        base = self._settings.get(stage.parent) or Settings(_base_environment())
        settings = Settings(dict(base.environment), base.shell, base.directory)
        with _mounted(own, below, self._folder / stage.name) as root:
            for step in stage.steps:
                self._carry_out(step, settings, root)
        self._layers[stage.name] = [own, *below]
        self._settings[stage.name] = settings

    def run(self, stage: str, command: Sequence[str], given: str = "") -> str:
        """What ``command`` prints in the finished stage, as in a pod of the chart: its user,
        nothing to write to but /tmp and /dev/shm, no other processes, a network of its own.
        ``given``: its stdin."""
        settings = self._settings[stage]
        scratch = self._folder / f"{stage}-{len(list(self._folder.iterdir()))}"
        (scratch / "layer").mkdir(parents=True)
        with _mounted(scratch / "layer", self._layers[stage], scratch) as root:
            # This machine's interpreter may be in root's home.
            (root / "root").chmod(0o755)
            for place in ("tmp", "dev/shm"):
                _mount("-t", "tmpfs", "-o", "mode=1777", "tmpfs", str(root / place))
            _mount("-o", "remount,ro,bind", str(root))
            inside = f"mount -t proc proc {root}/proc && {_NETWORK} && exec "
            inside += shlex.join(["chroot", "--userspec=10001:10001", str(root), *command])
            alone = ["unshare", "--net", "--pid", "--fork", "--kill-child", "sh", "-c", inside]
            environment = settings.environment
            done = subprocess.run(
                alone, env=environment, input=given, stdout=subprocess.PIPE, text=True, check=True
            )
        return done.stdout

    def _carry_out(self, step: dockerfile.Command, settings: Settings, root: Path) -> None:
        match step.cmd.lower():
            case "env":
                pairs = zip(step.value[::3], step.value[1::3], strict=True)
                known = settings.environment
                known |= {name: _expand(value, known) for name, value in pairs}
            case "arg":
                name, _, value = step.value[0].partition("=")
                settings.environment.setdefault(name, value)
            case "shell":
                settings.shell = tuple(step.value)
            case "workdir":
                settings.directory = step.value[0]
                (root / settings.directory.lstrip("/")).mkdir(parents=True, exist_ok=True)
            case "copy":
                self._copy(step, settings, root)
            case "run":
                _run([*settings.shell, step.value[0]], settings, root)
            case other:
                assert other in _STARTED, f"line {step.start_line + 1}: {other} is not known here"

    def _copy(self, step: dockerfile.Command, settings: Settings, root: Path) -> None:
        *sources, target = step.value
        there = root / os.path.join(settings.directory, target).lstrip("/")
        stage = "".join(flag.partition("=")[2] for flag in step.flags)
        for source in sources:
            if not stage:
                _copy(self._context / source, there)
                continue
            with _merged(self._layers[stage], self._folder / f"{stage}-read") as merged:
                _copy(merged / source.lstrip("/"), there)


def _base_environment() -> dict[str, str]:
    """Of the base image, whose place this machine takes."""
    passed = {k: v for k, v in os.environ.items() if k.upper().startswith(_PASSED_ON)}
    here = Path(sys.base_prefix) / "bin"
    return passed | {
        "PATH": f"{here}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "HOME": "/root",
    }


def _expand(value: str, known: dict[str, str]) -> str:
    value = value.strip('"')
    for name, said in known.items():
        value = value.replace(f"${name}", said)
    return value


def _run(command: Sequence[str], settings: Settings, root: Path) -> None:
    inside = ["env", "--chdir", settings.directory, *command]
    subprocess.run(["chroot", str(root), *inside], env=settings.environment, check=True)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    else:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


@contextlib.contextmanager
def _merged(layers: Sequence[Path], place: Path) -> Iterator[Path]:
    """These layers to read from."""
    place.mkdir(exist_ok=True)
    lower = ":".join([*map(str, layers), "/"])
    _mount("-t", "overlay", "overlay", "-o", f"lowerdir={lower}", str(place))
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@contextlib.contextmanager
def _mounted(own: Path, below: Sequence[Path], folder: Path) -> Iterator[Path]:
    """A root of these layers over this machine's, with its devices and processes."""
    root, work = folder / "root", folder / "work"
    root.mkdir()
    work.mkdir()
    lower = ":".join([*map(str, below), "/"])
    options = f"lowerdir={lower},upperdir={own},workdir={work}"
    _mount("-t", "overlay", "overlay", "-o", options, str(root))
    try:
        for special in ("proc", "dev", "sys"):
            _mount("--rbind", f"/{special}", str(root / special))
            _mount("--make-rslave", str(root / special))
        yield root
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", str(root)], check=True)


def _disk(folder: Path) -> Path:
    """A file system of its own: layers may not lie in one another."""
    file, place = folder / "layers.ext4", folder / "layers"
    with file.open("wb") as whole:
        whole.truncate(_DISK_BYTES)  # Sparse: it takes what is written.
    subprocess.run(["mkfs.ext4", "-q", str(file)], check=True)
    place.mkdir()
    _mount("-o", "loop", str(file), str(place))
    return place


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def main() -> None:
    """`python dockerfiles.py CONTEXT FOLDER TARGET SCRIPT`, in a mount namespace of its own: builds
    the target, and runs SCRIPT (Python) with stdin in it."""
    context, folder, target = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    builder = Builder(context, _disk(folder))
    for stage in order_for(target, read_stages(context / "Dockerfile")):
        print(f"stage {stage.name}", file=sys.stderr, flush=True)
        builder.build(stage)
    script = Path(sys.argv[4]).read_text(encoding="utf-8")
    print(builder.run(target, ["python", "-P", "-c", script], sys.stdin.read()), flush=True)


if __name__ == "__main__":
    main()
