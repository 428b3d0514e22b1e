"""The wheels of this repository, and environments with them and what they ask for, no more.

What they depend on is not downloaded: it is linked to what is installed here.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Collection, Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


def build_wheels(folder: Path) -> dict[str, Path]:
    """Both distributions, by name."""
    for project in (ROOT / "protos", ROOT):
        build = [sys.executable, "-P", "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        subprocess.run(build, cwd=project, check=True, capture_output=True)
    return {wheel.name.partition("-")[0]: wheel for wheel in folder.glob("*.whl")}


def make_environment(
    folder: Path, wheels: Collection[Path], extras: Collection[str] = (), more: Iterable[str] = ()
) -> Path:
    """A virtual environment with these wheels, what they need for ``extras``, and the distributions
    ``more`` without what those need. Returns its interpreter."""
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-P", "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run([*pip, "--no-index", "--no-deps", *map(str, wheels)], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    asked = [text for wheel in wheels for text in requirements_of(wheel)]
    ours = {canonicalize_name(wheel.name.partition("-")[0]) for wheel in wheels}
    for name in (dependencies(asked, extras) | set(more)) - ours:
        link_files(metadata.distribution(name), packages)
    return python


def requirements_of(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        lines = archive.read(name).decode().splitlines()
    return [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]


def dependencies(requirements: Iterable[str], extras: Collection[str] = ()) -> set[str]:
    """Names of all distributions that an installer would bring; their versions must fit."""
    found: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(text, frozenset(extras)) for text in requirements]
    while waiting:
        text, wanted = waiting.pop()
        requirement = Requirement(text)
        if not _applies(requirement, wanted):
            continue
        assert metadata.version(requirement.name) in requirement.specifier, text
        name = canonicalize_name(requirement.name)
        below = (name, frozenset(requirement.extras))
        found.add(name)
        if below not in seen:
            seen.add(below)
            waiting += [(more, below[1]) for more in metadata.requires(name) or ()]
    return found


def link_files(distribution: metadata.Distribution, target: Path) -> None:
    """Compiled files as well: to compile all of torch anew takes longer than most tests."""
    for file in distribution.files or ():
        source = Path(str(distribution.locate_file(file))).resolve()
        if ".." in file.parts or not source.is_file():
            continue
        place = target / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(source)


def _applies(requirement: Requirement, extras: Collection[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))
