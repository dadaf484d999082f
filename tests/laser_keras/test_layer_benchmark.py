"""The benchmark compares like with like."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
from layer_tools import assert_close, randomise

from laser_keras import LaserEncoder

PATH = Path(__file__).parents[2] / "benchmarks" / "layers" / "paper_form.py"


def test_the_papers_form_is_the_same_function() -> None:
    spec = importlib.util.spec_from_file_location("paper_form", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["paper_form"] = module
    spec.loader.exec_module(module)
    rng = np.random.default_rng(0)
    target = rng.normal(size=(2, 3, 8)).astype("float32")
    history = rng.normal(size=(2, 100, 8)).astype("float32")
    mask = np.ones((2, 100), bool)
    mask[:, [5, 17, 99]] = False  # every segment keeps a valid event
    encoders = [LaserEncoder(), module.PaperForm()]
    for encoder in encoders:
        encoder.build(target.shape, history.shape)
        randomise(encoder)
    ours, theirs = (encoder(target, history, mask=mask) for encoder in encoders)
    assert_close(theirs, ours)


def test_the_page_shows_the_raw_results() -> None:
    spec = importlib.util.spec_from_file_location("render", PATH.with_name("render.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    page = module.README.read_text()
    assert page == module.replace_rendered(page, module.render(module.load()))
