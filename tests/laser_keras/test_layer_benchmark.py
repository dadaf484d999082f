"""The benchmark compares like with like."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layer_tools import assert_close, randomise

from laser_keras import LaserEncoder

PATH = Path(__file__).parents[2] / "benchmarks" / "layers" / "paper_form.py"


def paper_form() -> Any:
    spec = importlib.util.spec_from_file_location("paper_form", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["paper_form"] = module
    spec.loader.exec_module(module)
    return module.PaperForm


def test_the_papers_form_is_the_same_function() -> None:
    rng = np.random.default_rng(0)
    target = rng.normal(size=(4, 3, 8)).astype("float32")
    history = rng.normal(size=(4, 100, 8)).astype("float32")
    mask = np.arange(100) < np.array([[100], [100], [37], [0]])  # also empty segments, also all
    mask[:2, [5, 17, 99]] = False
    encoders = [LaserEncoder.as_printed(), paper_form()()]
    for encoder in encoders:
        encoder.build(target.shape, history.shape)
        randomise(encoder)
    ours, theirs = (encoder(target, history, mask=mask) for encoder in encoders)
    assert_close(theirs, ours)
    ours, theirs = (encoder(target, history) for encoder in encoders)
    assert_close(theirs, ours)


def test_the_papers_form_says_what_it_cannot_do() -> None:
    target, history = np.ones((1, 1, 8), "float32"), np.ones((1, 95, 8), "float32")
    with pytest.raises(ValueError, match="must be built before `call`"):
        paper_form()().call(target, history)
    with pytest.raises(ValueError, match=r"whole segments of 10 events. Received: 95"):
        paper_form()()(target, history)


def test_the_page_shows_the_raw_results() -> None:
    spec = importlib.util.spec_from_file_location("render", PATH.with_name("render.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.README.read_text()
    assert page == module.replace_rendered(page, module.render(module.load()))
