"""The evaluations end to end on tiny models and local files, with figures known beforehand."""

import json
import math

import pytest
import torch

from pipeline.evaluation import completions
from pipeline.evaluation.tasks.accuracy import accuracy
from pipeline.evaluation.tasks.loss import cut, loss
from pipeline.evaluation.tasks.preference import preference
from pipeline.evaluation.tasks.reward import reward
from pipeline.evaluation.tasks.samples import samples
from pipeline.evaluation.tasks.trigram import trigram
from pipeline.inference.decoding import Completion
from pipeline.inference.stopping import cut_at
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import user_text
from tests.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def write(tmp_path):
    def to_file(name: str, rows: list[dict]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return to_file


@pytest.fixture
def answers(monkeypatch):
    """Replace the model by given completions: prompt text -> list of them."""

    def give(table: dict[str, list[str]]):
        def fake(model, tokenizer, prompts, *, n, **options):
            return [[Completion(text, [1] * len(text), "eos") for text in table[user_text(p)][:n]] for p in prompts]

        monkeypatch.setattr(completions, "sample", fake)

    return give


def uniform_model():
    """Every next token has probability 1/24, whatever came before."""
    model = tiny_model()
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    return model


def test_the_loss_of_a_uniform_model_is_log_v(tokenizer, write):
    """Texts of 3 and 1 words, an eos each, no bos: 3 + 1 predicted tokens, each at log 24."""
    file = write("t.jsonl", [{"text": "a b c"}, {"text": "d"}])
    result = loss(uniform_model(), tokenizer, dataset=file)
    assert result.metrics["loss"] == pytest.approx(math.log(24), abs=1e-6)
    assert result.metrics["perplexity"] == pytest.approx(24, abs=1e-4)
    assert result.metrics["tokens"] == 4
    assert result.data[0]["name"] == file


def test_the_loss_of_an_answer_leaves_the_prompt_out(tokenizer, write):
    """Two completions of 2 and 1 words plus eos: 5 tokens, however long the prompts are."""
    rows = [{"prompt": "a a a a ", "completion": "b c"}, {"prompt": "a ", "completion": "d"}]
    result = loss(uniform_model(), tokenizer, dataset=write("c.jsonl", rows))
    assert result.metrics["tokens"] == 5
    assert result.metrics["loss"] == pytest.approx(math.log(24), abs=1e-6)


def test_pieces_predict_every_token_but_the_first_once():
    ids = list(range(11))
    for length in (2, 3, 4, 11, 50):
        pieces = [piece for piece, _ in cut(ids, [True] * 11, length)]
        assert all(len(piece) <= max(length, 2) for piece in pieces)
        assert [token for piece in pieces for token in piece[1:]] == ids[1:]
    assert cut([7], [True], 4) == [([7], [True])]


def test_model_and_trigram_are_judged_on_the_same_tokens(tokenizer, tmp_path):
    """Training rows repeat one sentence, so the trigram is nearly certain of it; the random model is not."""
    (tmp_path / "train.jsonl").write_text('{"text": "a b c d 1 2 3"}\n' * 50)
    (tmp_path / "test.jsonl").write_text('{"text": "b c d 1 2"}\n{"text": "a b c d"}\n')
    model = tiny_model(max_position_embeddings=16)
    base = trigram(model, tokenizer, dataset=str(tmp_path), validation_rows=10)
    own = loss(model, tokenizer, dataset=str(tmp_path))
    assert base.metrics["tokens"] == own.metrics["tokens"] == 9  # 5 + 4 words and an eos each, less the first tokens
    assert base.metrics["loss"] < own.metrics["loss"]
    assert [d["split"] for d in base.data] == ["test", "train"]


def test_the_trigram_refuses_test_rows_it_would_have_counted(tokenizer, tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a b"}\n{"text": "c d"}\n')
    (tmp_path / "test.jsonl").write_text('{"text": "c d"}\n')
    with pytest.raises(UserError, match="1 test rows are in the split train"):
        trigram(tiny_model(), tokenizer, dataset=str(tmp_path), validation_rows=1)
    with pytest.raises(UserError, match="validation_rows is 2"):
        trigram(tiny_model(), tokenizer, dataset=str(tmp_path), validation_rows=2)


def test_strict_and_lenient_accuracy(answers, tokenizer, write):
    """Strict needs the marker: 1 of 3; lenient takes the last number where there is none: 2 of 3; the fourth row has
    no gold answer and is counted apart."""
    rows = [{"prompt": p, "answer": a} for p, a in (("p1", "42"), ("p2", "42"), ("p3", "42"), ("p4", None))]
    answers({"p1": ["#### 42"], "p2": ["it is 42"], "p3": ["#### 41"], "p4": ["#### 1"]})
    result = accuracy(
        None, tokenizer, reward="numeric", max_new_tokens=4, dataset=write("sums.jsonl", rows), split="test"
    )
    got = result.metrics
    assert got["accuracy"] == pytest.approx(1 / 3)
    assert got["accuracy_lenient"] == pytest.approx(2 / 3)
    assert (got["unscored"], got["prompts"], got["timeouts"]) == (1, 4, 0)
    assert got["accuracy_low"] < 1 / 3 < got["accuracy_high"]
    assert [s["scores"] for s in result.samples] == [[1.0], [0.0], [0.0], [None]]
    assert result.samples[0]["answer"] == "42"


def test_pass_at_k_and_self_consistency(answers, tokenizer, write):
    """Four samples: p1 right 3 times, p2 once, with the two wrong ones equal.

    pass@1 = (3/4 + 1/4) / 2 = 1/2; pass@2 = (1 + 1/2) / 2 = 3/4; majority: p1 right, p2 wrong: 1/2.
    """
    rows = [{"prompt": "p1", "answer": "7"}, {"prompt": "p2", "answer": "7"}]
    answers({"p1": ["#### 7", "#### 8", "x #### 7", "#### 7"], "p2": ["#### 7", "#### 8", "#### 8", "#### 9"]})
    got = accuracy(
        None, tokenizer, reward="numeric", max_new_tokens=4, n=4, k=[1, 2], temperature=1.0,
        dataset=write("s.jsonl", rows),
    ).metrics  # fmt: skip
    assert (got["pass@1"], got["pass@2"], got["majority"]) == (0.5, 0.75, 0.5)
    assert got["pass@1_low"] == 0.25
    assert got["pass@1_high"] == 0.75
    assert got["pass@1_lenient"] == 0.5


def test_figures_by_group(answers, tokenizer, write):
    rows = [{"prompt": f"p{i}", "answer": "Rome", "kind": kind} for i, kind in enumerate(("with", "without", "with"))]
    answers({"p0": [" Rome"], "p1": [" Oslo"], "p2": [" Rome"]})
    got = accuracy(
        None, tokenizer, reward="exact", max_new_tokens=4, by="kind", dataset=write("r.jsonl", rows)
    ).metrics
    assert (got["accuracy"], got["with/accuracy"], got["without/accuracy"]) == (pytest.approx(2 / 3), 1.0, 0.0)
    assert (got["with/prompts"], got["without/prompts"]) == (2, 1)


def test_a_template_and_stop_strings_judge_base_models_fairly(monkeypatch, tokenizer, write):
    """The user's words go into plain text, and the sampler ends what a base model writes at the answer's line."""
    seen = []

    def fake(model, tokenizer, prompts, *, stops, **options):
        seen.extend(prompts)
        text = cut_at("\n Rome\n Question: Where does Boris live? Answer: Oslo", stops.strings)
        return [[Completion(text, [1], "stop_string")] for _ in prompts]

    monkeypatch.setattr(completions, "sample", fake)
    rows = [{"prompt": [{"role": "user", "content": "Where does Anna live?"}], "answer": "Rome"}]
    got = accuracy(
        None, tokenizer, reward="exact", max_new_tokens=4, template="Question: {prompt} Answer:", stop=["\n"],
        dataset=write("b.jsonl", rows),
    )  # fmt: skip
    assert seen == ["Question: Where does Anna live? Answer:"]
    assert got.metrics["accuracy"] == 1.0
    assert got.metrics["finished"] == 1.0  # the stop string ends it


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 2}, "n above 1 with temperature 0"),
        ({"n": 2, "temperature": 1.0, "k": [1, 3]}, "every k must be between 1 and n"),
        ({"by": "sort"}, "not every row has the column 'sort'"),
        ({"template": "no place"}, "has no {prompt} in it"),
        ({"reward": "nmeric"}, "unknown name 'nmeric'"),
    ],
)
def test_mistakes_in_the_options(answers, tokenizer, write, options, words):
    answers({"p": ["#### 1"]})
    file = write("m.jsonl", [{"prompt": "p", "answer": "1"}])
    with pytest.raises(UserError, match=words):
        accuracy(None, tokenizer, **{"reward": "numeric", "max_new_tokens": 3, "dataset": file, **options})


def length_reward(prompts, completions, **columns):
    """Characters of the text; None for an empty one."""
    return [len(text) or None for text in completions]


def test_the_mean_reward_is_over_prompts_and_leaves_the_unjudged_out(answers, tokenizer, write):
    """Lengths 2 and 4 -> 3; 1 and none -> 1; mean 2."""
    answers({"p": ["ab", "abcd"], "q": ["a", ""]})
    file = write("r.jsonl", [{"prompt": "p"}, {"prompt": "q"}])
    got = reward(None, tokenizer, reward=f"{__name__}:length_reward", max_new_tokens=4, n=2, dataset=file).metrics
    assert got["reward"] == 2.0
    assert got["unscored"] == 1
    assert got["tokens_per_completion"] == pytest.approx(7 / 4)


def test_samples_of_given_prompts(tokenizer):
    result = samples(tiny_model(), tokenizer, prompts=["a b"], max_new_tokens=3, as_chat=True)
    assert result.samples[0]["prompt"] == [{"role": "user", "content": "a b"}]
    plain = samples(tiny_model(), tokenizer, prompts=["a b"], max_new_tokens=3, as_chat=False)
    assert plain.samples[0]["prompt"] == "a b"
    assert plain.metrics["tokens_per_completion"] == 3
    assert len(plain.samples[0]["completions"]) == 1
    with pytest.raises(UserError, match="either prompts or a dataset"):
        samples(tiny_model(), tokenizer, max_new_tokens=3)


def test_implicit_reward_of_the_reference_is_a_tie(tokenizer, write):
    pairs = [{"prompt": "a ", "chosen": "b", "rejected": "c"}, {"prompt": "d ", "chosen": "c", "rejected": "1 2"}]
    model = tiny_model()
    got = preference(model, tokenizer, reference=lambda: model, dataset=write("p.jsonl", pairs)).metrics
    assert (got["accuracy"], got["margin"], got["chosen_log_likelihood_gain"]) == (0.5, 0.0, 0.0)


def test_implicit_reward_follows_a_known_shift(tokenizer, write):
    """A bias of +3 on the token b against the reference: answers with b gain, answers without it lose.

    Pairs: b over c (right), c over b (wrong), b over d (right), c over d (no b on either side: near a tie, small gain
    differences decide); so the first three say 2/3. True rewards agree with two of those labels: Bayes 2/3, share 1.
    """
    reference, policy = tiny_model(), tiny_model()
    head = policy.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
    head.bias.data[tokenizer("b")["input_ids"][0]] = 3.0
    pairs = [("b", "c", 1.0, 0.0), ("c", "b", 0.0, 1.0), ("b", "d", 1.0, 0.0)]
    rows = [
        {"prompt": "a ", "chosen": c, "rejected": r, "reward_chosen": x, "reward_rejected": y} for c, r, x, y in pairs
    ]
    got = preference(policy, tokenizer, reference=lambda: reference, dataset=write("q.jsonl", rows)).metrics
    assert got["accuracy"] == pytest.approx(2 / 3)
    assert got["bayes_accuracy"] == pytest.approx(2 / 3)
    assert got["share_of_bayes"] == pytest.approx(1.0)
    with pytest.raises(UserError, match="reference_model_name_or_path"):
        preference(policy, tokenizer, dataset=write("q.jsonl", rows))
