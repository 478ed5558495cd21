"""The rules of the house, held by looking at the source: imports, names, and what may not be in it."""

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "pipeline"
# An import goes to a room further left, never to the right; rooms that share a place do not import each other.
ORDER = [
    {"runtime"},
    {"objectives", "worlds"},
    {"model"},
    {"data"},
    {"inference"},
    {"rewards"},
    {"publish"},
    {"training", "evaluation"},
    {"reporting", "recipes"},
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
STAGE_RANK = len(ORDER)
# The files that travel with a saved model import only each other.
SIBLINGS = {path.stem for path in (PACKAGE / "model" / "narlm").glob("*_narlm.py")}


def modules() -> list[Path]:
    """Every Python file of the package."""
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py" or path.parent != PACKAGE)


def room_of(path: Path) -> str:
    """The room a file is in; a stage's own name for a stage file."""
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imported_modules(path: Path) -> set[str]:
    """Modules of this package that a file imports, at its top or inside functions: ``pipeline.data.files``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 or path.stem in SIBLINGS, f"{path}: relative import"
            if node.level == 0 and node.module:
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {name for name in inside if is_module(name)} or {node.module}
    return {name for name in found if name.startswith("pipeline.")}


def is_module(name: str) -> bool:
    """Whether ``pipeline.x.y`` is a file or a folder of the package."""
    path = ROOT / Path(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    """To rooms of a lower rank; a stage may import every room and no other stage."""
    room = room_of(path)
    rank = RANK.get(room, STAGE_RANK)
    for other in {name.split(".")[1] for name in imported_modules(path)} - {room}:
        assert RANK.get(other, STAGE_RANK) < rank, f"{room} imports {other}"


def test_no_circle_of_imports():
    """Not inside a room either: of two files that import each other neither can be read first."""
    imports = {name_of(path): imported_modules(path) for path in modules()}
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"circle: {' -> '.join((*way, name))}"
        if name not in done:
            for other in imports.get(name, ()):
                walk(other, (*way, name))
            done.add(name)

    for name in imports:
        walk(name, ())


def name_of(path: Path) -> str:
    """``pipeline.data.files`` of its path; a package is named by its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_every_room_is_known():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == set(RANK)


def test_no_child_of_the_package_shadows_another_module():
    """A stage run as a script has pipeline/ as sys.path[0]: a file called datasets.py would hide the library."""
    children = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()} - {"__pycache__"}
    installed = {name for name in metadata.packages_distributions() if not name.startswith("_")} - {"pipeline"}
    assert children & set(sys.stdlib_module_names) == set()
    assert children & installed == set()


def test_importing_the_package_is_light():
    code = "import sys, pipeline; print([m for m in ('torch', 'transformers', 'trl', 'datasets') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "[]\n"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_eval(path):
    """`eval` or `exec` on anything is how a completion becomes code."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    # The two programs that run inside the sandbox's boxes are the one place where code is meant to be run.
    if path.stem not in ("candidate_box", "tests_box"):
        assert calls & {"eval", "exec"} == set()


def test_every_public_function_and_class_has_a_docstring():
    missing = []
    for path in modules():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and ast.get_docstring(node) is None:
                missing.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert missing == []


def test_long_functions_and_files_are_few():
    """At most five functions over 60 lines, and at most five files over 400, tests among them."""
    functions, files = [], []
    for path in sorted([*modules(), *(ROOT / "tests").rglob("*.py")]):
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 400:
            files.append(f"{path.relative_to(ROOT)}: {len(text.splitlines())}")
        if path.is_relative_to(PACKAGE):
            nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
            sizes = [(node.name, node.end_lineno - node.lineno + 1) for node in nodes]
            functions += [f"{path.relative_to(ROOT)}: {name} {size}" for name, size in sizes if size > 60]
    assert len(functions) <= 5, "split along ideas: " + "; ".join(functions)
    assert len(files) <= 5, "split along ideas: " + "; ".join(files)
