"""The ground floor imports nothing heavy: every stage's help and every finished run start from it."""

import ast
import subprocess
import sys

from tests.conftest import ROOT

HEAVY = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors", "huggingface_hub", "numpy")


def test_every_runtime_module_imports_nothing_heavy():
    names = [f"pipeline.runtime.{path.stem}" for path in (ROOT / "pipeline" / "runtime").glob("*.py")]
    assert "pipeline.runtime.distributed" in names
    code = f"import sys, importlib; [importlib.import_module(n) for n in {names}]; "
    code += f"print([m for m in {HEAVY} if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout == "[]\n", result.stderr


def test_only_the_run_itself_writes_into_its_record():
    """Everything else says ``run.note(key, value)``."""
    writers = []
    for path in (ROOT / "pipeline").rglob("*.py"):
        if path.parent.name == "runtime":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for target in getattr(node, "targets", [getattr(node, "target", None)]):
                text = ast.unparse(target) if isinstance(target, ast.Subscript | ast.Attribute | ast.Tuple) else ""
                if "run.record[" in text:
                    writers.append(f"{path.name}:{node.lineno} {text}")
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("run.record.update", "run.record.setdefault", "run.record.pop")
            ):
                writers.append(f"{path.name}:{node.lineno} {ast.unparse(node.func)}")
    assert writers == []
