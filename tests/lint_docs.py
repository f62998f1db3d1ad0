"""Check the pages: links, anchors, blocks, and the names of commands, options and files that they show.

    python -m tests.lint_docs

Nothing that a page shows is run. Each finding is one line, and the exit status is then 1.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
from dvc.cli.parser import get_main_parser
from markdown_it import MarkdownIt
from markdown_it.token import Token

import mnist.cli

ROOT = Path(__file__).parents[1]
FIRST = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
SHELLS = {"sh", "bash", "console"}
LANGUAGES = {*SHELLS, "python", "yaml", "toml", "mermaid", "text", ""}
# A command at the start of a line or after `;`, `&&`, `|`, `(`, up to the next of these.
WORDS = r"""(?:'[^']*'|"[^"]*"|[^;&|)#\n>'"])*"""
COMMAND = re.compile(
    rf"(?:^|[;&|(])\s*(?:[A-Z_]+=\S*\s+)*((?:make|dvc|mnist|python -m)\s{WORDS})", re.MULTILINE
)
OUR_FILE = re.compile(r"(?:mnist|stages|benchmarks|tests|docs|datasets|\.ci|\.github)/[\w./-]*\.\w+")


def main() -> None:
    """Print what is wrong and exit with 1, or print the number of pages."""
    findings = [f"{page.relative_to(ROOT)}:{finding}" for page in PAGES for finding in check(page)]
    linked = {target(FIRST, link)[0] for link in links(FIRST)}
    findings += [f"README.md: no link to {page.name}" for page in PAGES if page not in {FIRST, *linked}]
    print(*findings, sep="\n", end="\n" if findings else "")
    if findings:
        sys.exit(1)
    print(f"{len(PAGES)} pages: links, blocks and commands are right")


def check(page: Path) -> Iterator[str]:
    """Yield what is wrong on a page."""
    for link in links(page):
        file, anchor = target(page, link)
        if not file.exists():
            yield f" {link}: no such file"
        elif anchor and anchor not in anchors(file):
            yield f" {link}: no such heading"
    for token in parse(page):
        found = block(token) if token.type in ("fence", "code_block") else inline(token)
        yield from (f"{token.map[0] + 1 if token.map else 0}: {finding}" for finding in found)


def block(token: Token) -> Iterator[str]:
    """Yield what is wrong in a fenced block: its language, its syntax, its commands."""
    language = token.info.strip()
    if language not in LANGUAGES:
        yield f"a block in {language!r}, expected one of {sorted(LANGUAGES)}"
    if language in SHELLS:
        parsed = subprocess.run(
            ["bash", "-n"], input=token.content, text=True, capture_output=True, check=False
        )
        if parsed.returncode:
            yield parsed.stderr.strip()
        else:
            yield from commands(token.content)


def inline(token: Token) -> Iterator[str]:
    """Yield what is wrong in the code within a text: its commands, its files."""
    for child in token.children or []:
        if child.type == "code_inline":
            yield from commands(" ".join(child.content.split()))
            if OUR_FILE.fullmatch(child.content) and not (ROOT / child.content).exists():
                yield f"{child.content}: no such file"


def commands(text: str) -> Iterator[str]:
    """Yield the names of commands and options in a shell text that do not exist."""
    for match in COMMAND.finditer(text.replace("\\\n", " ")):
        program, *words = shlex.split(match[1])
        wrong: list[str] = []
        if program == "make":
            wrong = [word for word in words if re.fullmatch(r"[a-z][\w-]*", word) and word not in TARGETS]
        elif program == "dvc":
            wrong = unknown_to_dvc(words)
        elif program == "mnist":
            wrong = unknown_to_mnist(words)
        elif words[1].split(".")[0] in ("mnist", "stages", "benchmarks", "tests"):
            module = ROOT / words[1].replace(".", "/")
            wrong = [] if module.with_suffix(".py").exists() or module.is_dir() else [words[1]]
        yield from (f"`{match[1].strip()}`: {program} has no {word}" for word in wrong)


def unknown_to_dvc(words: list[str]) -> list[str]:
    """Return the first word that is no subcommand and no option of DVC."""
    parser: Any = get_main_parser()
    for word in words:
        choices: dict[str, Any] = next(
            (action.choices for action in parser._actions if hasattr(action, "_parser_class")), {}
        )
        if re.match(r"--?[a-zA-Z]", word):
            if word.partition("=")[0] not in parser._option_string_actions:
                return [word]
        elif choices and word not in choices:
            return [word]
        else:
            parser = choices.get(word, parser)
    return []


def unknown_to_mnist(words: list[str]) -> list[str]:
    """Return the words that are no command and no option of `mnist`."""
    if not words or words[0].startswith("-"):
        return []
    command = mnist.cli.main.get_command(click.Context(mnist.cli.main), words[0])
    if command is None or command.context_settings.get("ignore_unknown_options"):
        return [] if command else [words[0]]
    options = {"--help", *(name for param in command.params for name in (*param.opts, *param.secondary_opts))}
    return [word for word in words[1:] if word.startswith("--") and word.partition("=")[0] not in options]


def parse(page: Path) -> list[Token]:
    """Return the tokens of a page in GitHub's Markdown."""
    return MarkdownIt("gfm-like", {"linkify": False}).parse(page.read_text())


def links(page: Path) -> Iterator[str]:
    """Yield the targets of the page's links and pictures that are no addresses of the web."""
    for token in parse(page):
        for child in [token, *(token.children or [])]:
            found = [str(child.attrGet(name)) for name in ("href", "src") if child.attrGet(name)]
            if child.type in ("html_inline", "html_block"):
                found += re.findall(r'(?:href|src)="([^"]+)"', child.content)
            yield from (link for link in found if not re.match(r"(https?|mailto):", link))


def target(page: Path, link: str) -> tuple[Path, str]:
    """Return the file and the anchor that a link of a page names."""
    name, _, anchor = link.partition("#")
    return ((page.parent / name).resolve() if name else page), anchor


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of the headings of a page."""
    found: set[str] = set()
    for opening, content in pairwise(parse(page)):
        if opening.type == "heading_open":
            words = "".join(child.content for child in content.children or [])
            found.add(re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-"))
    return found


if __name__ == "__main__":
    main()
