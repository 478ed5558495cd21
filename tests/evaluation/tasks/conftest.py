"""What the tests of several evaluations need."""

import json

import pytest


@pytest.fixture
def write(tmp_path):
    """Write rows to a JSONL file; returns its path."""

    def to_file(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return to_file
