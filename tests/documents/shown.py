"""What the project's documents show: fenced blocks, the shell's lines in them, code within text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "helm").rglob("*.md"),
        ROOT / "protos" / "README.md",
        *(ROOT / "tests").rglob("*.md"),
    ]
)
_FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block; ``language`` "" if it names none; ``line`` of its first fence."""

    document: Path
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Of the shell, one a line, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.split(" #")[0].strip() for line in lines if line.strip() and line[0] != "#"]


def blocks(language: str | None = None, document: Path | None = None) -> list[Block]:
    """All, or those of this language or document, in order."""
    found = []
    for path in DOCUMENTS if document is None else [document]:
        text = path.read_text(encoding="utf-8")
        for match in _FENCED.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(Block(path, line, match[1], match[2]))
    return [block for block in found if language in (None, block.language)]


def commands(document: Path) -> list[str]:
    """Of all the shell's blocks of a document."""
    return [line for block in blocks("sh", document) for line in block.commands]


def code_within(document: Path) -> Iterator[str]:
    """What stands between backticks outside of fenced blocks, on one line."""
    text = _FENCED.sub("", document.read_text(encoding="utf-8"))
    for found in re.findall(r"`([^`]+)`", text):
        yield " ".join(found.split())
