"""``python -m pipeline.rewards``: rows in, rows with verdicts out, mistakes named by file, row and field."""

import json
import subprocess
import sys
import time

import pytest

from pipeline.rewards.__main__ import main, summary
from pipeline.rewards.judging import right, unscorable, wrong
from pipeline.runtime.errors import UserError


@pytest.fixture
def score(tmp_path):
    """Writes rows, scores them, and gives back the rows written."""

    def run(rows, *flags, reward="numeric"):
        source, out = tmp_path / "rows.jsonl", tmp_path / "scores.jsonl"
        text = rows if isinstance(rows, str | bytes) else "".join(json.dumps(row) + "\n" for row in rows)
        source.write_bytes(text if isinstance(text, bytes) else text.encode())
        main(["--reward", reward, "--file", str(source), "--out", str(out), *flags])
        return [json.loads(line) for line in out.read_text().splitlines()]

    return run


def test_scores_verdicts_and_kept_columns(score, capsys):
    rows = [
        {"completion": "#### 72", "answer": "72", "id": 7},
        {"completion": "so 72", "answer": 72, "id": 8},
        {"completion": "#### 72", "answer": None, "id": 9},
        {"completion": "#### 72", "id": 10},
    ]
    assert score(rows) == [
        {**rows[0], "score": 1.0, "lenient_score": 1.0, "verdict": "right"},
        {**rows[1], "score": 0.0, "lenient_score": 1.0, "verdict": "wrong"},
        {**rows[2], "score": None, "lenient_score": None, "verdict": "unscorable"},
        {**rows[3], "score": None, "lenient_score": None, "verdict": "unscorable"},
    ]
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "right: 1 of 4 (25.0%)",
        "wrong: 1 of 4 (25.0%)",
        "unscorable: 2 of 4 (50.0%)",
        "mean score: 0.5000 over 2 rows",
        "mean lenient score: 1.0000 over 2 rows",
    ]
    assert printed.err.splitlines()[0] == "warning: row 3: unscorable: the gold answer is missing"


def test_dataset_map_renames_for_the_reward_and_keeps_the_rows_names(score):
    rows = [{"response": [{"role": "assistant", "content": "#### 1"}], "gold": "1", "verdict": "old"}]
    scored = score(rows, "--dataset_map", "gold=answer, response=completion")
    assert scored == [{**rows[0], "score": 1.0, "lenient_score": 1.0, "verdict": "right"}]


def test_graded_rewards_have_no_lenient_score(score):
    rows = [{"completion": "w " * 12}]
    assert score(rows, "--options", "limit=8, buffer=4", reward="length") == [
        {**rows[0], "score": -1.0, "verdict": "scored"}
    ]


def test_numbers_survive_as_written(score):
    """A JSON integer of 30 digits is exact; dates stay text; a byte order mark and blank lines are in no row."""
    rows = f'{{"completion": "#### {"1" * 30}", "answer": {"1" * 30}, "day": "2020-01-01"}}\n'
    rows += '\n{"completion": "#### 2", "answer": "2"}\n'
    scored = score("\ufeff" + rows)
    assert [row["verdict"] for row in scored] == ["right", "right"]
    assert (scored[0]["answer"], scored[0]["day"]) == (int("1" * 30), "2020-01-01")


@pytest.mark.parametrize(
    ("rows", "flags", "message"),
    [
        ([{"answer": "1"}], [], r"rows.jsonl, row 1: completion is missing"),
        ([{"completion": "a", "answer": "1"}, {"completion": 3}], [], r"row 2: completion: .* not int"),
        ([{"completion": "a", "gold": "1"}], [], r"needs the column 'answer'; the data has: gold"),
        (
            [{"completion": "a"}],
            ["--dataset_map", "gold=answer"],
            r"rows.jsonl has no column 'gold' to rename \(dataset_map\); it has completion",
        ),
        ([{"completion": "a", "b": 1, "answer": 2}], ["--dataset_map", "b=answer"], r"already has a column 'answer'"),
        ('{"completion": "a", "answer": "1"}\n{"completion"\n', [], r"rows.jsonl, row 2: not valid JSON"),
        ("[1]\n", [], r"row 1: a JSON object was expected, found list"),
        (b'{"completion": "\xff"}\n', [], r"row 1: not UTF-8 text at byte 16"),
        ('\n{"completion": "a"}\n{"completion": "\\ud800"}\n', [], r"row 3: half a surrogate pair"),
        (f'{{"completion": "a", "answer": {"9" * 5000}}}', [], r"row 1: an integer of 5000 digits"),
        ("\n", [], r"is empty: it has no rows"),
        ([{"completion": "a"}], ["--options", "limit"], r"cannot read the options"),
        ([{"completion": "a"}], ["--options", "limit=3"], r"unknown option 'limit'"),
        ([{"completion": "a"}], ["--verbose"], r"unrecognized arguments: --verbose"),
    ],
)
def test_mistakes_are_named(score, tmp_path, rows, flags, message):
    with pytest.raises(UserError, match=message):
        score(rows, *flags)
    assert not (tmp_path / "scores.jsonl").exists()


def test_a_mistake_is_one_line_and_exit_code_2_and_help_is_quick(tmp_path):
    base = [sys.executable, "-m", "pipeline.rewards"]
    failed = subprocess.run(
        [*base, "--reward", "numeric", "--file", "no.jsonl", "--out", "o"], capture_output=True, text=True
    )
    assert failed.returncode == 2
    assert failed.stderr.count("\n") == 1
    assert failed.stderr.startswith("error: no.jsonl cannot be read: No such file")
    start = time.perf_counter()
    shown = subprocess.run([*base, "--help"], capture_output=True, text=True, check=True)
    assert time.perf_counter() - start < 2
    assert "numeric" in shown.stdout


def test_a_failed_write_leaves_the_old_file(score, tmp_path, monkeypatch):
    score([{"completion": "#### 1", "answer": "1"}])
    before = (tmp_path / "scores.jsonl").read_text()
    monkeypatch.setattr("os.replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="No space left"):
        score([{"completion": "#### 2", "answer": "1"}])
    assert (tmp_path / "scores.jsonl").read_text() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "scores.jsonl"]


def test_other_files_are_read_as_the_stages_read_them(tmp_path):
    """A csv whose quote is never closed loses no row here either: row 2 is line 3."""
    source, out = tmp_path / "rows.csv", tmp_path / "scores.jsonl"
    command = ["--reward", "numeric", "--file", str(source), "--out", str(out)]
    source.write_text('completion,answer\n#### 1,1\n"two\nlines #### 3",2\n')
    main(command)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["completion"], row["verdict"]) for row in rows] == [
        ("#### 1", "right"),
        ("two\nlines #### 3", "wrong"),
    ]
    source.write_text('completion,answer\n#### 1,1\n"#### 2,2\n#### 3,3\n')
    with pytest.raises(UserError, match=r"rows\.csv, row 2, which begins at line 3: a quote opens"):
        main(command)


def test_summary_of_unscorable_rows_has_no_mean():
    assert summary([unscorable("x")]) == ["unscorable: 1 of 1 (100.0%)"]
    assert summary([right(), wrong()])[-1] == "mean score: 0.5000 over 2 rows"
