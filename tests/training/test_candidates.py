"""Rejection sampling: which law a selection follows, what is written and read, what becomes of it."""

import math

import pytest
import torch

from pipeline.inference.likelihood import answer_log_likelihoods
from pipeline.objectives.divergences import (
    best_of_n_bound,
    best_of_n_kl,
    best_of_n_law,
    softmax_selection_law,
    total_variation,
)
from pipeline.runtime.errors import UserError
from pipeline.training.candidates import (
    external_candidates,
    mine_pairs,
    read_candidates,
    sample_candidates,
    sft_rows,
)
from pipeline.training.selection import (
    Selection,
    best_of_n_curve,
    select,
    selection_metrics,
    selection_probabilities,
)
from tests import enumerable_task as task

TABLE = task.rewards()
ROWS = [{"prompt": task.PROMPTS[i % 4], "answer": i} for i in range(10)]


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> str:
    """The saved pi_ref of the task."""
    return task.saved_model(tmp_path_factory.mktemp("start") / "model")


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("rule", "law"),
    [
        (Selection("best"), [0, 1, 0, 0]),  # of two best the first drawn
        (Selection("top_k", top_k=3), [1 / 3, 1 / 3, 1 / 3, 0]),
        (Selection("top_k", top_k=9), [1 / 3, 1 / 3, 1 / 3, 0]),  # no more than are known
        (Selection("threshold", threshold=1.0), [0, 1 / 2, 1 / 2, 0]),
        (Selection("threshold", threshold=5.0), [0, 0, 0, 0]),
        # weights 1, e^2, e^2 at tau 1/2
        (Selection("softmax", tau=0.5), [1 / (1 + 2 * math.e**2), *[math.e**2 / (1 + 2 * math.e**2)] * 2, 0]),
    ],
)
def test_selection_probabilities_by_hand(rule, law):
    """Rewards 0, 1, 1 and one that could not be told."""
    assert selection_probabilities(tensor(0, 1, 1, math.nan), rule).tolist() == pytest.approx(law)


def test_softmax_weighs_by_the_ratio_to_the_reference():
    """R / tau = (0, log 2), log pi_ref - log pi_k = (log 6, 0): weights 6 : 2."""
    law = selection_probabilities(tensor(0, math.log(2)), Selection("softmax", tau=1.0), tensor(math.log(6), 0))
    assert law.tolist() == pytest.approx([0.75, 0.25])


def test_select_takes_all_that_is_named_or_draws():
    """Deterministic rules give their candidates, softmax as many draws as asked, an empty law none."""
    generator = torch.Generator().manual_seed(0)
    assert select(tensor(0.5, 0, 0.5), Selection("top_k", top_k=2), generator) == [0, 2]
    assert select(tensor(0, 0), Selection("threshold", threshold=9.0), generator) == []
    drawn = select(tensor(0.2, 0.8), Selection("softmax", tau=1.0, draws=2000), generator)
    assert len(drawn) == 2000
    assert sum(drawn) / 2000 == pytest.approx(0.8, abs=0.04)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Selection("threshold"), "set threshold"),
        (lambda: Selection("softmax"), "set tau"),
        (lambda: Selection("softmax", tau=-1.0), "set tau"),
        (lambda: Selection("top_k", top_k=0), "at least 1"),
    ],
)
def test_incomplete_rules_are_refused(make, match):
    """With the field that is missing."""
    with pytest.raises(UserError, match=match):
        make()


def group(*rewards: float | None, prompt: str = "a b") -> list[dict]:
    return [{"prompt": prompt, "completion": f"y{i}", "reward": r} for i, r in enumerate(rewards)]


def test_metrics_by_hand():
    """Prompts with rewards (0, 1) and (3, 3): best gives 1 and 3; before 0.5 and 3.

    KL of the best of 2 at the candidates' law: no ties (1/4, 3/4) against halves, 0.25 log 0.5 + 0.75 log 1.5 =
    0.130812; all tied: 0. Bound log 2 - 1/2. Under a threshold of 2 the first prompt has nothing, the second equal
    weights.
    """
    groups = [group(0.0, 1.0), group(3.0, 3.0)]
    best = selection_metrics(groups, Selection("best"))
    assert best["reward_before"] == pytest.approx(1.75)
    assert best["reward_after"] == pytest.approx(2.0)
    assert best["effective_sample_size"] == pytest.approx(1.0)
    assert best["selection_kl"] == pytest.approx(0.130812 / 2, abs=1e-6)
    assert best["selection_kl_bound"] == pytest.approx(math.log(2) - 0.5)
    cut = selection_metrics(groups, Selection("threshold", threshold=2.0), rounds=2)
    assert cut["no_acceptable_share"] == 0.5
    assert best["equal_share"] == 0.5
    assert selection_metrics([group(1.0, None), group(0.0, 0.0)], Selection("best"))["equal_share"] == 1.0
    assert (cut["reward_after"], cut["effective_sample_size"], cut["selection_kl"]) == (3.0, pytest.approx(2.0), 0.0)
    assert cut["selection_kl_bound"] == pytest.approx(math.log(4) - 0.75)


@pytest.mark.parametrize("count", [2, 4, 16, 64])
def test_best_of_n_on_an_enumerable_policy(start, count):
    """N draws of the model's exact law, the best selected, 20,000 times: the selections follow the exact law of
    best-of-N, whose KL to the policy stays below log N - (N-1)/N.
    """
    law, rewards = task.exact_law(task.load(start))[0].exp(), TABLE[0]
    generator = torch.Generator().manual_seed(count)
    trials = 20000
    drawn = torch.multinomial(law, trials * count, replacement=True, generator=generator).view(trials, count)
    picks = rewards[drawn].argmax(1)
    frequencies = torch.bincount(drawn.gather(1, picks[:, None]).squeeze(1), minlength=len(law)) / trials
    exact = best_of_n_law(law, rewards, count)
    # Expected total variation of the sampling itself: sum sqrt(p (1 - p) / trials) / sqrt(2 pi).
    noise = (exact * (1 - exact) / trials).sqrt().sum().item() / math.sqrt(2 * math.pi)
    assert total_variation(frequencies, exact).item() < 2 * noise
    assert 0 < best_of_n_kl(law, rewards, count).item() < best_of_n_bound(count)
    one = selection_probabilities(rewards[drawn[0]], Selection("best"))
    assert one.argmax().item() == picks[0].item()


def test_softmax_selection_follows_its_exact_law(start):
    """Ten draws a time, one selected with weights exp(R / tau), by the functions that the stage uses."""
    law, rewards = task.exact_law(task.load(start))[1].exp(), TABLE[1]
    generator = torch.Generator().manual_seed(0)
    rule, trials = Selection("softmax", tau=0.7), 3000
    drawn = torch.multinomial(law, trials * 10, replacement=True, generator=generator).view(trials, 10)
    picked = [row[select(selection_probabilities(rewards[row], rule), rule, generator)[0]].item() for row in drawn]
    frequencies = torch.bincount(torch.tensor(picked), minlength=len(law)) / trials
    exact = softmax_selection_law(law, rewards, 10, 0.7)
    noise = (exact * (1 - exact) / trials).sqrt().sum().item() / math.sqrt(2 * math.pi)
    assert total_variation(frequencies, exact).item() < 2 * noise


def sampled(start: str, folder, calls: list | None = None, **options) -> list:
    """Four completions of each of the ten rows, three prompts a file."""

    def reward(prompts, completions, completion_ids, answer):
        if calls is not None:
            calls.append(len(prompts))
        return [None if a == 9 else float(len(ids)) for a, ids in zip(answer, completion_ids)]

    return sample_candidates(
        folder, task.load(start), task.tokenizer(), ROWS, reward,
        **{"n": 4, "max_new_tokens": task.LENGTH, "prompts_per_file": 3, "seed": 7} | options,
    )  # fmt: skip


def test_candidates_are_written_as_they_come_and_never_sampled_twice(start, tmp_path):
    """Ten rows in files of three: four files; one that is lost is made anew, equal to the byte, the others stay."""
    calls: list = []
    files = sampled(start, tmp_path / "a", calls)
    assert [file.name for file in files] == [f"candidates-{i:05d}.parquet" for i in range(4)]
    assert calls == [12, 12, 12, 4]
    before = [(file.read_bytes(), file.stat().st_mtime_ns) for file in files]
    files[2].unlink()
    sampled(start, tmp_path / "a", calls)
    assert calls == [12, 12, 12, 4, 12]
    for i, file in enumerate(files):
        assert file.read_bytes() == before[i][0]
        assert (file.stat().st_mtime_ns == before[i][1]) == (i != 2)
    groups = list(read_candidates(files))
    assert [len(group) for group in groups] == [4] * 10
    assert [group[0]["prompt"] for group in groups] == [row["prompt"] for row in ROWS]
    assert all(c["reward"] is None for c in groups[9])
    for candidate in groups[0]:
        assert candidate["reward"] == len(candidate["token_ids"])
        assert candidate["finished"] == (candidate["token_ids"][-1] == task.EOS)


def test_two_processes_share_the_files(start, tmp_path, monkeypatch):
    """Each writes every second one, and together they write what one process would."""
    whole = sampled(start, tmp_path / "one")
    import accelerate

    class NobodyElse:
        def wait_for_everyone(self):
            pass

    monkeypatch.setattr(accelerate, "PartialState", NobodyElse)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, mine in ((0, [0, 2]), (1, [1, 3])):
        monkeypatch.setenv("RANK", str(rank))
        calls: list = []
        files = sampled(start, tmp_path / "two", calls)
        assert len(calls) == len(mine)
    assert [f.read_bytes() for f in files] == [f.read_bytes() for f in whole]


def test_log_ratio_is_that_of_the_exact_laws(start, tmp_path):
    """log pi_ref - log pi_k of every candidate, against the enumeration of both models; at temperature 2 the
    sampling law is another one, and so is the ratio.
    """
    other = task.saved_model(tmp_path / "other", seed=1)
    law, reference = task.exact_law(task.load(start)), task.exact_law(task.load(other))
    files = sampled(start, tmp_path / "c", reference=task.load(other))
    for group in read_candidates(files):
        for candidate in group:
            p, y = task.PROMPTS.index(candidate["prompt"]), task.INDEX[tuple(candidate["token_ids"])]
            assert candidate["log_ratio"] == pytest.approx((reference - law)[p, y].item(), abs=1e-4)
    ids = task.tokenizer()(task.PROMPTS[0])["input_ids"]
    pairs = [(ids, list(y)) for y in task.COMPLETIONS]
    assert answer_log_likelihoods(task.load(start), pairs) == pytest.approx(law[0].tolist(), abs=1e-4)
    hot = torch.tensor(answer_log_likelihoods(task.load(start), pairs, temperature=2.0)).exp()
    assert hot.sum().item() == pytest.approx(1.0, abs=1e-4)
    assert total_variation(hot, law[0].exp().float()).item() > 0.05


def test_sft_rows_are_the_tokens_that_were_drawn(start, tmp_path):
    """Prompt masked, completion as drawn, with eos only where it was; a prompt without a reward gives no row."""
    groups = list(read_candidates(sampled(start, tmp_path / "c")))
    rows = sft_rows(groups, Selection("best"), task.tokenizer())
    assert len(rows) == 9
    for row, candidates in zip(rows, groups):
        best = max(candidates, key=lambda c: c["reward"])
        prompt = task.tokenizer()(candidates[0]["prompt"])["input_ids"]
        assert row["input_ids"] == prompt + best["token_ids"]
        assert row["completion_mask"] == [0] * len(prompt) + [1] * len(best["token_ids"])
    with pytest.raises(UserError, match="lower the threshold"):
        sft_rows(groups, Selection("threshold", threshold=99.0), task.tokenizer())


def test_candidates_made_elsewhere():
    """Grouped by prompt whatever their order; scored only where they bring no reward; text in, text out."""
    asked = []

    def reward(prompts, completions, answer):
        asked.extend(completions)
        return [float(len(c)) for c in completions]

    rows = [
        {"prompt": "p", "completion": "long", "answer": 1},
        {"prompt": "q", "completion": "x", "reward": 2.0, "answer": 1},
        {"prompt": "p", "completion": "s", "reward": 3.0, "answer": 1},
    ]
    groups = external_candidates(rows, reward)
    assert asked == ["long"]
    assert [[c["reward"] for c in group] for group in groups] == [[4.0, 3.0], [2.0]]
    assert sft_rows(groups, Selection("best"), None) == [
        {"prompt": "p", "completion": "long"},
        {"prompt": "q", "completion": "x"},
    ]
    with pytest.raises(UserError, match="need --reward"):
        external_candidates([{"prompt": "p", "completion": "y"}], None)


def test_pairs_are_best_against_worst():
    """Equal rewards, equal texts and prompts without a reward give none; dialogues stay dialogues."""
    chat = [{"role": "user", "content": "hello"}]
    same = [{"prompt": "s", "completion": "y", "reward": r} for r in (0.0, 1.0)]
    groups = [group(0.0, None, 2.0, 1.0), group(1.0, 1.0), group(None, None), same]
    groups.append([{"prompt": chat, "completion": t, "reward": r} for t, r in (("no", -1.0), ("yes", 1.0))])
    pairs = mine_pairs(groups)
    assert [(p["chosen"], p["rejected"]) for p in pairs[:1]] == [("y2", "y0")]
    assert pairs[0]["reward_chosen"] == 2.0
    assert pairs[1]["chosen"] == [{"role": "assistant", "content": "yes"}]
    assert len(pairs) == 2


def test_the_curve_of_best_of_n_by_hand():
    """Two candidates of 0 and 1: one of one is either, 1/2 and no KL; the best of the two is 1, at a KL of
    1/4 log 1/2 + 3/4 log 3/2. A prompt without any score does not count; one whose scores are equal has no KL.
    """
    group = [{"reward": 0.0}, {"reward": 1.0}]
    one, two = best_of_n_curve([group, [{"reward": None}]])
    assert one == {"n": 1, "kl": pytest.approx(0), "reward": 0.5, "bound": 0}
    assert two["kl"] == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert (two["reward"], two["bound"]) == (pytest.approx(1.0), best_of_n_bound(2))
    assert best_of_n_curve([group, [{"reward": 3.0}] * 2])[1]["reward"] == pytest.approx((1 + 3) / 2)
    assert best_of_n_curve([]) == []


def test_the_ratio_is_to_what_was_sampled_from(start, tmp_path):
    """Sampled at temperature 2 by another model than pi_ref: log_ratio is log pi_ref at temperature 1 less log pi_k at
    temperature 2, token by token from the plain logits; at temperature 1 it would differ by 0.1 and more.
    """
    other = task.load(task.saved_model(tmp_path / "other", seed=4))
    files = sampled(start, tmp_path / "c", temperature=2.0, reference=other)
    model, tokenizer, gaps = task.load(start), task.tokenizer(), []
    for group in read_candidates(files):
        ids = tokenizer(group[0]["prompt"])["input_ids"]
        for candidate in group:
            y = candidate["token_ids"]
            with torch.no_grad():
                both = [m(torch.tensor([[*ids, *y]])).logits[0, len(ids) - 1 : -1].double() for m in (other, model)]
            at = [
                (z / tau).log_softmax(-1).gather(1, torch.tensor(y)[:, None]).sum().item()
                for z, tau in ((both[0], 1.0), (both[1], 2.0), (both[1], 1.0))
            ]
            assert candidate["log_ratio"] == pytest.approx(at[0] - at[1], abs=1e-4)
            gaps.append(abs(at[1] - at[2]))
    assert max(gaps) > 0.1


def test_every_file_of_candidates_is_drawn_by_itself(start, tmp_path):
    """The same prompt in every one of three files: three different sets of draws, each the same the next time."""
    rows = [{"prompt": "a", "answer": i} for i in range(3)]

    def reward(prompts, completions, **columns):
        return [0.0] * len(prompts)

    def drawn(folder):
        files = sample_candidates(
            folder, task.load(start), task.tokenizer(), rows, reward, n=12, max_new_tokens=task.LENGTH,
            prompts_per_file=1, seed=7,
        )  # fmt: skip
        return [[tuple(c["token_ids"]) for c in group] for group in read_candidates(files)]

    first = drawn(tmp_path / "a")
    assert len({tuple(group) for group in first}) == 3
    assert drawn(tmp_path / "b") == first
