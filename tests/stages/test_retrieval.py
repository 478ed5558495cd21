"""Passages in the prompts of training and evaluation, through the command lines, for a NarLM and a foreign Llama."""

import json

import pytest

import pipeline.sft
from pipeline.assess import main as assess
from pipeline.generate import main as generate
from pipeline.grpo import main as grpo
from pipeline.inference.retrieval.__main__ import main as retrieval
from pipeline.ppo import main as ppo
from pipeline.rsft import main as rsft
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import user_text
from pipeline.sft import main as sft
from tests.stages.conftest import flags, read_metrics, write_rows

HERE = "tests.stages.test_retrieval"
WORDS = ["ant", "bee", "cow", "dog", "elk", "fox", "gnu", "hen", "jay", "kid", "owl", "pig"]
FACTS = [f"{word} has {number % 10}." for number, word in enumerate(WORDS)]
seen: list[tuple] = []


def cites(prompts, completions, retrieved_contexts, retrieved_ids, **columns):
    """Half of the completions are right; what was sampled from is kept."""
    seen.extend(zip(map(user_text, prompts), retrieved_contexts, retrieved_ids))
    return [float(i % 2) for i in range(len(completions))]


@pytest.fixture
def files(tmp_path):
    """Facts, an index of them, and questions; the last two questions find documents that are too long to be read."""
    documents = [{"id": f"d{i}", "text": text} for i, text in enumerate(FACTS)]
    documents += [{"id": f"long{i}", "text": "Good " + "bad wrong right " * (90 * i)} for i in (1, 2)]
    questions = [{"prompt": f"What has {text.split()[0]}?", "answer": text[-2], "evidence": [f"d{i}"]}
                 for i, text in enumerate(FACTS)]  # fmt: skip
    write_rows(tmp_path / "documents.jsonl", documents)
    write_rows(
        tmp_path / "questions.jsonl",
        [*questions, *({"prompt": f"{q}?", "answer": "x", "evidence": ["long1"]} for q in ("Good", "Wrong"))],
    )
    write_rows(tmp_path / "answers.jsonl", [{"prompt": q["prompt"], "completion": q["answer"]} for q in questions])
    words = ["--chunk_size", "1000", "--output_dir", str(tmp_path / "index")]
    retrieval(["build", "--documents", str(tmp_path / "documents.jsonl"), *words])
    return tmp_path


STAGES = {
    "grpo": (grpo, {"num_generations": 2, "guard_patience": 0}),
    "ppo": (ppo, {"num_generations": 2, "critic": "none", "num_iterations": 1, "guard_patience": 0}),
    "rsft": (rsft, {"num_candidates": 2}),
}


@pytest.mark.parametrize("base", ["tiny_model", "foreign_model"])
@pytest.mark.parametrize("stage", STAGES)
def test_rollouts_begin_with_the_passages_and_rewards_see_them(request, stage, base, files):
    """Every prompt that is sampled from holds the texts that its row has as ``retrieved_contexts``, best first and in
    front of the question; what does not fit into the 256 positions is dropped and counted.
    """
    seen.clear()
    main, options = STAGES[stage]
    main(flags(
        model_name_or_path=request.getfixturevalue(base), dataset_name=files / "questions.jsonl", eval_rows=0,
        output_dir=files / "run", reward=f"{HERE}:cites", retrieve=files / "index", top_passages=2,
        max_completion_length=4, max_steps=7, per_device_train_batch_size=4, **options,
    ))  # fmt: skip
    assert len({prompt for prompt, _, _ in seen}) == 14
    for prompt, texts, ids in seen:
        *passages, question = prompt.split("\n")
        assert passages == ([*texts, ""] if texts else [])
        assert question.startswith("What has") or question in ("Good?", "Wrong?")
        assert all(i.startswith("long") or FACTS[int(i[1:])] == text for i, text in zip(ids, texts))
    assert all(f"d{i}" == ids[0] for i, w in enumerate(WORDS) for p, _, ids in seen if p.endswith(f"has {w}?"))
    metrics = read_metrics(files / "run")
    record = json.loads((files / "run" / "run.json").read_text())
    assert metrics["passages_dropped"] == 4  # two documents for each of two questions
    assert metrics["passages_per_prompt"] == pytest.approx(24 / 14)
    assert [source["name"] for source in record["data"]] == [str(files / "questions.jsonl"), str(files / "index")]
    assert record["arguments"]["top_passages"] == 2


def test_supervised_prompts_hold_passages_and_answers_stay(tiny_model, files, trainer_of):
    """The answer and its end are what is learned, after a prompt with the passage; it is cut to nothing smaller."""
    from transformers import AutoTokenizer

    trainer = trainer_of(pipeline.sft, tiny_model, files / "answers.jsonl", retrieve=files / "index", top_passages=1,
                         eval_rows=0, max_length=64)  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for row, text in zip(trainer.train_dataset, FACTS):
        written = tokenizer.decode(row["input_ids"], skip_special_tokens=True)
        learned = [token for token in row["labels"] if token >= 0]
        assert written.count("\n\nWhat has") == 1
        assert tokenizer.decode(learned, skip_special_tokens=True).strip() == text[-2]


def test_an_index_that_changed_is_another_run(tiny_model, files):
    """A finished run with the same index does nothing; with another one it is refused."""
    given = flags(
        model_name_or_path=tiny_model, dataset_name=files / "answers.jsonl", retrieve=files / "index", eval_rows=0,
        output_dir=files / "run", max_steps=1,
    )  # fmt: skip
    sft(given)
    before = (files / "run" / "run.json").read_bytes()
    sft(given)
    assert (files / "run" / "run.json").read_bytes() == before
    write_rows(files / "documents.jsonl", [{"id": "d", "text": "Nothing is known."}])
    words = ["--output_dir", str(files / "index"), "--force"]
    retrieval(["build", "--documents", str(files / "documents.jsonl"), *words])
    with pytest.raises(UserError, match=r"the data in .*index has changed"):
        sft(given)


@pytest.mark.parametrize("base", ["tiny_model", "foreign_model"])
def test_an_assessment_of_retrieval(request, base, files):
    """Through assess.py: figures, curves, tables, samples with the ids of the passages, and RAGAS's rows."""
    entry = {"name": "facts", "type": "retrieval", "dataset": str(files / "questions.jsonl"), "split": "train"}
    entry |= {"documents": str(files / "index"), "passages": [1, 2], "case_passages": 2, "max_new_tokens": 3}
    (files / "assess.yaml").write_text(json.dumps({"evaluations": [entry], "seed": 1}))
    model = request.getfixturevalue(base)
    assess(["--config", str(files / "assess.yaml"), "--model_name_or_path", str(model), "--output_dir",
            str(files / "assessment")])  # fmt: skip
    metrics = read_metrics(files / "assessment")
    record = json.loads((files / "assessment" / "run.json").read_text())
    assert 0.8 <= metrics["facts/recall@2"] <= 1
    assert metrics["facts/passages_dropped"] >= 1
    assert {"no passages", "no evidence", "evidence last"} <= {r["case"] for r in record["tables"]["facts"]["cases"]}
    assert [p["passages"] for p in record["curves"]["facts"]["accuracy by passages"]] == [1, 2]
    ragas = [json.loads(line) for line in (files / "assessment" / "ragas.jsonl").read_text().splitlines()]
    samples = [json.loads(line) for line in (files / "assessment" / "samples.jsonl").read_text().splitlines()]
    assert [row["retrieved_context_ids"] for row in ragas] == [row["retrieved_ids"] for row in samples]
    assert all(row["response"] == s["completions"][0] for row, s in zip(ragas, samples))


@pytest.mark.parametrize("base", ["tiny_model", "foreign_model"])
def test_generated_answers_name_their_passages(request, base, files, capsys):
    """In a file and in the terminal: the answer is that to the augmented prompt itself, and the ids are with it."""
    model, out = str(request.getfixturevalue(base)), files / "out.jsonl"
    given = ["--model_name_or_path", model, "--max_new_tokens", "5"]
    search = ["--retrieve", str(files / "index"), "--top_passages", "1"]
    generate([*given, *search, "--prompt_file", str(files / "questions.jsonl"), "--output_file", str(out)])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["retrieved_ids"] for row in rows] == [[f"d{i}"] for i in range(12)] + [[], []]
    assert rows[3]["prompt"] == "What has dog?"
    assert rows[3]["retrieved_contexts"] == [FACTS[3]]
    written = capsys.readouterr()
    assert "2 passages of 2 of 14 prompts are left out: they do not fit" in written.err
    generate([*given, "--prompt", f"{FACTS[0]}\n\nWhat has ant?"])
    by_hand = capsys.readouterr().out.splitlines()[3:]
    generate([*given, *search, "--prompt", "What has ant?"])
    *printed, passages = capsys.readouterr().out.splitlines()[1:]
    assert passages == "[passages: d0]"
    assert printed == by_hand
    assert "\n".join(printed).strip() == rows[0]["completions"][0].strip()
    with pytest.raises(UserError, match=r"out.jsonl.*retrieval|retrieval.*out.jsonl|settings"):
        generate([*given, "--prompt_file", str(files / "questions.jsonl"), "--output_file", str(out)])
    with pytest.raises(UserError, match="--retrieve does not go with --chat"):
        generate([*given, *search, "--chat"])


def test_raft_rows_are_made_from_an_index_and_trained_on(tiny_model, files, capsys):
    """12 questions, 3 of 4 with their document: 9 rows hold it, 3 do not; distractors are what the search finds."""
    rows = [{"question": f"What has {text.split()[0]}?", "answer": text[-2], "document": text} for text in FACTS]
    write_rows(files / "qa.jsonl", rows)
    words = ["--dataset_map", "question=prompt", "--retrieve", str(files / "index"), "--distractors", "1"]
    retrieval(["raft", "--dataset_name", str(files / "qa.jsonl"), "--output_file", str(files / "raft.jsonl"), *words,
               "--oracle_share", "0.75"])  # fmt: skip
    assert "12 rows, 3 of them without the document that answers" in capsys.readouterr().out
    made = [json.loads(line) for line in (files / "raft.jsonl").read_text().splitlines()]
    assert [row["oracle"] for row in made] == [text in row["prompt"] for row, text in zip(made, FACTS)]
    assert sum(row["oracle"] for row in made) == 9
    assert all(row["prompt"].count(" has ") == 3 for row in made)
    sft(flags(model_name_or_path=tiny_model, dataset_name=files / "raft.jsonl", eval_rows=0, max_steps=1,
              output_dir=files / "sft"))  # fmt: skip
    assert read_metrics(files / "sft")["train_loss"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"retrieve": "no/index.jsonl"}, "does not exist"),
        ({"top_passages": 0}, "top_passages is 0"),
        ({"passage_template": "x"}, r"passage_template 'x' has no \{text\} in it"),
    ],
)
def test_mistakes_are_reported_before_training(tiny_model, files, options, message):
    with pytest.raises(UserError, match=message):
        sft(flags(
            model_name_or_path=tiny_model, dataset_name=files / "answers.jsonl", output_dir=files / "run",
            eval_rows=0, **{"retrieve": files / "index"} | options,
        ))  # fmt: skip
