"""Shared fixtures: everything runs offline, and tests on real data skip with a reason where the data is absent."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Path of a file below the real-data folder (``NARLM_DATA``, else ``../shared/data``); skips where absent."""
    folder = Path(os.environ.get("NARLM_DATA", ROOT.parent / "shared" / "data"))

    def locate(name: str) -> Path:
        path = folder / name
        if not path.exists():
            pytest.skip(f"real data file {name} is not here: set NARLM_DATA to the folder that holds it")
        return path

    return locate
