"""Public datasets as their columns are on the Hub: what each kind of stage reads of them, by hand."""

import json

import pytest

from pipeline.data import check
from pipeline.data.arguments import DataArguments
from pipeline.data.formats import convert, settle_systems
from pipeline.data.loading import load_data
from pipeline.data.rows import RowError
from pipeline.data.schemas import detect
from pipeline.data.streaming import load_stream
from pipeline.runtime.errors import UserError


def turns(*contents, system=None):
    """Turns of user and assistant by turns, after a system message."""
    first = [{"role": "system", "content": system}] if system else []
    return first + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def answer(text):
    return [{"role": "assistant", "content": text}]


HH = "\n\nHuman: q\n\nAssistant:"
ALPACA = {"instruction": "Add.", "input": "1, 2", "output": "3", "text": "### Instruction: Add."}
ORCA = {"id": "flan.1", "system_prompt": "Think.", "question": "q", "response": "r"}
ORCA_DPO = {"system": "Think.", "question": "q", "chosen": "r", "rejected": "w"}
CAPYBARA = {"source": "s", "conversation": [{"input": "q", "output": "r"}, {"input": "q2", "output": "r2"}]}
ULTRA = {
    "prompt": "q", "prompt_id": "1f", "chosen": turns("q", "r"), "rejected": turns("q", "w"),
    "messages": turns("q", "r"), "score_chosen": 8.0, "score_rejected": 5.0,
}  # fmt: skip
KTO = {"prompt": "q", "completion": "r", "label": True}
MATH = {"problem": "q", "solution": "s", "answer": "4"}
SHAREGPT = {"system": "Think.", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "r"}]}

# kind, row, what it becomes, what is said about it
READ = [
    (
        "sft", ALPACA, {"prompt": "Add.\n\n1, 2", "completion": "3"},
        "prompt + completion from instruction + output (Alpaca), input in the prompt; "
        "not used: text (would fit too)",
    ),
    ("sft", {**ALPACA, "input": ""}, {"prompt": "Add.", "completion": "3"}, None),
    (
        "prompt", ALPACA, {"prompt": "Add.\n\n1, 2", "output": "3", "text": ALPACA["text"]},
        "prompt from instruction (Alpaca), input in the prompt; for the rewards: output, text",
    ),
    ("text", ALPACA, {"text": "### Instruction: Add."}, "text; not used: instruction + output "
     "(would fit too), input"),
    (
        "sft", ORCA, {"prompt": "q", "completion": "r", "system": "Think."},
        "prompt + completion from question + response, system_prompt as the system prompt; not used: id",
    ),
    ("sft", {**ORCA, "system_prompt": ""}, {"prompt": "q", "completion": "r"}, None),
    ("text", ORCA, {"text": "Think.\n\nq\n\nr"}, None),
    (
        "prompt", ORCA, {"prompt": "q", "id": "flan.1", "response": "r", "system": "Think."},
        "prompt from question, system_prompt as the system prompt; for the rewards: id, response",
    ),
    (
        "preference", ORCA_DPO, {"prompt": "q", "chosen": "r", "rejected": "w", "system": "Think."},
        "prompt + chosen + rejected from question + chosen + rejected, system as the system prompt",
    ),
    ("ranked", ORCA_DPO, {"prompt": "q", "ranked": ["r", "w"], "ranks": [1, 2], "system": "Think."}, None),
    ("sft", ORCA_DPO, {"prompt": "q", "completion": "r", "system": "Think."},
     "prompt + chosen from question + chosen, system as the system prompt; not used: rejected"),
    (
        "sft", CAPYBARA, {"messages": turns("q", "r", "q2", "r2")},
        "conversations from conversation (Capybara); not used: source",
    ),
    ("sft", SHAREGPT, {"messages": turns("q", "r", system="Think.")}, "conversations, system as the system prompt"),
    ("prompt", {**SHAREGPT, "id": 1}, {"prompt": turns("q", system="Think."), "id": 1,
     "conversations": SHAREGPT["conversations"]}, "conversations, system as the system prompt; for the rewards: id"),
    (
        "sft", {"messages": turns("q", "r"), "source": "s", "full_topic": "t"}, {"messages": turns("q", "r")},
        "messages; not used: source, full_topic",
    ),
    (
        "sft", ULTRA, {"messages": turns("q", "r")},
        "messages; not used: prompt, prompt_id, chosen, rejected, score_chosen, score_rejected",
    ),
    (
        "preference", ULTRA, {"prompt": turns("q"), "chosen": answer("r"), "rejected": answer("w")},
        "prompt + chosen + rejected; not used: prompt_id, messages, score_chosen, score_rejected",
    ),
    (
        "preference", {**ULTRA, "system": "Think."},
        {"prompt": turns("q", system="Think."), "chosen": answer("r"), "rejected": answer("w")}, None,
    ),
    ("sft", {key: ULTRA[key] for key in ("prompt", "chosen", "rejected")},
     {"prompt": turns("q"), "completion": answer("r")}, "prompt + chosen; not used: rejected"),
    (
        "preference", {"chosen": f"{HH} r", "rejected": f"{HH} w"},
        {"prompt": turns("q"), "chosen": answer("r"), "rejected": answer("w")}, "chosen + rejected",
    ),
    ("sft", {"chosen": f"{HH} r", "rejected": f"{HH} w"}, {"messages": turns("q", "r")},
     "chosen; not used: rejected"),
    ("prompt", {"messages": turns("q", "r"), "system": "Think."},
     {"prompt": turns("q", system="Think."), "messages": turns("q", "r")}, "messages, system as the system prompt"),
    ("prompt", {"prompt": HH}, {"prompt": turns("q")}, "prompt"),
    ("preference", {"prompt": HH, "chosen": "r", "rejected": "w"},
     {"prompt": turns("q"), "chosen": answer("r"), "rejected": answer("w")}, "prompt + chosen + rejected"),
    ("labelled", KTO, KTO, "prompt + completion + label"),
    ("sft", KTO, {"prompt": "q", "completion": "r"}, "prompt + completion, label only where it is true"),
    ("sft", {**KTO, "label": 3}, {"prompt": "q", "completion": "r"}, "prompt + completion; not used: label"),
    ("sft", {"question": "q", "answer": "#### 4"}, {"prompt": "q", "completion": "#### 4"},
     "prompt + completion from question + answer"),
    ("prompt", {"question": "q", "answer": "#### 4"}, {"prompt": "q", "answer": "#### 4"},
     "prompt from question; for the rewards: answer"),
    ("sft", MATH, {"prompt": "q", "completion": "s"},
     "prompt + completion from problem + solution; not used: answer"),
    ("prompt", MATH, {"prompt": "q", "solution": "s", "answer": "4"},
     "prompt from problem; for the rewards: solution, answer"),
    ("sft", {"prompt": "q", "response": "r", "system": None}, {"prompt": "q", "completion": "r"}, None),
    ("sft", {"instruction": "q", "response": "r", "context": "c", "category": "x"},
     {"prompt": "q\n\nc", "completion": "r"},
     "prompt + completion from instruction + response, context in the prompt; not used: category"),
    ("sft", {"query": "q", "response": "r", "type": "GSM"}, {"prompt": "q", "completion": "r"}, None),
    ("labelled", {"question": "q", "response": "r", "label": "0"}, {"prompt": "q", "completion": "r", "label": False},
     "prompt + completion + label from question + response + label"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "row", "expected", "said"), READ)
def test_public_rows_become_standard_ones(kind, row, expected, said):
    form = detect([row], kind, "here")
    assert convert(row, form, kind) == expected
    assert said is None or form.reading(row, kind) == said


def test_a_system_prompt_beside_text_becomes_a_message_or_text():
    """Rows without one have no system message, and are a dialogue all the same."""
    rows = [convert(row, detect([ORCA], "sft", "here"), "sft") for row in (ORCA, {**ORCA, "system_prompt": ""})]
    assert settle_systems(rows, "sft", chat=True) == [
        {"prompt": turns("q", system="Think."), "completion": answer("r")},
        {"prompt": turns("q"), "completion": answer("r")},
    ]
    assert settle_systems(rows, "sft", chat=False) == [
        {"prompt": "Think.\n\nq", "completion": "r"},
        {"prompt": "q", "completion": "r"},
    ]
    kept = convert(ORCA, detect([ORCA], "prompt", "here"), "prompt")  # an answer stays what a reward reads
    assert settle_systems([kept], "prompt", chat=True) == [
        {"prompt": turns("q", system="Think."), "id": "flan.1", "response": "r"}
    ]


@pytest.mark.parametrize(
    ("kind", "row", "field", "reason"),
    [
        ("sft", {**ALPACA, "output": ""}, "output", "is empty"),
        ("sft", {**ORCA, "system_prompt": 3}, "system_prompt", "text was expected, found int"),
        ("sft", {**CAPYBARA, "conversation": [{"input": 1, "output": "r"}]}, "conversation[0].input", "found int"),
        (
            "sft",
            {"messages": turns("q", "r", system="Other."), "system": "Think."},
            "system",
            "is not the system message that messages has",
        ),
    ],
)
def test_a_bad_field_has_the_name_that_the_row_gives_it(kind, row, field, reason):
    with pytest.raises(RowError) as error:
        convert(row, detect([row], kind, "here"), kind)
    assert error.value.field == field
    assert reason in error.value.reason


def test_gold_answers_and_columns_the_user_named():
    """A column answer beside prompt is a gold answer, no completion; a map decides before the table."""
    with pytest.raises(UserError, match="try --dataset_map answer=completion"):
        detect([{"prompt": "q", "answer": "4"}], "sft", "here")
    row = {"question": "q", "completion": "mapped", "answer": "a"}
    assert convert(row, detect([row], "sft", "here", {"completion"}), "sft") == {"prompt": "q", "completion": "mapped"}


@pytest.mark.parametrize(
    ("kind", "row", "said"),
    [
        ("preference", KTO, "these rows (prompt + completion + label) are for reward_model --objective binary"),
        ("preference", ALPACA, "these rows (instruction + output) are for sft"),
        ("preference", {"messages": turns("q", "r")}, "these rows (messages) are for sft"),
        ("preference", {"prompt": "q", "answer": "4"}, "these rows (prompt) are for grpo, ppo or rsft"),
        ("preference", {"text": "t"}, "these rows (text) are for pretrain or sft"),
        ("preference", {"prompt": "q", "chosen": "r", "worse": "w"}, "try --dataset_map worse=rejected"),
        ("labelled", ORCA_DPO, "these rows (question + chosen + rejected) are for dpo, or reward_model --objective "
         "pairwise"),
        ("labelled", ALPACA, "these rows (instruction + output) are for sft"),
        ("ranked", ALPACA, "these rows (instruction + output) are for sft"),
        ("preference", {"prompt": "q", "ranked": ["r", "w"]}, "these rows (prompt + ranked) are for reward_model "
         "--objective listwise"),
        ("sft", {"prompt": "q"}, "these rows (prompt) are for grpo, ppo or rsft"),
        ("sft", {"prompt": "q", "answer": "4"}, "try --dataset_map answer=completion"),
        ("prompt", {"text": "t"}, "try --dataset_map text=prompt"),
    ],
)  # fmt: skip
def test_rows_of_another_stage_name_it_where_no_renaming_helps(kind, row, said):
    """Of what renaming can make of them first; a renaming that leaves a column out would help nobody."""
    with pytest.raises(UserError) as error:
        detect([row], kind, "here")
    assert str(error.value).endswith(f"; it has {', '.join(row)}; {said}")


def test_a_hint_is_complete_or_absent():
    """Neither renaming nor another stage makes anything of these columns."""
    with pytest.raises(UserError, match=r"it has x, y$"):
        detect([{"x": "q", "y": 1}], "labelled", "here")


def test_check_and_stages_say_the_same_once(tmp_path, capsys):
    path = tmp_path / "orca.jsonl"
    path.write_text("".join(json.dumps({**ORCA, "question": f"q{i}"}) + "\n" for i in range(9)))
    said = READ[4][3]
    check.main([str(path)])
    assert f"read as      {said}\n" in capsys.readouterr().out
    data = load_data(DataArguments(dataset_name=str(path)), "sft", seed=0)
    assert capsys.readouterr().err == f"{path}: read as {said}\n"
    assert data.sources[0]["read_as"] == said
    evaluated = DataArguments(dataset_name=str(path), eval_dataset_name=str(path), dataset_test_split="test[:2]")
    load_data(evaluated, "sft", seed=0)
    assert capsys.readouterr().err.count("read as") == 1  # the same of both splits
    said = "prompt + completion from question + response, system_prompt as the system prompt; not used: id"
    load_stream(DataArguments(dataset_name=str(path), eval_rows=0), seed=0)
    assert capsys.readouterr().err == f"{path}: read as {said}\n"
    plain = tmp_path / "plain.jsonl"  # where nothing is to be said, nothing is
    plain.write_text("".join(json.dumps({"prompt": f"p{i}", "completion": "c"}) + "\n" for i in range(9)))
    load_data(DataArguments(dataset_name=str(plain)), "sft", seed=0)
    assert capsys.readouterr().err == ""


def test_answers_that_were_judged_bad_are_not_imitated(tmp_path, capsys):
    """Of twelve rows for KTO every third answer is bad: eight are left, in training and evaluation together."""
    path = tmp_path / "kto.jsonl"

    def write(labels):
        rows = [{"prompt": f"p{i}", "completion": f"c{i}", "label": label} for i, label in enumerate(labels)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    write([i % 3 > 0 for i in range(12)])
    data = load_data(DataArguments(dataset_name=str(path), eval_rows=2), "sft", seed=0)
    said = capsys.readouterr().err
    assert f"{path}: read as prompt + completion, label only where it is true\n" in said
    assert f"{path}: training leaves out 4 whose label is false, of 12 rows\n" in said
    assert (len(data.train), len(data.evaluation)) == (6, 2)
    assert {row["prompt"] for row in [*data.train, *data.evaluation]}.isdisjoint({"p0", "p3", "p6", "p9"})
    assert len(load_data(DataArguments(dataset_name=str(path), eval_rows=0), "labelled", seed=0).train) == 12
    check.main([str(path), "--kind", "sft"])
    assert "rows         12: 8 good, 0 bad, 4 whose label is false" in capsys.readouterr().out
    write([False] * 3)
    with pytest.raises(UserError, match="label is false in every row"):
        load_data(DataArguments(dataset_name=str(path)), "sft", seed=0)


def test_a_mixture_of_schemas_is_one_form(tmp_path):
    """Texts with and without system prompt stay text; beside dialogues all are dialogues."""

    def mixture(**rows):
        entries = []
        for name, row in rows.items():
            (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
            entries.append({"path": str(tmp_path / f"{name}.jsonl")})
        data = load_data(DataArguments(datasets=entries, eval_rows=0), "sft", seed=0)
        return sorted(data.train.to_list(), key=str)

    texts = mixture(alpaca=ALPACA, orca=ORCA)
    assert texts == [
        {"prompt": "Add.\n\n1, 2", "completion": "3", "system": None},
        {"prompt": "q", "completion": "r", "system": "Think."},
    ]
    assert mixture(alpaca=ALPACA, orca=ORCA, capybara=CAPYBARA) == [
        {"messages": turns("q", "r", system="Think.")},
        {"messages": turns("Add.\n\n1, 2", "3")},
        {"messages": turns("q", "r", "q2", "r2")},
    ]
