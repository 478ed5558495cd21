"""The size and the shape of the package, for the table in CONTRIBUTING.md.

python benchmarks/house.py                       # this checkout
git worktree add ../before 014cabe && python benchmarks/house.py ../before
"""

import ast
import re
import sys
from pathlib import Path

ANY = re.compile(r"(?m)^.*\bAny\b.*$")


def main(root: Path) -> None:
    """Print one line per figure."""
    package = root / "pipeline"
    sources = {path: path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in sources.items()}
    imports = {name_of(path, root): imported(tree, root) for path, tree in trees.items()}
    rooms = {(room_of(name), room_of(other)) for name, others in imports.items() for other in others}
    functions = [
        node.end_lineno - node.lineno + 1
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    files = {path: len(text.splitlines()) for path, text in sources.items()}
    tests = [len(path.read_text(encoding="utf-8").splitlines()) for path in (root / "tests").rglob("*.py")]
    print(f"lines: {sum(files.values())}")
    print(f"files: {len(files)}")
    print(f"rooms: {len({path.parent for path in files} - {package})}")
    print(f"circles of files: {len(circles(imports))}")
    print(f"pairs of rooms that import each other: {sum(a < b and (b, a) in rooms for a, b in rooms)}")
    print(f"files over 400 lines, tests too: {sum(lines > 400 for lines in (*files.values(), *tests))}")
    print(f"functions over 60 lines: {sum(lines > 60 for lines in functions)}")
    print(f"lines with Any: {sum(len(ANY.findall(text)) for text in sources.values())}")


def name_of(path: Path, root: Path) -> str:
    """``pipeline.data.files`` of a file's path; a package has its folder's name."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(name: str) -> str:
    """``data`` of ``pipeline.data.files``."""
    return name.split(".")[1] if name.count(".") else ""


def imported(tree: ast.Module, root: Path) -> set[str]:
    """The package's modules that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in inside if (root / name.replace(".", "/")).with_suffix(".py").is_file()} or {
                node.module
            }
    return {name for name in found if name.startswith("pipeline.")}


def circles(imports: dict[str, set[str]]) -> set[frozenset[str]]:
    """Groups of files that reach each other by imports."""
    reached = {name: reach(name, imports) for name in imports}
    groups = {frozenset(other for other in reached[name] if name in reached.get(other, ())) for name in imports}
    return {group for group in groups if len(group) > 1}


def reach(name: str, imports: dict[str, set[str]]) -> set[str]:
    """Every file that a file imports, directly or not."""
    found, left = set(), [name]
    while left:
        for other in imports.get(left.pop(), ()):
            if other not in found:
                found.add(other)
                left.append(other)
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve())
