"""The pages that people read, taken apart: their blocks, the commands in these, the links, the anchors."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))
SHELLS = ("sh", "bash", "console")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block.

    Attributes:
        page: that it is on.
        line: of the page, from 1.
        language: the word after the fence; empty for none.
        text: between the fences.
    """

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def tokens(page: str) -> list[Token]:
    """Of Markdown as GitHub knows it."""
    return MarkdownIt("gfm-like", {"linkify": False}).parse((ROOT / page).read_text())


def blocks(page: str) -> list[Block]:
    """All fenced and indented blocks of a page, in their order."""
    return [
        Block(page=page, line=token.map[0] + 1, language=token.info.strip(), text=token.content)
        for token in tokens(page)
        if token.type in ("fence", "code_block") and token.map
    ]


def commands(text: str) -> list[str]:
    """What a shell runs at once: lines, joined where a quote, a pipe or a backslash leaves one open.

    Comments are not in it.
    """
    found: list[str] = []
    open_lines = ""
    for line in text.splitlines():
        if not open_lines and (not line.strip() or line.lstrip().startswith("#")):
            continue
        open_lines += f"{line}\n"
        done = subprocess.run(["bash", "-n"], input=open_lines, capture_output=True, text=True, check=False)
        if done.returncode == 0 and not line.endswith("\\"):
            found.append(_plain(open_lines))
            open_lines = ""
    assert not open_lines, f"a command that never ends: {open_lines}"
    return found


def _plain(command: str) -> str:
    """A command as the lists in the tests write it: one blank for many, no comment at its end."""
    if "\n" in command.strip():
        return command.strip()
    return re.sub(r"\s+", " ", re.sub(r"\s+# .*$", "", command.strip()))


def inline(page: str) -> Iterator[str]:
    """The code in the text of a page, outside of blocks."""
    for token in tokens(page):
        for child in token.children or []:
            if child.type == "code_inline":
                yield " ".join(child.content.split())


def links(page: str) -> Iterator[str]:
    """The targets of all links and pictures, those of HTML too."""
    for token in tokens(page):
        for child in [token, *(token.children or [])]:
            for name in ("href", "src"):
                if target := child.attrGet(name):
                    yield str(target)
            if child.type in ("html_inline", "html_block"):
                yield from re.findall(r'(?:href|src)="([^"]+)"', child.content)


def anchors(page: str) -> set[str]:
    """What `page#...` may name: GitHub makes these of the headings."""
    found: set[str] = set()
    parsed = tokens(page)
    for opening, content in pairwise(parsed):
        if opening.type == "heading_open":
            words = "".join(child.content for child in content.children or [] if child.content)
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            number = sum(re.fullmatch(re.escape(slug) + r"(-\d+)?", one) is not None for one in found)
            found.add(f"{slug}-{number}" if number else slug)
    return found
