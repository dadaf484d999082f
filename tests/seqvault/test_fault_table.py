"""The table of fault tests names tests that there are."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_in_the_table_is_there():
    table = (ROOT / "docs" / "seqvault" / "fault_tests.md").read_text()
    named = set(re.findall(r"`(test_\w+|Test\w+)`", table))
    sources = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    there = set(re.findall(r"^(?:def )?(test_\w+|Test\w+)(?:\(| = )", sources, re.MULTILINE))
    assert len(named) > 30
    assert named <= there, named - there
