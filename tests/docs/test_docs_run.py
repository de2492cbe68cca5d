"""Documentation that cannot go stale: every Python block runs, every command shown parses, every link leads somewhere.

The Python blocks of a page run in order in one namespace and an empty folder. A block with a title, such as
``python title="my_net.py"``, is a file of that name: it is written and imported, and the tests in a test file run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shlex
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from archipel.app.cli import main
from archipel.core import registry
from archipel.core.errors import MissingExtraError
from archipel.data.sources import SOURCES
from archipel.spaces.catalogue import NAMED

ROOT = Path(__file__).parents[2]
PAGES = {
    p.relative_to(ROOT).as_posix(): p
    for p in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
FENCE = re.compile(r"^( *)```(\w*) *([^\n`]*)\n(.*?)^\1``` *$", re.MULTILINE | re.DOTALL)
SHELL = ("console", "bash", "sh", "shell")
# Optional libraries that a page's blocks import themselves
NEEDS = {"docs/how-to/executors.md": "distributed", "docs/how-to/runs.md": "onnxruntime"}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its ``title`` if it has one, the line of its first line of code, and the code."""

    language: str
    title: str | None
    line: int
    code: str


def blocks_of(text: str) -> list[Block]:
    out = []
    for match in FENCE.finditer(text):
        indent, language, attributes, code = match.groups()
        title = re.search(r'title="([^"]+)"', attributes)
        line = text[: match.start(4)].count("\n") + 1
        code = "".join(row[len(indent) :] if row.strip() else row for row in code.splitlines(keepends=True))
        out.append(Block(language, title and title[1], line, code))
    return out


def commands_of(text: str) -> list[tuple[int, str]]:
    """Line and text of every ``archipel …`` command: in shell blocks, and in backticks in the running text."""
    found = []
    for block in blocks_of(text):
        if block.language in SHELL:
            code = block.code.replace("\\\n", "  ")
            for i, row in enumerate(code.splitlines()):
                row = row.strip().removeprefix("$ ")
                if row.startswith("archipel "):
                    found.append((block.line + i, row))
    prose = FENCE.sub(lambda m: "\n" * m[0].count("\n"), text)
    for match in re.finditer(r"`(archipel [^`\n]+)`", prose):
        found.append((prose[: match.start()].count("\n") + 1, match[1]))
    return found


def parse(command: str) -> None:
    """Let click parse a command without running it; the first of a pipe or a list.

    Raises:
        click.ClickException: what the command line would say about it.
    """
    words = []
    for word in shlex.split(command, comments=True)[1:]:
        if word in ("|", "&&", ";", ">", "2>", "&"):
            break
        words.append(word)
    if words and words[0] in main.commands:
        with contextlib.suppress(click.exceptions.Exit):  # --help
            main.commands[words[0]].make_context(words[0], words[1:])
    else:
        assert set(words) <= {"--help", "-h", "--version"}, f"no such command: {command}"


WITH_PYTHON = [name for name, path in PAGES.items() if any(b.language == "python" for b in blocks_of(path.read_text()))]
WITH_COMMANDS = [name for name, path in PAGES.items() if commands_of(path.read_text())]


@pytest.fixture
def page_folder(tmp_path, monkeypatch):
    """An empty working folder; what a page registers is forgotten afterwards."""
    folder = tmp_path / "page"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(registry, "METHODS", dict(registry.discover()))
    tables: list[dict[str, Any]] = [SOURCES, NAMED]
    kept = [dict(table) for table in tables]
    before = set(sys.modules)
    yield folder
    for table, content in zip(tables, kept, strict=True):
        table.clear()
        table.update(content)
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def run_page(name: str, folder: Path) -> str:
    """Run the Python blocks of a page; returns what they printed."""
    path, namespace = PAGES[name], dict[str, Any](__name__="page")
    printed = io.StringIO()
    for block in blocks_of(path.read_text()):
        if block.language != "python":
            continue
        with contextlib.redirect_stdout(printed):
            if block.title:
                namespace |= vars(import_file(block, folder))
            else:
                # As many newlines as there are lines before it, so that a traceback names the page's own line.
                exec(compile("\n" * (block.line - 1) + block.code, str(path), "exec"), namespace)
    return printed.getvalue()


def import_file(block: Block, folder: Path) -> types.ModuleType:
    """Write a block to the file that its title names, and import it under the name that it would have there."""
    file = folder / str(block.title)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(block.code)
    name = str(block.title).removesuffix(".py").replace("/", ".")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    if file.name.startswith("test_"):
        tests = [f for n, f in vars(module).items() if n.startswith("test_")]
        assert tests, f"{block.title} holds no test"
        for test in tests:
            test()
    return module


@pytest.mark.parametrize("name", WITH_PYTHON)
def test_every_python_block_of_the_page_runs(name, page_folder):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    try:
        run_page(name, page_folder)
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", WITH_COMMANDS)
def test_every_command_on_the_page_parses(name):
    for line, command in commands_of(PAGES[name].read_text()):
        try:
            parse(command)
        except click.ClickException as error:
            pytest.fail(f"{name}, line {line}: {command}\n{error.format_message()}")


def test_every_make_target_shown_exists():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = set()
    for path in PAGES.values():
        for row in re.findall(r"(?:^\$? ?|`)make ((?:\w+ ?)+)(?=`|$| *#)", path.read_text(), re.MULTILINE):
            shown |= set(row.split())
    assert {"demo", "test"} <= shown <= targets


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_relative_links_outside_the_site_lead_to_files(name):
    text = FENCE.sub("", (ROOT / name).read_text())
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_command_has_its_place_in_the_docs():
    shown = {shlex.split(c)[1] for n in WITH_COMMANDS for _, c in commands_of(PAGES[n].read_text())}
    assert set(main.commands) <= shown


def test_the_methods_that_the_readme_names_are_registered_and_complete():
    table = re.search(r"^## What is in it now\n(.*?)^## ", PAGES["README.md"].read_text(), re.MULTILINE | re.DOTALL)
    assert table
    rows = [row for row in table[1].splitlines() if re.match(r"\| (black-box|one-shot|differentiable|evaluation)", row)]
    named = {slug for row in rows for slug in re.findall(r"`([a-z0-9-]+)`", row)}
    registered = {s for s, m in registry.discover().items() if m.family.startswith("search.")}
    assert named == registered


def test_the_checks_themselves_find_what_is_wrong():
    text = "a `archipel shw x`\n\n```console\n$ archipel search --dat wine\n```\n\n"
    text += '  ```python title="m.py"\n  x = 1\n  ```\n'
    commands = commands_of(text)
    assert commands == [(4, "archipel search --dat wine"), (1, "archipel shw x")]
    with pytest.raises(click.NoSuchOption):
        parse(commands[0][1])
    with pytest.raises(AssertionError, match="no such command"):
        parse(commands[1][1])
    assert blocks_of(text)[1] == Block("python", "m.py", 8, "x = 1\n")
