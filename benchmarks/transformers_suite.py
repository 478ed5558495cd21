"""Run transformers' own common test suite against NarLM, and Llama's beside it.

    python benchmarks/transformers_suite.py                          # clones the tests of the installed version's tag
    python benchmarks/transformers_suite.py --checkout transformers  # a checkout that is there

The testers (model, generation, causal-LM, training, export, tensor-parallel, FSDP) are transformers' and stay out of
this repository; the source distribution on the package index holds only some of them, hence the tag. ``--checkout``
may name several folders, later ones laid over earlier ones. Further arguments go to pytest, e.g. ``-k beam``. At the
end are the counts of each class and the tests that NarLM skips though Llama runs them. The exit code is pytest's.
"""

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

VERSION = importlib.metadata.version("transformers")
CASES = [Path(__file__).with_name(f"transformers_suite_{name}.py") for name in ("cases", "vision_cases")]
LLAMA = "tests/models/llama/test_modeling_llama.py::LlamaModelTest"
REPOSITORY = "https://github.com/huggingface/transformers"
FOLDERS = ("tests", "utils/test_module")
PACKAGES = ("parameterized", "httpx")


def prepare(folder: Path, checkouts: list[Path]) -> None:
    """Fill ``folder`` with the tests and with the packages that only they import."""
    if not checkouts:
        checkouts = [folder / "checkout"]
        clone = ["git", "clone", "-q", "--depth", "1", "--filter=blob:none", "--sparse", "--branch", f"v{VERSION}"]
        subprocess.run([*clone, REPOSITORY, str(checkouts[0])], check=True)
        subprocess.run(["git", "-C", str(checkouts[0]), "sparse-checkout", "set", *FOLDERS], check=True)
    for checkout in checkouts:
        for name in FOLDERS:
            if (checkout / name).is_dir():
                shutil.copytree(checkout / name, folder / name, dirs_exist_ok=True)
    (folder / "tests" / "__init__.py").touch()
    (folder / "src").mkdir()  # where the testers look for the library itself: the installed one
    (folder / "src" / "transformers").symlink_to(Path(find_spec("transformers").origin).parent)
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--target", str(folder)]
        subprocess.run([*pip, *missing], check=True)


def outcomes(report: Path) -> dict[str, dict[str, tuple[str, str]]]:
    """{class: {test: (outcome, reason)}} from pytest's XML."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        mark = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        outcome = "passed" if mark is None else mark.tag
        reason = "" if mark is None else mark.get("message", "").partition("\n")[0]
        found.setdefault(case.get("classname").rpartition(".")[2], {})[case.get("name")] = (outcome, reason)
    return found


def compare(found: dict[str, dict[str, tuple[str, str]]]) -> None:
    """Print the counts of each class, and what it skips though Llama runs it."""
    llama = found.get("LlamaModelTest", {})
    for name, tests in found.items():
        counts = Counter(outcome for outcome, _ in tests.values())
        print(f"\n{name}: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())))
        for test, (outcome, reason) in sorted(tests.items()):
            if outcome == "skipped" and llama.get(test, ("passed",))[0] != "skipped":
                print(f"  skipped here only: {test}: {reason}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, nargs="+", default=[], help="a checkout of transformers")
    arguments, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, arguments.checkout)
        report = folder / "report.xml"
        command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", name, "-p", "no:cacheprovider"]
        command += ["-q", "-W", "ignore", "--junitxml", str(report), *rest, *map(str, CASES), LLAMA]
        path = os.pathsep.join((name, os.environ.get("PYTHONPATH", "")))
        environment = {**os.environ, "PYTHONPATH": path, "RUN_PIPELINE_TESTS": "0"}  # those need the Hub's models
        code = subprocess.run(command, env=environment, cwd=name).returncode
        if report.exists():
            compare(outcomes(report))
        return code


if __name__ == "__main__":
    sys.exit(main())
