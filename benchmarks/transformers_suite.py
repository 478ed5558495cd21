"""Run transformers' own common test suite against NarLM.

    python benchmarks/transformers_suite.py                     # the tests in the source distribution
    python benchmarks/transformers_suite.py --tests checkout/tests  # a checkout of the matching tag: generation too

The test code is transformers' and stays out of this repository: without ``--tests`` the source distribution of the
installed version is fetched from the package index and unpacked into a temporary folder. It holds the model, training
and configuration testers but not the generation, export and causal-LM ones, which only a checkout has
(``git clone --depth 1 --branch v<version> https://github.com/huggingface/transformers``).
Further arguments go to pytest, e.g. ``-k beam``. The exit code is pytest's.
"""

import argparse
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = importlib.metadata.version("transformers")
CASES = Path(__file__).with_name("transformers_suite_cases.py")
# What the source distribution lacks -> stand-ins that hold no test, for the modules that import it.
ABSENT = {
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments], check=True)


def prepare(folder: Path, tests: Path | None) -> None:
    """Fill ``folder`` with the package ``tests`` and what it imports; stand-ins replace absent modules."""
    if tests is None:
        # No metadata is built: an sdist of transformers needs nothing but unpacking here.
        pip(
            "download",
            "--no-binary",
            ":all:",
            "--no-deps",
            "--no-build-isolation",
            "-d",
            str(folder),
            f"transformers=={VERSION}",
        )
        with tarfile.open(folder / f"transformers-{VERSION}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
        shutil.move(folder / f"transformers-{VERSION}" / "tests", folder / "tests")
    else:
        shutil.copytree(tests, folder / "tests")
    (folder / "tests" / "__init__.py").touch()
    for name, stand_in in ABSENT.items():
        path = folder / "tests" / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            (path.parent / "__init__.py").touch()
            path.write_text(stand_in)
            print(f"absent from the source distribution, so not run: tests/{name}")
    try:
        import parameterized  # noqa: F401
    except ImportError:
        pip("install", "--no-deps", "--target", str(folder), "parameterized")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=Path, help="the tests folder of a transformers checkout")
    arguments, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, arguments.tests)
        command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", name, "-p", "no:cacheprovider"]
        environment = {**os.environ, "PYTHONPATH": name}
        return subprocess.run(
            [*command, "-q", "-rs", "-W", "ignore", *rest, str(CASES)], env=environment, cwd=name
        ).returncode


if __name__ == "__main__":
    sys.exit(main())
