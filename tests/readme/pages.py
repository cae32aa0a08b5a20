"""The fenced blocks of the README and of docs/, and the commands in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

LANGUAGES = ("bash", "json", "python", "text", "yaml")
"""bash is run line by line, python whole; yaml and json are files; text is output, which is not run."""

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\S*)[^`]*$")
_FILE = re.compile(r"[\w./-]+\.(?:yaml|yml|json)\b")
# what stands in quotes, or a comment: from a # at the start of a word to the end of the line
_QUOTED_OR_COMMENT = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*"|\\.|(?P<comment>(?:^|(?<=\s))\#.*)""")


@dataclass(frozen=True)
class Block:
    """What stands between two fences."""

    page: str
    """Path of the page, from the top of the checkout."""
    line: int
    """Of its first line, from 1."""
    language: str
    text: str
    before: str
    """The paragraph before it."""

    @property
    def place(self) -> str:
        """As PAGE:LINE."""
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file whose content it is: the last that the paragraph before names."""
        named = _FILE.findall(self.before)
        return named[-1] if named else None


@dataclass(frozen=True)
class Command:
    """A command of a bash block, its lines joined and its comment stripped."""

    block: Block
    line: int
    text: str

    @property
    def place(self) -> str:
        """As PAGE:LINE."""
        return f"{self.block.page}:{self.line}"


def pages(root: Path) -> list[Path]:
    """The pages of a checkout whose commands are run, the README first."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def blocks(root: Path, paths: Sequence[Path] | None = None) -> list[Block]:
    """All blocks of these pages (else of all), in reading order."""
    return [
        block
        for path in (pages(root) if paths is None else paths)
        for block in blocks_of(path.relative_to(root).as_posix(), path.read_text(encoding="utf-8"))
    ]


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """The blocks of a page.

    Raises:
        ValueError: A fence is not closed.
    """
    lines = text.splitlines()
    place = 0
    while place < len(lines):
        opening = _FENCE.match(lines[place])
        place += 1
        if opening is None:
            continue
        indent, start = opening["indent"], place
        while place < len(lines) and lines[place].strip() != "```":
            place += 1
        if place == len(lines):
            raise ValueError(f"{page}:{start}: the fence is not closed")
        content = "\n".join(line.removeprefix(indent) for line in lines[start:place]) + "\n"
        yield Block(page, start + 1, opening["language"], content, _paragraph(lines[: start - 1]))
        place += 1


def _paragraph(lines: Sequence[str]) -> str:
    """The last paragraph, blank lines after it left out."""
    text = "\n".join(lines).rstrip()
    return text.rpartition("\n\n")[2]


def commands(block: Block) -> list[Command]:
    """The commands of a bash block: a line each, or several that end in a backslash."""
    found: list[Command] = []
    words: list[str] = []
    start = block.line
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        code = without_comment(line).strip()
        start = start if words else number
        words += [code.removesuffix("\\").strip()] if code else []
        if words and not code.endswith("\\"):
            found.append(Command(block, start, " ".join(words)))
            words = []
    return found


def without_comment(line: str) -> str:
    """A line of shell without the comment at its end."""
    for found in _QUOTED_OR_COMMENT.finditer(line):
        if found["comment"] is not None:
            return line[: found.start()]
    return line
