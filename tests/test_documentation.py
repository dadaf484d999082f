"""Pages lead somewhere and say nothing that cannot run; tutorials are the tested examples."""

import doctest
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOOL = importlib.util.spec_from_file_location("docs_pages", ROOT / "tools" / "docs_pages.py")
assert TOOL is not None and TOOL.loader is not None
docs_pages = importlib.util.module_from_spec(TOOL)
TOOL.loader.exec_module(docs_pages)

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md", ".github/**/*.md")
    for path in ROOT.glob(pattern)
)
GENERATED = {ROOT / "docs" / "reference" / f"{name}.md" for name in ("command_lines", "changelog")}
GENERATED |= {
    ROOT / "docs" / "tutorials" / f"{path.stem}.md" for path in (ROOT / "examples").glob("*.py")
}
# Their blocks are executed by the tests of their room.
EXECUTED_ELSEWHERE = ("README.md", "docs/layers/", "docs/datasets.md", "docs/seqvault/")
HERE = [
    path
    for path in PAGES
    if "```python" in path.read_text(encoding="utf-8")
    and not str(path.relative_to(ROOT)).startswith(EXECUTED_ELSEWHERE)
]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Addresses of a page's headings, as GitHub and MkDocs both make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lost = []
    for link in re.findall(r"\]\((?!https?://|mailto:)([^)\s]+)\)", text):
        address, _, anchor = link.partition("#")
        target = (page.parent / address).resolve() if address else page
        if target in GENERATED:
            continue
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []


@pytest.mark.parametrize("page", HERE, ids=name_of)
def test_python_blocks_run(page: Path) -> None:
    namespace: dict[str, object] = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        exec(compile(block, page.name, "exec"), namespace)


def test_commands_in_code_blocks_exist() -> None:
    """What a page tells to type is a target of make, a program of ours, or a file that is there."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
            for line in block.splitlines():
                words = line.split("#")[0].split()
                if words[:1] == ["make"]:
                    assert set(words[1:2]) <= targets, f"{page.name}: {line}"
                if words[:1] == ["python"]:
                    assert (ROOT / words[1]).exists(), f"{page.name}: {line}"


def test_every_example_has_a_page_in_the_navigation_and_a_line_in_the_list() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = (ROOT / "docs" / "tutorials" / "index.md").read_text(encoding="utf-8")
    for path in (ROOT / "examples").glob("*.py"):
        assert f"tutorials/{path.stem}.md" in navigation, path.name
        assert f"]({path.stem}.md)" in listed, path.name


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if page not in navigation] == []


def test_the_examples_of_the_sites_tools_run() -> None:
    results = doctest.testmod(docs_pages, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.failed == 0 and results.attempted > 1


def test_a_tutorial_is_its_scripts_cells() -> None:
    page = docs_pages.tutorial(
        "x.py", "# %% [markdown]\n# # Title\n# Text.\n\n# %%\na = 1\n\n\n# %% [markdown]\n# End.\n"
    )
    assert page.startswith("# Title\nText.\n\n*This page is `examples/x.py`")
    assert page.endswith("```python\na = 1\n```\n\nEnd.\n")


def test_command_lines_are_the_programs_own_help() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import docs_pages; print(docs_pages.command_lines())"],
        cwd=ROOT / "tools",
        capture_output=True,
        text=True,
        check=True,
    )
    for heading in ("## laser-pipeline", "### seqvault get", "### laser-serving gateway"):
        assert f"\n{heading}\n" in done.stdout
