"""The report from a folder in which everything has happened: whole, broken, hostile and unknown runs."""

import json
from html.parser import HTMLParser

import pytest

from pipeline import report
from pipeline.runtime.errors import UserError
from tests.reporting.test_history import put

EVIL = '<script>alert("x")</script>'
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Tags(HTMLParser):
    """Checks that every tag is closed in order, and collects the tags, addresses and text of a page."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links, self.text = [], set(), [], ""

    def handle_starttag(self, tag, attributes):
        self.seen.add(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def runs(tmp_path):
    """pretrain -> sft -> dpo (interrupted), ppo (a stage with figures nobody foresaw), two assessments, two ruins."""
    folder = tmp_path / "runs"
    loss = [{"step": i, "loss": 3.0 / i, "learning_rate": 0.1} for i in range(1, 20)]
    put(folder, "pretrain", "pretrain", history=[*loss, {"step": 1, "eval_loss": 3.0}, {"step": 19, "eval_loss": 1.0}],
        metrics={"steps": 19}, peak_memory_bytes=2_500_000_000, seconds=75.0)  # fmt: skip
    put(folder, "sft", "sft", parents=["pretrain"], history=loss)
    put(folder, "dpo", "dpo", parents=["sft"], status="interrupted")
    put(folder, "ppo", "ppo", parents=["sft"], history=[{"step": i, "surprise": i * i} for i in range(9)])
    put(folder, "failed", "grpo", status="failed", error=EVIL)
    (folder / "torn").mkdir()
    (folder / "torn" / "run.json").write_text("{")
    for name, parent, value, claim in (("a0", "pretrain", 0.25, None), ("a1", "sft", 0.75, "sums/pass@1 >= 0.9")):
        metrics = {
            "sums/pass@1": value,
            "sums/pass@1_low": value - 0.1,
            "sums/pass@1_high": value + 0.1,
            "sums/prompts": 9,
        }
        expected = (
            [{"claim": claim, "metric": "sums/pass@1", "value": value, "bound": 0.9, "met": False}] if claim else []
        )
        curves = {"mine": {"dose": [{"dose": i, "effect": i * i, "note": EVIL} for i in range(3)]}}
        tables = {"mine": {EVIL: [{"kind": EVIL, "share": 0.123456}]}}
        run = put(
            folder, name, "assess", parents=[parent], metrics=metrics, expected=expected, curves=curves, tables=tables
        )
        row = {"evaluation": "shown", "prompt": f"Say {EVIL}", "completions": [f"{name} {EVIL}"], "finished": [False]}
        (run / "samples.jsonl").write_text(json.dumps(row) + "\n")
    return folder


@pytest.fixture
def page(runs):
    report.main(["--runs", str(runs), "--title", EVIL])
    tags = Tags()
    tags.feed((runs / "report.html").read_text())
    assert tags.open == []
    return tags


def test_the_page_is_whole_self_contained_and_escaped(page, runs):
    assert "script" not in page.seen
    assert page.links == []
    assert page.text.count(EVIL) >= 6  # title, error, prompt and completions, as text
    assert "url(" not in (runs / "report.html").read_text()


def test_every_run_is_shown_with_its_state(page):
    for text in ("pretrain", "ppo", "failed", "the same command resumes it", "its run.json cannot be read"):
        assert text in page.text
    assert "held-out loss ↓ 3 → 1" in page.text
    assert page.text.count("1 min 15 s") == 2  # of pretrain, and of all together: they ran side by side
    assert "2.5 GB" in page.text
    assert "0 of 1" in page.text  # expectations met
    assert "✗ >= 0.9" in page.text
    assert "evaluated in a0" in page.text  # by the assessment that names pretrain
    assert "evaluated in a1: 0 of 1 expectations met" in page.text


def test_a_stage_nobody_foresaw_shows_what_it_logged(page, runs):
    html = (runs / "report.html").read_text()
    assert "ppo: surprise" in html
    assert "learning_rate" not in page.text.replace("given", "")  # logged, but no curve anybody looks for


def test_an_evaluation_nobody_foresaw_shows_its_curves_and_tables(page):
    """One line of effect over dose (a note is no number), and a table with its text escaped and its number rounded."""
    assert "pretrain: mine, dose" in page.text
    assert f"sft: mine, {EVIL}" in page.text
    assert "0.123" in page.text
    assert "0.123456" not in page.text


def test_completions_of_one_prompt_stand_side_by_side(runs):
    report.main(["--runs", str(runs)])
    html = (runs / "report.html").read_text()
    sample = html[html.index('<article class="sample">') : html.index("</article>")]
    assert sample.index("<h4>pretrain</h4>") < sample.index("a0 ") < sample.index("<h4>sft</h4>") < sample.index("a1 ")
    assert sample.count("cut off at the limit") == 2


def test_the_terminal_gets_a_table(runs, capsys):
    report.main(["--runs", str(runs), "--output", str(runs / "deep" / "page.html")])
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0].split() == ["stage", "status", "what", "changed", "time", "memory"]
    assert any(line.startswith("pretrain") and "held-out loss 3 -> 1" in line for line in lines)
    assert "not met: sums/pass@1 >= 0.9 (after sft: 0.75)" in lines
    assert lines[-1] == f"report: {runs / 'deep' / 'page.html'}"
    assert (runs / "deep" / "page.html").is_file()


def test_an_empty_folder_is_told(tmp_path):
    with pytest.raises(UserError, match="no folder in"):
        report.main(["--runs", str(tmp_path)])
