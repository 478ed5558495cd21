"""The maps point at things that exist: every file, name and test that docs/paper_map.md and docs/errata.md mention."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT


def names(path: Path) -> set[str]:
    """Functions, classes, methods and attributes set on ``self`` in a file."""
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    found = set()
    for node in tree:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
    return found


@pytest.mark.parametrize("document", ["paper_map.md", "errata.md"])
def test_every_test_named_exists(document):
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    path, count = None, 0
    for reference in re.findall(r"`((?:[\w/]*/)?test_\w+\.py(?:::\w+)?|::\w+)`", text):
        name, _, function = reference.partition("::")
        if name:
            path = ROOT / ("" if name.startswith("tests/") else "tests") / name
        assert path.exists(), reference
        if function:
            assert function in names(path), reference
        count += 1
    assert count >= 20


def test_every_piece_of_code_named_exists():
    text = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8")
    count = 0
    for file, first, others in re.findall(r"`([\w/]+\.py): ([\w.]+)`((?:, `[\w.]+`)*)", text):
        path = ROOT / "pipeline" / ("model/narlm/modeling_narlm.py" if file == "model.py" else file)
        for name in [first, *re.findall(r"`([\w.]+)`", others)]:
            if not name.endswith(".py"):
                assert set(name.split(".")) <= names(path), f"{file}: {name}"
                count += 1
    assert count >= 20
