"""Pages that MkDocs makes: tutorials from ``examples/``, command lines, the changelog.

Each has one source, so that what a person reads is what the tests run.
"""

from __future__ import annotations

import os
import posixpath
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ("laser-pipeline", "seqvault", "laser-serving")
_CELL = re.compile(r"^# %%(.*)$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:|#)([^)#\s]+)[^)\s]*\)")
_SUBCOMMAND = re.compile(r"^    ([a-z][a-z-]*)(?:  |$)", re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """MkDocs's hook: add the generated pages to the site's files."""
    from mkdocs.structure.files import File

    for address, text in pages().items():
        files.append(File.generated(config, address, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """MkDocs's hook: the site has no page for files of the repository outside ``docs/``."""
    return without_outer_links(markdown, page.file.src_uri)


def without_outer_links(markdown: str, address: str) -> str:
    """A page's text with links that leave ``docs/`` shown as paths of the repository.

    Example:
        >>> without_outer_links("[The runs](../../benchmarks/x.md), [that](a.md).", "layers/b.md")
        'The runs (`benchmarks/x.md`), [that](a.md).'
    """

    def shown(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(address), link[2]))
        return link[0] if path.startswith("docs/") else f"{link[1]} (`{path}`)"

    return _LINK.sub(shown, markdown)


def pages() -> dict[str, str]:
    """Markdown of every generated page, by its address."""
    made = {
        f"tutorials/{path.stem}.md": tutorial(path.name, path.read_text(encoding="utf-8"))
        for path in sorted((ROOT / "examples").glob("*.py"))
    }
    made["reference/command_lines.md"] = command_lines()
    made["reference/changelog.md"] = changelog()
    return made


def tutorial(name: str, source: str) -> str:
    """The page of a script in notebook prose: its text cells as text, its code cells as code.

    Example:
        >>> print(tutorial("x.py", "# %% [markdown]\\n# # Title\\n# Text.\\n\\n# %%\\na = 1\\n"))
        # Title
        Text.
        <BLANKLINE>
        *This page is `examples/x.py`, which the tests run.*
        <BLANKLINE>
        ```python
        a = 1
        ```
        <BLANKLINE>
    """
    _, *cells = _CELL.split(source)
    parts = []
    for kind, cell in zip(cells[::2], cells[1::2], strict=True):
        body = cell.strip("\n")
        if kind.strip() == "[markdown]":
            parts.append(
                "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.split("\n"))
            )
        elif body:
            parts.append(f"```python\n{body}\n```")
    parts.insert(1, f"*This page is `examples/{name}`, which the tests run.*")
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def command_lines() -> str:
    """Every command's own ``--help``."""
    parts = [
        "# Command lines",
        "What `--help` says, of every command. All programs take `--version`.",
    ]
    for program in PROGRAMS:
        text = _help(program)
        parts += [f"## {program}", f"```text\n{text}```"]
        for command in _SUBCOMMAND.findall(text.split("\noptions:")[0]):
            parts += [f"### {program} {command}", f"```text\n{_help(program, command)}```"]
    return "\n\n".join(parts) + "\n"


def _help(program: str, *command: str) -> str:
    script = Path(sys.executable).with_name(program)
    done = subprocess.run(
        [str(script), *command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "100"},
    )
    return done.stdout


def changelog() -> str:
    """The changelog, its links as seen from the site."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    return text.replace("](docs/", "](../")
