"""Every Python block of the layers' pages runs, and every link leads somewhere."""

import re
from pathlib import Path

import pytest
from layer_tools import long_on

import laser_keras

PAGES = sorted((Path(__file__).parents[2] / "docs" / "layers").glob("*.md"))


@pytest.mark.parametrize("page", long_on(("jax",), PAGES), ids=lambda page: page.name)
def test_blocks_run(page: Path) -> None:
    namespace: dict[str, object] = {"__name__": "page"}
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        exec(compile(block, page.name, "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_every_page_is_listed() -> None:
    index = next(page for page in PAGES if page.name == "README.md").read_text()
    assert [
        page.name for page in PAGES if page.name != "README.md" and page.name not in index
    ] == []


SECTIONS = ("Idea", "Shapes", "Source")


@pytest.mark.parametrize(
    "page",
    [p for p in PAGES if p.read_text().startswith("# `")],
    ids=lambda page: page.name,
)
def test_a_layers_page_has_idea_shapes_source_cost_and_an_example(page: Path) -> None:
    text = page.read_text()
    for section in SECTIONS:
        assert f"**{section}.**" in text, section
    assert "```python" in text
    # A layer that only moves numbers or looks them up costs nothing worth a paragraph.
    cheap = ("multi_resolution_fusion", "recency_embedding", "sequence_tokenizer")
    assert re.search(r"\*\*(Cost|Execution order)", text) or page.stem in cheap


def test_every_public_class_has_a_page_that_names_it() -> None:
    titles = " ".join(page.read_text().split("\n", 1)[0] for page in PAGES)
    rankers = {"LaserRanker", "SequenceRanker"}  # on the page "Rankers"
    layers = {name for name in laser_keras.__all__ if isinstance(getattr(laser_keras, name), type)}
    assert {name for name in layers - rankers if f"`{name}`" not in titles} == set()
    of_rankers = next(page for page in PAGES if page.name == "rankers.md").read_text()
    assert all(f"`{name}`" in of_rankers for name in rankers)
