"""The evaluation on models whose answer is known, against figures by hand, and mistakes of its rows in one line."""

import pytest
import torch

from pipeline.evaluation.tasks.dynamics import dynamics
from pipeline.inference.likelihood import candidate_log_probabilities, context_divergences
from pipeline.runtime.errors import UserError
from tests.tiny_models import tiny_model, tiny_tokenizer

ROWS = [
    {"prompt": "1 a 2", "injected": "1 b 2", "answer": "a", "value": "b", "values": ["a", "b", "c"],
     "candidates": [" a", " b", " c"], "family": "told", "ideal": 1},
    {"prompt": "3", "wrong": " c", "right": " d", "question": " 4", "answer": "d", "value": "c",
     "candidates": [" c", " d"], "family": "asked"},
]  # fmt: skip
A, B, C, D = 19, 20, 21, 22  # ids of the words; digits are 9 to 18


def assess(file, model=None, **options):
    defaults = {"dataset": file, "max_new_tokens": 12, "split": "train", "hold": 4}
    return dynamics(model or tiny_model(), tiny_tokenizer(), **defaults | options)


def blind():
    """A model without attention: the next token depends on the last one alone, whatever was before it."""
    model = tiny_model()
    for layer in model.model.layers:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    return model


def test_exact_figures_by_hand(write):
    """rho of the first row from the four probabilities themselves: the context is `1 a 2`, w is `b`."""
    model = tiny_model()
    got = assess(write(ROWS), model, n=0).metrics
    clean, injected = (
        law[0].exp() for law in candidate_log_probabilities(model, [[10, A, 11], [10, B, 11]], [[[A], [B], [C]]] * 2)
    )
    assert got["told/exact_again"] == pytest.approx(float(injected[1]))
    assert got["told/exact_rho"] == pytest.approx(float((injected[1] - clean[1]) / (1 - clean[1])))
    assert (got["told/exact_truth"], got["told/exact_truth_clean"]) == (
        pytest.approx(float(injected[0])), pytest.approx(float(clean[0])),
    )  # fmt: skip
    said = injected.sum()
    assert got["told/exact_hall"] == pytest.approx(float((said - injected[0]) / said))
    assert got["told/ideal_rho"] == 1
    assert "asked/ideal_rho" not in got
    assert not any(name.endswith(("merged", "/rho")) for name in got)
    wrong = candidate_log_probabilities(model, [[12, C, 13]], [[[C], [D]]])[0][0].exp()  # `3 c 4`
    assert got["asked/exact_again"] == pytest.approx(float(wrong[0]))


def test_both_estimators_agree(write):
    """3,000 samples of the first token against the exact probability, within four standard errors (0.037)."""
    got = assess(write(ROWS), n=3000, max_new_tokens=1, hold=1, batch_size=3000).metrics
    for name in ("again", "again_clean", "truth"):
        assert got[f"told/{name}"] == pytest.approx(got[f"told/exact_{name}"], abs=0.037), name


def test_what_does_not_see_the_error_merges_at_once(write):
    """Without attention an error further back changes nothing: rho 0, every coupled pair is one from step 0 on and the
    KL is 0 at every step; pairs with different random numbers hardly ever are.
    """
    result = assess(write(ROWS), blind(), n=20, max_new_tokens=16)
    got = result.metrics
    for family in ("told", "asked"):
        assert got[f"{family}/exact_rho"] == pytest.approx(0, abs=1e-6)
        assert got[f"{family}/rho"] == 0
        assert (got[f"{family}/merged"], got[f"{family}/merged_low"]) == (1, pytest.approx(1, abs=0.8))
        assert got[f"{family}/merged_independent"] < 0.5
        assert got[f"{family}/kl_suffix"] == pytest.approx(0, abs=1e-5)
    curve = result.curves["pairs merged by step"]
    assert [point["step"] for point in curve] == list(range(16 - 4 + 1))
    assert all(point["told"] == 1 for point in curve)
    assert {row["layer"] for row in result.tables["hidden states apart by layer"]} == {0, 1, 2}
    assert all(row["mean"] == pytest.approx(0, abs=1e-5) for row in result.tables["hidden states apart by layer"])


def test_an_error_that_matters_does_not(write):
    result = assess(write(ROWS), n=20, max_new_tokens=16)
    assert result.metrics["told/merged"] < 1
    assert result.metrics["told/kl_first"] > 1e-3
    layers = {
        row["layer"]: row["step 0"] for row in result.tables["hidden states apart by layer"] if row["family"] == "told"
    }
    assert layers[0] == 0  # the last token is the same
    assert layers[2] > 0.01
    (line,) = (row for row in result.tables["propagation"] if row["family"] == "told")
    assert (line["estimator"], line["ideal rho"], line["rho"]) == ("exact", 1, result.metrics["told/exact_rho"])
    assert result.samples[0]["prompt"] == "1 b 2"
    assert len(result.samples[0]["without_the_error"]) == 20


def test_divergences_along_a_continuation():
    """KL_0 by hand from the two next-token distributions, KL_1 after one more token; contexts of different length."""
    model = tiny_model()
    first, second, said = [10, A, 11], [10, B, 11, 12], [C, D]
    (found,) = context_divergences(model, [first], [second], [said])
    for step in (0, 1):
        p, q = (
            model(input_ids=torch.tensor([[*x, *said[:step]]])).logits[0, -1].detach().double().log_softmax(-1)
            for x in (first, second)
        )
        assert float(found.kl[step]) == pytest.approx(float((p.exp() * (p - q)).sum()), abs=1e-5)
    assert found.hidden.shape == (3, 2)
    assert float(found.hidden[0, 1]) == 0  # the same token C on both sides


def test_a_chat_is_asked_again(write):
    """A prompt, what the assistant answers, and a question: three turns, of which only the answer differs."""
    row = {
        "prompt": [{"role": "user", "content": "1 a"}], "wrong": "b", "right": "a", "question": "2", "answer": "a",
        "value": "b", "candidates": ["a", "b"],
    }  # fmt: skip
    result = assess(write([row]), n=1)
    assert [m["content"] for m in result.samples[0]["prompt"]] == ["1 a", "b", "2"]
    assert 0 < result.metrics["errors/exact_again"] < 1
    begun = {k: v for k, v in row.items() if k != "question"} | {
        "candidates": [" a", " b"]
    }  # without a question the answer itself goes on
    assert assess(write([begun]), n=1).samples[0]["prompt"][-1] == {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        ({"prompt": "1", "answer": "a", "wrong": "b"}, {}, "row 1 has no value"),
        ({"prompt": "1", "value": "b", "wrong": "b"}, {}, "row 1 has no answer"),
        ({"prompt": "1", "value": "b", "answer": "b", "wrong": "b"}, {}, "value and answer are both 'b'"),
        ({"prompt": "1", "value": "b", "answer": "a"}, {}, "give either injected"),
        ({"prompt": "1", "value": "b", "answer": "a", "wrong": "b", "injected": "2"}, {}, "give either injected"),
        ({"prompt": "1", "value": "b", "answer": "a", "injected": "1"}, {}, "not two forms of one context"),
        (
            {"prompt": [{"role": "user", "content": "1"}], "value": "b", "answer": "a", "wrong": "b"},
            {},
            "in a chat right is needed",
        ),
        (ROWS[0], {"temperature": 0.0}, "temperature above 0"),
        (ROWS[0], {"hold": 20}, "hold from 1 to max_new_tokens, 12"),
        (ROWS[0], {"n": -1}, "give n 0 or more"),
        ({"prompt": "1", "value": "b", "answer": "a", "wrong": "b"}, {"n": 0}, "n is 0 and no row has candidates"),
        (ROWS[0], {"claims": "facts"}, "claims: unknown name"),
    ],
)
def test_a_mistake_is_named_before_the_model_is_used(write, row, options, words):
    with pytest.raises(UserError, match=words):
        dynamics(None, None, **{"dataset": write([row]), "max_new_tokens": 12, "split": "train"} | options)
