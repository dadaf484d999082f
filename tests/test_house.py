"""Rules of the house: public names are a list that only grows on purpose; modules stay readable."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("laser_keras", "seqvault", "laser_features", "components", "tfx_pipeline", "serving")
PUBLIC_NAMES = Path(__file__).with_name("public_names.txt")
MOST_LINES = 400
REASON = f"# Over {MOST_LINES} lines: "


def exported(package: Path) -> list[str]:
    """The names in ``__all__`` of a package, read without importing it."""
    tree = ast.parse((package / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]:
            return list(ast.literal_eval(node.value))
    return []


def test_public_names_are_those_of_the_list() -> None:
    """A new name is added to the list; one that goes follows ``docs/versioning.md`` first."""
    packages = [init.parent for room in ROOMS for init in (ROOT / room).rglob("__init__.py")]
    found = {
        f"{'.'.join(package.relative_to(ROOT).parts)}.{name}"
        for package in packages
        for name in exported(package)
    }
    listed = set(PUBLIC_NAMES.read_text(encoding="utf-8").split())
    assert listed - found == set(), "public names that are gone; see docs/versioning.md"
    assert found - listed == set(), f"new public names; add them to {PUBLIC_NAMES.name}"


def test_callbacks_and_tiny_specs_are_defined_once() -> None:
    """Long calls of every room report to one ``Progress``; tests share ``tiny_content``."""
    once = {
        r"^Progress = ": "seqvault/progress.py",
        r'"name": "tiny",?\s+"history": .*\s+"tables": \{"item": .*\s+"event": \{"item_id"': (
            "laser_features/testing.py"
        ),
    }
    for pattern, owner in once.items():
        found = [
            str(path.relative_to(ROOT))
            for folder in (*ROOMS, "tests")
            for path in (ROOT / folder).rglob("*.py")
            if re.search(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)
        ]
        assert found == [owner], f"use {owner}"


def test_no_signal_handler_takes_the_lock_of_an_event() -> None:
    """It may interrupt the thread that holds it, for ever; ``EndSignals`` has none."""
    found = [
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if re.search(r"signal\.signal\([^\n]*\.set\(\)", path.read_text(encoding="utf-8"))
    ]
    assert found == [], "wait by seqvault.end_signals.EndSignals"


def docstrings(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return [text for text in map(ast.get_docstring, nodes) if text]


def test_docstrings_are_in_plain_words() -> None:
    """Phrases that had to be explained: say what is meant, in the words of the field."""
    riddles = re.compile(
        r"untold|strangers?\b|lays? down|\bsee there\b|(written|made|begun) anew|to the letter",
        re.IGNORECASE,
    )
    found = {
        str(path.relative_to(ROOT)): riddles.findall(text)
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for text in docstrings(path)
        if riddles.search(text)
    }
    assert found == {}


def too_long(path: Path) -> bool:
    """Whether a module has more lines than it may and does not say why in its first one."""
    lines = path.read_text(encoding="utf-8").splitlines()
    said = bool(lines) and lines[0].startswith(REASON) and len(lines[0]) > len(REASON) + 10
    return len(lines) > MOST_LINES and not said


def test_a_long_module_says_why_it_is_long() -> None:
    sources = [
        path
        for folder in (*ROOMS, "examples", "benchmarks", "tools")
        for path in (ROOT / folder).rglob("*.py")
        if not path.name.endswith(("_pb2.py", "_pb2_grpc.py"))
    ]
    assert len(sources) > 100
    assert [str(path.relative_to(ROOT)) for path in sources if too_long(path)] == []


def test_a_module_that_says_why_it_is_long_is_long(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("pass\n" * (MOST_LINES + 1))
    assert too_long(module)
    module.write_text(f"{REASON}a table that is read as a whole.\n" + "pass\n" * MOST_LINES)
    assert not too_long(module)
    stale = [
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        if path.read_text(encoding="utf-8").startswith(REASON)
        and len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    ]
    assert stale == [], "these give a reason that they do not need any more"


def test_names_of_test_files_do_not_repeat_their_folder() -> None:
    repeated = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if path.stem.startswith(f"test_{path.parent.name}_")
    ]
    assert repeated == []
