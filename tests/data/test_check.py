"""The report before any compute: every figure counted by hand on a few rows."""

import json
import subprocess
import sys

import pytest

from pipeline.data import check
from pipeline.runtime.errors import UserError
from tests.data.test_packing import BOS, EOS, make_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} w9 "
    "{% generation %}{{ m['content'] }} {{ eos_token }}{% endgeneration %}"
    "{% else %} w8 {{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %} w9 {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    made = make_tokenizer()
    made.chat_template = TEMPLATE
    return made


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def report(capsys, *argv):
    check.main(argv)
    lines = capsys.readouterr().out.splitlines()
    return {line[:13].strip(): line[13:] for line in lines if line[:1] != " "}, lines


def test_report_without_a_tokenizer(tmp_path, capsys):
    good = [{"prompt": "p", "completion": "c", "id": i} for i in (1, 2)] + [{"prompt": "p", "completion": "d"}]
    bad = [{"prompt": "p", "completion": ""}] * 12
    path = write(tmp_path / "a.jsonl", good + bad)
    found, lines = report(capsys, path)
    assert found["columns"] == "prompt, completion, id"
    assert found["kind"] == "sft (guessed; --kind says otherwise)"
    assert found["read as"] == "prompt + completion; not used: id"
    assert found["form"] == "prompt (text), completion (text)"
    assert found["rows"] == "15: 3 good, 12 bad"
    assert found["duplicates"] == "1 (exact; training drops them)"
    assert found["prompts"] == "1 different ones in 2 different rows"
    assert found["note"].startswith("in 3 rows no white space separates the answer")
    problems = [line for line in lines if line.startswith("bad row")]
    assert len(problems) == 10
    assert problems[0] == f"bad row      {path}, row 4: completion: is empty"
    assert "             and 2 more; --skip_bad_rows trains without them" in lines


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "preference"),
        ({"prompt": "p", "ranked": ["a", "b"]}, "ranked"),
        ({"text": "t", "label": 1}, "text"),
        ({"prompt": "p", "answer": "4"}, "prompt"),
        ({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}, "sft"),
    ],
)
def test_kind_is_guessed_from_the_columns(tmp_path, capsys, row, kind):
    found, _ = report(capsys, write(tmp_path / "a.jsonl", [row]))
    assert found["kind"].split()[0] == kind


def test_lengths_and_supervised_share(tokenizer):
    """Strings: [11 1 2] + [3 4 5 12] is 7 tokens, 4 of them learned; [11 1] + [2 12] is 4, 2 learned. Cut at 5 the
    first keeps 2 of its 4: (2 + 2) / (5 + 4) = 44.4%. Half of the rows are longer than 5."""
    rows = [{"prompt": "w1 w2", "completion": " w3 w4 w5"}, {"prompt": "w1", "completion": " w2"}]
    tokenizer.backend_tokenizer.post_processor = bos_first()
    lines = check.measure(rows, tokenizer, 5)
    assert lines[:3] == [
        "tokens       median 4, p95 7, longest 7",
        "max_length   5: 50.0% of rows are longer",
        "supervised   44.4% of the tokens that are kept: the completions",
    ]
    assert lines[3].split("sample       ")[1] == "<bos> w1 w2[[w3 w4 w5 <eos>]]"


def bos_first():
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", BOS)])


def test_masks_of_dialogues(tokenizer):
    """<bos> w8 w1 w9 [w2 <eos>]: the assistant's words and its end are learned, in every turn."""
    turns = [
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "w2"},
        {"role": "user", "content": "w3"},
        {"role": "assistant", "content": "w4 w5"},
    ]
    tokens, mask = check.tokens_of({"messages": turns}, tokenizer)
    assert tokens == [BOS, 8, 1, 9, 2, EOS, 8, 3, 9, 4, 5, EOS]
    assert [t for t, learned in zip(tokens, mask) if learned] == [2, EOS, 4, 5, EOS]
    tokens, mask = check.tokens_of({"prompt": turns[:3], "completion": turns[3:]}, tokenizer)
    assert [t for t, learned in zip(tokens, mask) if learned] == [4, 5, EOS]
    pair = {"prompt": turns[:1], "chosen": turns[1:2], "rejected": turns[3:]}
    tokens, mask = check.tokens_of(pair, tokenizer)  # the longer answer of the two
    assert [t for t, learned in zip(tokens, mask) if learned] == [4, 5, EOS]


def test_rows_with_nothing_left_to_learn_are_counted(tokenizer):
    rows = [{"prompt": "w1 w2 w3 w4", "completion": " w5"}, {"prompt": "w1", "completion": " w2"}]
    assert "             1 rows have nothing to learn within max_length and are dropped" in check.measure(
        rows, tokenizer, 4
    )
    prompts = check.measure([{"prompt": "w1 w2", "answer": 3}], tokenizer, 4)
    assert not any(line.startswith("supervised") for line in prompts)
    texts = check.measure([{"text": "w1 w2 w3 w4 w5"}], tokenizer, 4)
    assert texts[1] == "max_length   4: 100.0% of rows are longer (packed, nothing is cut)"


@pytest.mark.parametrize(("share", "expected"), [(0.5, 5), (0.95, 10), (0.9, 9), (0.91, 10), (0.01, 1), (1.0, 10)])
def test_quantile_is_the_smallest_value_that_covers_the_share(share, expected):
    assert check._quantile(range(1, 11), share) == expected


def test_mistakes(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"sentence": "q", "target": "a"}])
    with pytest.raises(UserError, match="try --dataset_map sentence=prompt,target=completion"):
        check.main([path])
    with pytest.raises(UserError, match="unrecognized arguments: --tokeniser x"):
        check.main([path, "--tokeniser", "x"])
    with pytest.raises(UserError, match=r"tokenizer: there is no folder \./none"):
        check.main([path, "--dataset_map", "sentence=prompt", "--tokenizer", "./none"])
    with pytest.raises(UserError, match=r"every row is bad; the first: .*row 1: prompt: is empty"):
        check.main([write(tmp_path / "b.jsonl", [{"prompt": ""}]), "--kind", "prompt"])


def test_command_line(tmp_path):
    """Exit code 2 and one line on a mistake; a report without torch otherwise."""
    path = write(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "c"}])
    wrong = subprocess.run(
        [sys.executable, "-m", "pipeline.data.check", "./none.jsonl"], capture_output=True, text=True, timeout=60
    )
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: dataset './none.jsonl' does not exist")
    assert wrong.stderr.count("\n") == 1
    code = (
        "import sys; from pipeline.data.check import main; main([sys.argv[1]]);"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    right = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=60)
    assert right.returncode == 0, right.stderr
    assert "rows         1: 1 good, 0 bad" in right.stdout
