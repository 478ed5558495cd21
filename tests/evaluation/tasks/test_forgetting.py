"""The matrix R and its summaries by hand, scores by teacher forcing, gradient overlap and drift of a tiny model."""

import pytest
import torch

from pipeline.evaluation.tasks.forgetting import (
    Matrix,
    WatchOverlap,
    WatchPath,
    drift,
    forward,
    gradient,
    hidden_states,
    path_interference,
    score,
    summarise,
    supervised,
)
from pipeline.inference.decoding import sample
from pipeline.model.tokens import encode_prompts
from pipeline.objectives.regularisers import span_share
from tests.tiny_models import tiny_model, tiny_tokenizer

# Rows: before, after corpus 1, 2, 3. Columns: what was known before (0) and corpora 1, 2, 3.
R = [
    [0.9, 0.1, 0.2, 0.0],
    [0.7, 0.8, 0.3, 0.1],
    [0.8, 0.6, 0.9, 0.2],
    [0.6, 0.7, 0.5, 1.0],
]


def test_figures_by_hand_with_old_knowledge():
    """average (0.6 + 0.7 + 0.5 + 1) / 4; plasticity (0.8 + 0.9 + 1) / 3; backward ((0.6 - 0.9) + (0.7 - 0.8) +
    (0.5 - 0.9)) / 3 = -0.8 / 3; forgetting, from the best so far, here the same: 0.8 / 3; forward
    ((0.3 - 0.2) + (0.2 - 0.0)) / 2.
    """
    figures = summarise(R, first=0)
    assert figures == pytest.approx(
        {
            "average": 0.7, "plasticity": 0.9, "backward_transfer": -0.8 / 3, "forgetting": 0.8 / 3,
            "forward_transfer": 0.15,
        }
    )  # fmt: skip


def test_figures_by_hand_without_old_knowledge():
    """Columns 1..3: backward ((0.7 - 0.8) + (0.5 - 0.9)) / 2 = -0.25. If the first corpus had been at 0.95 after the
    second, forgetting counts from there: ((0.95 - 0.7) + (0.9 - 0.5)) / 2 = 0.325.
    """
    matrix = [row[1:] for row in R]
    assert summarise(matrix)["backward_transfer"] == pytest.approx(-0.25)
    assert summarise(matrix)["forgetting"] == pytest.approx(0.25)
    matrix[2][0] = 0.95
    assert summarise(matrix)["forgetting"] == pytest.approx(0.325)
    assert summarise(matrix)["backward_transfer"] == pytest.approx(-0.25)


def test_what_improved_later_is_negative_forgetting():
    """Corpus 1 at 0.5 after its turn, 0.4 after the second, 0.8 at the end: the best *before* the last row is 0.5, so
    forgetting is -0.3; with the last row among the bests it could never be below 0. Corpus 2: 0.6 to 0.7, -0.1.
    """
    matrix = [[0.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.4, 0.6, 0.0], [0.8, 0.7, 0.9]]
    assert summarise(matrix)["forgetting"] == pytest.approx(-0.2)
    assert summarise(matrix)["backward_transfer"] == pytest.approx(0.2)


def test_one_corpus_forgets_nothing_but_what_was_known():
    assert summarise([[0.2], [0.9]]) == pytest.approx({"average": 0.9, "plasticity": 0.9})
    assert summarise([[0.8, 0.2], [0.5, 0.9]], first=0)["forgetting"] == pytest.approx(0.3)


def test_the_matrix_is_kept_from_row_to_row(tmp_path):
    """Two lives of a run: the second takes over the first row and does not measure it again; losses count negative."""
    cells = {"a": {"loss": 2.0, "accuracy": 0.25}, "b": {"loss": 3.0, "accuracy": 0.0}}
    Matrix(tmp_path, ["x", "y"], ["a", "b"], 1).add(0, cells.get)
    matrix = Matrix(tmp_path, ["x", "y"], ["a", "b"], 1)
    matrix.add(0, {}.get)
    matrix.add(1, {"a": {"loss": 1.0, "accuracy": 1.0}, "b": {"loss": 2.5, "accuracy": 0.0}}.get, drift=0.5)
    matrix.add(2, {"a": {"loss": 1.5, "accuracy": 0.5}, "b": {"loss": 0.5, "accuracy": 1.0}}.get)
    assert matrix.table("loss") == [[2.0, 3.0], [1.0, 2.5], [1.5, 0.5]]
    figures = Matrix(tmp_path, ["x", "y"], ["a", "b"], 1).metrics()
    assert (figures["forgetting"], figures["forgetting_loss"]) == (0.5, 0.5)
    assert (figures["plasticity"], figures["plasticity_loss"]) == (1.0, 0.75)
    assert (figures["average_loss"], figures["forward_transfer_loss"]) == (1.0, 0.5)
    assert (figures["after_1/drift"], figures["after_2/y/accuracy"]) == (0.5, 1.0)


def test_accuracy_is_what_greedy_decoding_writes():
    """A row whose completion is the model's own greedy answer is right, one with another last token is not."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    prompt = "1 + 2 ="
    [[done]] = sample(model, tokenizer, [prompt], max_new_tokens=3, temperature=0)
    [start] = encode_prompts(tokenizer, [prompt])
    other = [*done.token_ids[:-1], done.token_ids[-1] ^ 1]
    rows = [(start + ids, [False] * len(start) + [True] * 3) for ids in (done.token_ids, other)]
    found = [hits.tolist() for _, hits in forward(model, rows, 1)]
    assert found == [[True, True, True], [True, True, False]]
    assert [hits.tolist() for _, hits in forward(model, rows, 2)] == found


def test_loss_is_the_models_own():
    """Of one row's completion: the model's loss with the prompt masked."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    row = {"prompt": "1 + 2 =", "completion": " 3"}
    [(ids, marks)] = supervised(tokenizer, [row])
    labels = torch.tensor([[token if mark else -100 for token, mark in zip(ids, marks, strict=True)]])
    expected = model(input_ids=torch.tensor([ids]), labels=labels).loss.item()
    assert score(model, tokenizer, [row, row])["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_pair_is_right_if_the_chosen_answer_is_likelier():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    pair = {"prompt": "1 + 2 =", "chosen": " 3", "rejected": " 4"}
    turned = {"prompt": "1 + 2 =", "chosen": " 4", "rejected": " 3"}
    one, other = score(model, tokenizer, [pair]), score(model, tokenizer, [turned])
    assert one["margin"] == pytest.approx(-other["margin"])
    assert {one["accuracy"], other["accuracy"]} == {0.0, 1.0}
    assert (one["accuracy"] == 1.0) == (one["margin"] > 0)
    assert score(model, tokenizer, [pair, turned])["accuracy"] == 0.5


def test_the_gradient_is_autograds_in_any_batches():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    coded = supervised(tokenizer, [{"text": "1 + 2 = 3"}, {"text": "a b c d e 4 5 6"}, {"text": "7 8"}])
    parameters = list(model.parameters())
    whole, parts = (gradient(model, coded, parameters, size) for size in (8, 1))
    assert torch.allclose(whole, parts, atol=1e-6)
    labels = torch.tensor([coded[0][0]])
    model(input_ids=labels, labels=labels).loss.backward()
    assert torch.allclose(
        gradient(model, coded[:1], parameters), torch.cat([p.grad.flatten() for p in parameters]), atol=1e-6
    )


def test_a_corpus_that_repeats_an_old_one_overlaps_wholly():
    """The same rows: 1. Other rows: less. Nothing is left in ``.grad`` and training mode is kept."""

    class State:
        global_step, max_steps, epoch, log_history = 1, 8, 0.1, []

    model, tokenizer = tiny_model(), tiny_tokenizer()
    rows = [supervised(tokenizer, [{"text": text}]) for text in ("1 + 2 = 3", "a b c d e")]
    same, other = WatchOverlap(rows[0], [rows[0]]), WatchOverlap(rows[0], [rows[1]])
    model.train()
    for watch in (same, other):
        watch.on_step_end(None, State, None, model=model)
    assert same.mean == pytest.approx(1.0)
    assert 0 <= other.mean < 0.9
    assert State.log_history[0] == {"step": 1, "epoch": 0.1, "gradient_overlap": same.mean}
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    State.global_step = 2  # not one of the two points of eight steps: 1 and 5
    same.on_step_end(None, State, None, model=model)
    assert len(same.points) == 1


def test_drift_is_zero_for_the_same_model_and_one_for_a_sign():
    """Hidden states h and -h: |2h|^2 / |h|^2 = 4; twice h: 1."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    states = hidden_states(model, supervised(tokenizer, [{"text": "1 + 2 = 3"}, {"text": "a b"}]))
    assert drift(states, states) == 0
    assert drift([-s for s in states], states) == pytest.approx(4.0)
    assert drift([2 * s for s in states], states) == pytest.approx(1.0)


def test_overlap_has_no_sign():
    """Errata 19. The old gradient is g or -g: the new step's overlap is 1 either way, yet a step along -g lowers the
    old loss in one case and raises it in the other.
    """
    g = torch.tensor([1.0, 2.0])
    assert span_share(g, [g]) == span_share(g, [-g]) == pytest.approx(1.0)
    step = -0.1 * g
    assert float(g @ step) < 0 < float(-g @ step)


def test_the_first_step_from_a_minimum_does_damage_of_second_order():
    """Errata 19. Old loss 1/2 theta^2 at its minimum 0: its gradient is 0, so there is no overlap to speak of; a step
    of eta = 0.1 along a new gradient of 1 raises it by eta^2 / 2 = 0.005, and half the step by a quarter of that.
    """
    zero = torch.zeros(1)
    assert span_share(torch.ones(1), [zero]) == 0.0
    rises = [0.5 * (0.0 - eta) ** 2 for eta in (0.1, 0.05)]
    assert rises[0] == pytest.approx(0.005)
    assert rises[0] / rises[1] == pytest.approx(4)


def test_path_interference_adds_up_to_the_rise():
    """L = 1/2 theta^2 along 0, 1, 3: gradients 0, 1, 3; ((0 + 1)/2) 1 + ((1 + 3)/2) 2 = 4.5 = L(3) - L(0). The left
    ends alone give 0 * 1 + 1 * 2 = 2: they count the path from a minimum as harmless at first. Of one point it is 0.
    """
    points = [torch.tensor([x]) for x in (0.0, 1.0, 3.0)]
    assert path_interference(points, points) == pytest.approx(4.5)
    assert path_interference(points[:1], points[:1]) == 0.0
    away = [torch.tensor([x]) for x in (3.0, 1.0, 0.0)]
    assert path_interference(away, away) == pytest.approx(-4.5)  # with a sign: the way back helps


def test_path_interference_of_a_model_is_the_rise_of_its_loss():
    """Fifteen steps of gradient descent on one text: the interference with another is the rise of its loss, to 2%."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    new, old = (supervised(tokenizer, [{"text": text}]) for text in ("1 + 2 = 3", "a b c d e"))
    parameters, points, gradients, losses = list(model.parameters()), [], [], []
    for _ in range(16):
        points.append(torch.cat([p.detach().flatten() for p in parameters]))
        gradients.append(gradient(model, old, parameters))
        losses.append(score(model, tokenizer, [{"text": "a b c d e"}])["loss"])
        step, start = gradient(model, new, parameters), 0
        with torch.no_grad():
            for p in parameters:
                p -= 0.05 * step[start : start + p.numel()].view_as(p)
                start += p.numel()
    rise = losses[-1] - losses[0]
    assert abs(rise) > 0.05
    assert path_interference(points, gradients) == pytest.approx(rise, rel=0.02)


def test_the_path_that_training_takes_is_watched_from_its_start_to_its_end():
    """Sixteen steps of gradient descent on one text, seen at nine places: the interference with another is the rise of
    its loss, to 5%. A training that resumes is not watched, since its path did not begin where it does.
    """

    class State:
        global_step, max_steps = 0, 16

    model, tokenizer = tiny_model(), tiny_tokenizer()
    new, old = (supervised(tokenizer, [{"text": text}]) for text in ("1 + 2 = 3", "a b c d e"))
    parameters, watch = list(model.parameters()), WatchPath([old])
    before = score(model, tokenizer, [{"text": "a b c d e"}])["loss"]
    watch.on_train_begin(None, State, None, model=model)
    for State.global_step in range(1, 17):
        step = gradient(model, new, parameters).split([p.numel() for p in parameters])
        with torch.no_grad():
            for p, part in zip(parameters, step):
                p -= 0.05 * part.view_as(p)
        watch.on_step_end(None, State, None, model=model)
    watch.on_train_end(None, State, None, model=model)
    rise = score(model, tokenizer, [{"text": "a b c d e"}])["loss"] - before
    assert watch.rises == [pytest.approx(rise, rel=0.05)]
    resumed = WatchPath([old])
    resumed.on_train_begin(None, State, None, model=model)
    resumed.on_train_end(None, State, None, model=model)
    assert resumed.rises == []
