"""What has been measured so far, in a file beside the profile-to-be: a run that was interrupted
goes on where it stopped.

JSON lines: a header that says of what these findings are, then one finding each with the time when
it was made, written at once.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import TypeAdapter

from cluster.profiling.tasks import Found
from core.errors import Incompatible, InvalidField

_FORMAT = "crossdock profile, unfinished"
_found = TypeAdapter(Found)


def partial_path(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial.jsonl")


class PartialFile:
    """Findings by section (an engine, the edges, serving) and name. A context: closes the file, and
    leaves none without findings."""

    def __init__(
        self, path: Path, subject: Mapping[str, str], clock: Callable[[], float] = time.time
    ) -> None:
        """``subject``: model, hardware and all else that findings depend on. ``clock``: seconds
        since 1970.

        Raises ``Incompatible`` if the file at ``path`` is of another one, ``InvalidField`` if it is
        damaged or can't be written.
        """
        self._path = path
        self._clock = clock
        self._found_at: list[float] = []
        self._found: dict[tuple[str, str], Found] = {}
        header = {"format": _FORMAT, **subject}
        complete = _complete_lines(path)
        if complete:
            _check_header(path, complete[0], header)
            self._read(complete[1:])
        try:
            # Without the half line that a killed run may have left.
            path.write_text("".join(f"{line}\n" for line in complete or [json.dumps(header)]))
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            raise InvalidField("--out", str(path), f"can't be written: {error}") from None

    def __len__(self) -> int:
        return len(self._found)

    @property
    def age_s(self) -> float:
        """Of the oldest finding, seconds."""
        return max(0.0, self._clock() - min(self._found_at, default=self._clock()))

    def get(self, section: str, name: str) -> Found | None:
        return self._found.get((section, name))

    def section(self, section: str) -> dict[str, Found]:
        """All of it, by name."""
        return {name: found for (of, name), found in self._found.items() if of == section}

    def add(self, section: str, found: Found) -> None:
        """On disk when this returns."""
        self._found[section, found.name] = found
        self._found_at.append(self._clock())
        line = {"section": section, "at": self._found_at[-1], **_found.dump_python(found)}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def remove(self) -> None:
        """The profile is complete: nothing is to be resumed."""
        self._file.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> PartialFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        if not self._found:
            self._path.unlink(missing_ok=True)

    def _read(self, lines: list[str]) -> None:
        for number, line in enumerate(lines, start=2):
            try:
                content = json.loads(line)
                section, at = content.pop("section"), float(content.pop("at"))
                found = _found.validate_python(content)
            except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
                raise _damaged(self._path, f"line {number}") from None
            if not all(0 <= value < math.inf for value in (at, found.seconds, found.waited)):
                raise _damaged(self._path, f"line {number}")
            self._found_at.append(at)
            self._found[section, found.name] = found


def _complete_lines(path: Path) -> list[str]:
    """Those that end; none if there is no file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidField("--out", str(path), f"can't be read: {error}") from None
    return text.split("\n")[:-1]


def _check_header(path: Path, line: str, expected: Mapping[str, Any]) -> None:
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):
        raise _damaged(path, "line 1") from None
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise _damaged(path, "line 1")
    differing = [name for name in expected if header.get(name) != expected[name]]
    if differing:
        name = differing[0]
        raise Incompatible(
            f"{path} holds what was measured with {name} {header.get(name)}, not {expected[name]}: "
            "remove it, or choose another --out",
            reason="PARTIAL_PROFILE_DIFFERS",
            metadata={"file": str(path), "differs": name},
        )


def _damaged(path: Path, where: str) -> InvalidField:
    return InvalidField("--out", str(path), f"is damaged ({where}); remove it to measure anew")
