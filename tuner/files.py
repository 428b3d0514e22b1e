"""Files that appear complete or stay as they were, and folders that are tried before the work.

Does not cover: what is in them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from core.errors import InvalidField


def check_writable(path: Path, field: str = "--out") -> None:
    """Before the work. Raises ``InvalidField`` if ``path`` could not be written or replaced."""
    folder = path.parent
    if path.is_dir():
        raise InvalidField(field, str(path), "is a folder; name a file")
    if not folder.is_dir():
        raise InvalidField(field, str(path), f"there is no folder {folder}")
    if path.exists() and not os.access(path, os.W_OK):
        raise InvalidField(field, str(path), "can't be written: permission denied")
    try:
        # What permissions don't tell: file systems that are full or take no files.
        with tempfile.TemporaryFile(dir=folder) as draft:
            draft.write(b"\n")
    except OSError as error:
        raise InvalidField(field, str(path), f"can't be written: {error.strerror}") from None


def write_files(contents: Mapping[Path, str | bytes], field: str = "--out") -> None:
    """All are complete before the first one replaces what was there. Raises ``InvalidField``."""
    drafts: list[tuple[Path, str]] = []
    try:
        for path, content in contents.items():
            drafts.append((path, _new_draft(path)))
            _fill(drafts[-1][1], content)
        for path, draft in drafts:
            os.replace(draft, path)
    except OSError as error:
        told = error.strerror or str(error)
        raise InvalidField(field, str(path), f"can't be written: {told}") from None
    finally:
        for _, draft in drafts:
            with suppress(OSError):
                os.unlink(draft)


def _new_draft(path: Path) -> str:
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    return draft


def _fill(draft: str, content: str | bytes) -> None:
    with open(draft, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.chmod(draft, 0o644)
