"""Worked and direct problems: equal numbers, disjoint splits, steps that are true, and the rules of mod 11."""

import itertools
import re
from collections import Counter
from fractions import Fraction

from pipeline.model.tokenizer import train_tokenizer
from pipeline.worlds import chains, modular


def some(name, split, count, module=chains):
    return list(itertools.islice(module.rows(name, split), count))


def test_every_step_is_true_and_the_splits_are_disjoint():
    """No test sum is in training, no held-out pair in a step of it, and every equation of the corpus holds."""
    texts = [row["text"] for row in some("chains-corpus", "train", 1500)]
    asked = {row["prompt"] for row in chains.rows("chains-sums", "test")}
    for text in texts:
        for a, b, total in re.findall(r"(\d+)\+(\d+)=(\d+)", text):
            assert int(a) + int(b) == int(total)
            assert not chains.pair_held_out(int(a), int(b))
        for a, x, b, product, c, value in re.findall(r"= (\d+)\*(\d+) \+ (\d+) = (\d+) \+ (\d+) = (\d+)", text):
            assert (int(a) * int(x), int(product) + int(c)) == (int(product), int(value))
            assert b == c
            assert not chains.line_held_out(int(a), int(b))
        assert not {line.strip().partition(",")[0] for line in text.splitlines()} & asked


def test_forms_are_drawn_alike_and_dots_are_as_many_as_the_steps_tokens():
    """Of 3,000 sums each form is a third within four standard errors (0.034); the same tokenizer gives the dots of a
    sum as many tokens as its steps."""
    texts = [row["text"] for row in some("chains-corpus", "train", 2000)]
    forms = Counter(re.findall(r", (at once|in steps|with dots):", " ".join(texts)))
    for form in chains.FORMS:
        assert abs(forms[form] / sum(forms.values()) - 1 / 3) < 0.034
    tokenizer = train_tokenizer(texts, 320)
    for terms, dots in re.findall(r" ([\d+]+), with dots:((?: \.)+) ####", " ".join(texts))[:50]:
        worked = chains.steps_answer([int(n) for n in terms.split("+")]).partition(" ####")[0]
        length = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (dots, f" {worked}")]
        assert length[0] == length[1]


def test_a_corrupted_step_has_the_answer_that_follows_from_it():
    """The wrong total plus the terms that are left to add is ``corrupted_answer``; the intact one gives ``answer``."""
    sums = list(chains.rows("chains-sums", "test"))
    for row in sums[:200]:
        for begun, answer in ((row["intact"], row["answer"]), (row["corrupted"], row["corrupted_answer"])):
            *_, (added, total) = re.findall(r"\+(\d+)=(\d+)", begun)
            terms = [int(n) for n in row["prompt"].split("+")]
            done = len(re.findall("=", begun)) + 1
            assert int(added) == terms[done - 1]
            assert int(total) + sum(terms[done:]) == int(answer)
        assert row["corrupted_answer"] != row["answer"]
    assert Counter(row["kind"] for row in sums) == {f"{n} terms": 200 for n in chains.TERMS}


def test_the_paper_s_examples_word_for_word_are_in_no_training_text():
    assert [row["answer"] for row in chains.rows("paper-examples", "test")] == ["49", "42", "21"]
    assert chains.pair_held_out(17, 25)
    assert chains.pair_held_out(25, 17)
    assert chains.line_held_out(2, 1)


def test_two_examples_fix_a_rule():
    """110 rules, of which a fifth is held out. At x = 0 and 1 (a, b) is known: (3, 5) gives 5, 8 and at 2: 0. After
    one example the other ten values are equally likely, without one all eleven."""
    seen, held = modular.rules("seen"), modular.rules("held out")
    assert len(set(seen) | set(held)) == len(seen) + len(held) == 110
    assert len(held) == 23
    assert modular.ideal([(0, 5), (1, 8)], 2) == [Fraction(1)] + [Fraction(0)] * 10
    after_one = modular.ideal([(0, 5)], 2)
    assert after_one[5] == 0
    assert {p for y, p in enumerate(after_one) if y != 5} == {Fraction(1, 10)}
    assert set(modular.ideal([], 2)) == {Fraction(1, 11)}


def test_rules_rows_show_what_they_say():
    """Training has seen rules only; of each kind there are 200 rows, whose examples agree with the answer's rule."""
    for row in some("modular", "train", 300, modular):
        numbers = [int(word) for word in row["text"].split()]
        pairs = list(zip(numbers[::2], numbers[1::2]))
        assert any(all(modular.value(rule, x) == y for x, y in pairs) for rule in modular.rules("seen"))
    rows = list(modular.rows("modular", "test"))
    assert Counter(row["kind"] for row in rows) == dict.fromkeys(modular.KINDS, 200)
    for row in rows:
        if row["kind"] == "another family":
            continue
        shown = [(int(e["prompt"]), int(e["completion"])) for e in row["examples"]]
        for k, best in enumerate(row["ideal"]):
            law = modular.ideal(
                shown[:k], int(row["prompt"]), modular.rules("seen") if row["kind"] == "seen" else None
            )
            assert float(max(law)) == best
            if row["kind"] == "held out":  # 1/11, 1/10, and from the second example on certainty
                assert best == [float(Fraction(1, 11)), 0.1, 1][min(k, 2)]
            if best == 1:
                assert law[int(row["answer"])] == 1
        assert row["baseline"][7] == 1 / 4
