"""RSFT end to end on a tiny model: rounds, their reports, resuming without sampling twice, foreign candidates."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pipeline.objectives.divergences import best_of_n_bound
from pipeline.rsft import main
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import text_of
from tests.stages.conftest import flags, read_metrics, write_rows

OPTIONS = {
    "num_candidates": 8, "max_completion_length": 4, "num_train_epochs": 15, "save_steps": 1000,
    "per_device_train_batch_size": 8,
}  # fmt: skip
CALLS: list[int] = []


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Twelve prompts; four of them are held out."""
    rows = [{"prompt": f"What is {a} plus 1?"} for a in range(12)]
    return write_rows(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


def share_of_letters(prompts, completions, **columns):
    """The share of letters among a completion's characters."""
    CALLS.append(len(prompts))
    return [sum(c.isascii() and c.isalpha() for c in text) / max(len(text), 1) for text in completions]


LETTERS = "tests.stages.test_rsft:share_of_letters"


@pytest.fixture(scope="module")
def two_rounds(tiny_model, prompts, tmp_path_factory):
    """Best of eight, twice, and the pairs of the last round."""
    folder = tmp_path_factory.mktemp("rsft") / "run"
    main(
        flags(
            model_name_or_path=tiny_model, dataset_name=prompts, output_dir=folder, eval_rows=4, reward=LETTERS,
            rounds=2, mine_pairs=True, **OPTIONS,
        )
    )  # fmt: skip
    return folder


def test_each_round_selects_above_its_candidates_and_the_policy_follows(two_rounds):
    """The selection is better than the candidates, the second round's candidates better than the first's, the held-out
    prompts' rewards after training better than before; the KL stays below its bound for 8 and for 8^2.
    """
    m = read_metrics(two_rounds)
    for number in (1, 2):
        assert m[f"round_{number}_reward_after"] > m[f"round_{number}_reward_before"]
        assert m[f"round_{number}_selection_kl_bound"] == pytest.approx(best_of_n_bound(8, number))
        assert 0 < m[f"round_{number}_selection_kl"] < best_of_n_bound(8)
        assert m[f"round_{number}_no_acceptable_share"] == 0.0
    assert m["round_2_reward_before"] > m["round_1_reward_before"]
    assert m["held_out_reward_after"] > m["held_out_reward_before"]


def test_pairs_are_a_preference_dataset(two_rounds):
    """Best against worst of each prompt of the last round, in the form that dpo.py reads."""
    from pipeline.data.loading import read_split

    pairs = read_split(str(two_rounds / "pairs.jsonl"), "train", kind="preference")
    assert 0 < len(pairs) <= 8
    assert len(pairs) == read_metrics(two_rounds)["pairs"]
    for pair in pairs:
        better, worse = share_of_letters([], [text_of(pair["chosen"]), text_of(pair["rejected"])])
        assert better > worse


def test_the_start_is_the_only_parent(two_rounds, tiny_model):
    """A round is no parent: the lineage goes back to what the user gave, and so does pi_ref."""
    record = json.loads((two_rounds / "run.json").read_text())
    assert [parent["path"] for parent in record["parents"]] == [str(tiny_model)]
    assert record["pi_ref"] == str(tiny_model)
    assert (two_rounds / "round-1" / "model.safetensors").is_file()


def test_an_interrupted_run_samples_nothing_twice(two_rounds, tiny_model, prompts, tmp_path):
    """Its last round lost, the run repeats only that: the first is not trained, no candidate is drawn or scored
    again, and the weights, the figures and the curves of both rounds are those of the uninterrupted run.
    """
    whole = load_file(two_rounds / "model.safetensors")
    (two_rounds / "model.safetensors").unlink()
    before = (two_rounds / "round-1" / "model.safetensors").stat().st_mtime_ns
    record = json.loads((two_rounds / "run.json").read_text())
    (two_rounds / "run.json").write_text(json.dumps(record | {"status": "interrupted"}))
    CALLS.clear()
    main([word for key, value in record["given"].items() for word in words(key, value)])
    assert CALLS == [4, 4]  # the held-out prompts of before and after, and no candidate
    assert (two_rounds / "round-1" / "model.safetensors").stat().st_mtime_ns == before
    again = load_file(two_rounds / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    resumed = json.loads((two_rounds / "run.json").read_text())
    assert figures_of(resumed) == figures_of(record)
    assert {"round_1_reward_after", "round_2_reward_after"} < resumed["metrics"].keys()
    assert resumed["curves"]["selection"].keys() == {"round 1", "round 2"}


def figures_of(record: dict) -> dict:
    """What a record says of the rounds; how long training took is not the same twice."""
    timed = ("runtime", "per_second")
    metrics = {name: value for name, value in record["metrics"].items() if not name.endswith(timed)}
    return {key: record[key] for key in ("curves", "learned")} | {"metrics": metrics}


def words(key: str, value) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [f"--{key}", *(str(v).lower() if isinstance(v, bool) else str(v) for v in values)]


@pytest.mark.slow
def test_softmax_selection_weighs_the_second_round_by_the_ratio(tiny_model, prompts, tmp_path):
    """log pi_ref - log pi_1 is written with the candidates of round 2, not with those of round 1, where it is 0."""
    import pyarrow.parquet as pq

    main(
        flags(
            model_name_or_path=tiny_model, dataset_name=prompts, output_dir=tmp_path / "run", eval_rows=0,
            reward=LETTERS, rounds=2, select="softmax", tau=0.2, draws=4, use_peft=True,
            lora_target_modules="all-linear", **OPTIONS,
        )
    )  # fmt: skip
    m = read_metrics(tmp_path / "run")
    assert 1.0 < m["round_1_effective_sample_size"] <= 8.0
    ratios = [
        pq.read_table(tmp_path / "run" / "candidates" / f"round-{k}" / "candidates-00000.parquet")[
            "log_ratio"
        ].to_pylist()
        for k in (1, 2)
    ]
    assert all(value is None for value in ratios[0])
    assert json.loads((tmp_path / "run" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tiny_model
    )
    assert max(abs(value) for value in ratios[1]) > 0.1


def test_candidates_from_elsewhere_are_imitated(tiny_model, tmp_path):
    """Rows with rewards need neither sampling nor a reward; the better answer becomes the likelier one."""
    from pipeline.inference.likelihood import answer_log_likelihoods
    from pipeline.model.loading import load_model, load_tokenizer
    from pipeline.model.tokens import encode_answer

    rows = [
        {"prompt": f"What is {a} plus 1?", "completion": text, "reward": value}
        for a in range(8)
        for text, value in ((" Good, right.", 1.0), (" Bad, wrong.", 0.0))
    ]
    file = write_rows(tmp_path / "made.jsonl", rows)
    main(
        flags(
            model_name_or_path=tiny_model, from_candidates=file, output_dir=tmp_path / "run",
            **OPTIONS ,
        )
    )  # fmt: skip
    tokenizer = load_tokenizer(str(tiny_model))
    pairs = [encode_answer(tokenizer, "What is 3 plus 1?", text) for text in (" Good, right.", " Bad, wrong.")]
    good, bad = answer_log_likelihoods(load_model(str(tmp_path / "run")), pairs)
    assert good > bad + 2.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": "nonsense"}, "unknown name 'nonsense'"),
        ({"select": "softmax"}, "set tau"),
        ({"select": "threshold"}, "set threshold"),
        ({"rounds": 0}, "rounds and num_candidates must be at least 1"),
        ({"eval_strategy": "steps"}, "eval_strategy"),
        ({"select": "threshold", "threshold": 99.0}, "lower the threshold"),
    ],
)
def test_mistakes_are_one_line(tiny_model, prompts, tmp_path, change, message):
    given = {
        "model_name_or_path": tiny_model,
        "dataset_name": prompts,
        "output_dir": tmp_path / "run",
        "reward": LETTERS,
    }
    with pytest.raises(UserError, match=message) as caught:
        main(flags(**given | OPTIONS | {"eval_rows": 0} | change))
    assert "\n" not in str(caught.value)
