"""Code blocks of Markdown pages and cells of notebooks: found, sorted by kind, and the commands in them."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHELL = ("", "sh", "bash", "console")
MARK = re.compile(r"<!-- not run: (\S.*\S) -->")
FENCE = re.compile(r"^\s*(`{3,}|~{3,})\s*(\S*)")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: path of the page below the project's folder.
        line: of the opening fence, from 1.
        language: what stands behind the fence.
        text: its lines.
        not_run: why it is not run, from the comment above it; None for a block that is.
    """

    page: str
    line: int
    language: str
    text: str
    not_run: str | None

    @property
    def where(self) -> str:
        """`page:line`, as editors open it."""
        return f"{self.page}:{self.line}"

    def commands(self) -> list[str]:
        """Its shell lines, continued ones joined, without comments and blank lines."""
        joined = self.text.replace("\\\n", " ")
        return [" ".join(line.split()) for line in joined.splitlines() if shlex.split(line, comments=True)]


def pages() -> list[Path]:
    """README and every page of the documentation, in order of name."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(path: Path) -> Iterator[Block]:
    """The fenced blocks of a page, top to bottom."""
    lines = path.read_text(encoding="utf-8").splitlines()
    page = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    above, at = "", 0
    while at < len(lines):
        opened = FENCE.match(lines[at])
        if opened is None:
            above = lines[at] if lines[at].strip() else above
            at += 1
            continue
        fence, start = opened[1], at
        at += 1
        while at < len(lines) and lines[at].strip() != fence:
            at += 1
        mark = MARK.search(above)
        yield Block(page, start + 1, opened[2], "\n".join(lines[start + 1 : at]), mark[1] if mark else None)
        above, at = "", at + 1


def notebooks() -> list[Path]:
    """The documentation's notebooks, in order of name."""
    return sorted((ROOT / "docs").rglob("*.ipynb"))


def cells(path: Path) -> list[Block]:
    """The code cells of a notebook as blocks; `line` counts cells from 1."""
    page = path.relative_to(ROOT).as_posix()
    written = json.loads(path.read_text(encoding="utf-8"))["cells"]
    found = [(number, "".join(cell["source"])) for number, cell in enumerate(written, 1) if cell["cell_type"] == "code"]
    return [Block(page, number, "python", text, None) for number, text in found]
