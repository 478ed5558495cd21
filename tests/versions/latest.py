"""``make test-latest``: the suite on the newest minor versions of the libraries that the package index has.

Installs transformers, trl, peft, accelerate and torch over this environment, in ``build/versions/latest``, prints the
versions, and runs pytest there; the exit status is pytest's.

    python -m tests.versions.latest                           all five, the whole suite
    python -m tests.versions.latest --keep-torch tests/model  this environment's torch, some tests

The newest torch on the index may be a build with several gigabytes of GPU libraries: ``--keep-torch`` spares them.
"""

import os
import subprocess
import sys
from importlib.metadata import version

from tests.conftest import ROOT
from tests.versions.environments import newest_minors, overlay

PACKAGES = ("transformers", "trl", "peft", "accelerate")
SHOW = (
    "from importlib.metadata import version; import sys; print(', '.join(f'{p} {version(p)}' for p in sys.argv[1:]))"
)


def main(arguments: list[str]) -> int:
    """Install, say what was installed, run pytest with the arguments; its exit status."""
    keep_torch = "--keep-torch" in arguments
    arguments = [argument for argument in arguments if argument != "--keep-torch"]
    requirements = [f"{package}=={newest_minors(package, 1)[0]}" for package in PACKAGES]
    newest_torch = newest_minors("torch", 1)[0]
    python = overlay("latest", requirements, upgrade=() if keep_torch else ("torch",))
    installed = subprocess.run([python, "-c", SHOW, *PACKAGES, "torch"], capture_output=True, text=True, check=True)
    print(f"tested: {installed.stdout.strip()}", flush=True)
    if keep_torch and not version("torch").startswith(newest_torch):
        print(f"not tested: torch {newest_torch}, the newest on the index", flush=True)
    # The stage tests start commands of their own: they find the checkout by PYTHONPATH, accelerate beside Python.
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [python, "-m", "pytest", *(arguments or ["-m", "not slow"])]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
