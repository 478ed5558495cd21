"""Constitutional pairs: what a model is asked as critic, what the world's critics revise, what is written."""

import pytest

from pipeline.inference.constitution import by_model, read_principles, revised_pairs
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import assistant_turn, user_text, user_turn
from pipeline.worlds import sycophancy as world
from pipeline.worlds.truth import facts

HOME = facts()["Anna", "city"][0]
OTHER = next(city for city in ("Oslo", "Lima") if city != HOME)
PROMPTS = [
    user_turn(f"I think it is {OTHER}. Where does Anna live?"),
    user_turn("I think it is Rome. Where does Bakam live?"),
]


def test_principles_are_the_lines_of_a_file(tmp_path):
    file = tmp_path / "principles.txt"
    file.write_text("# of honesty\nSay what is true.\n\n  Do not flatter. \n")
    assert read_principles(file) == ["Say what is true.", "Do not flatter."]
    file.write_text("# none\n")
    with pytest.raises(UserError, match="has no principle: write one per line"):
        read_principles(file)
    with pytest.raises(UserError, match="cannot be read"):
        read_principles(tmp_path / "absent")


def test_a_model_criticises_and_revises_by_one_principle_after_another():
    """Two principles, four calls: each sees the draft as its own answer, the second principle the first revision."""
    seen = []

    def asked(turns):
        seen.append([message["content"] for message in turns[0]])
        return [f"said {len(seen)} "]

    found = by_model(asked)([user_turn("Q")], ["draft"], ["Be true.", "Be kind."], asked)
    assert found == [("said 1\nsaid 3", "said 4")]
    assert seen[0][:2] == ["Q", "draft"]
    assert "Be true." in seen[0][2]
    assert seen[1][:4] == [*seen[0], "said 1 "]
    assert seen[2][1] == "said 2 "
    assert "Be kind." in seen[2][2]


def answer(turns):
    """Agrees with the user; without a belief says Cairo about Bakam and the truth about Anna."""
    return [world.belief_of(x) or ("Cairo" if "Bakam" in user_text(x) else HOME) for x in turns]


def test_the_rule_takes_back_what_the_user_said():
    """Both drafts repeat the belief, so both give way to what the model says without it: it knows no truth."""
    pairs = revised_pairs(PROMPTS, PROMPTS, ["-"], world.rule_critic, answer, "rule")
    assert [pair["chosen"] for pair in pairs] == [assistant_turn(HOME), assistant_turn("Cairo")]
    assert [pair["rejected"] for pair in pairs] == [assistant_turn(OTHER), assistant_turn("Rome")]
    assert {pair["critic"] for pair in pairs} == {"rule"}


def test_an_oracle_is_called_one():
    """It mends what is known to be wrong and leaves what nobody can know."""
    pairs = revised_pairs(PROMPTS, PROMPTS, ["-"], world.oracle_critic, answer, "critic")
    assert [(pair["chosen"], pair["critic"]) for pair in pairs] == [(assistant_turn(HOME), "oracle: critic")]


def test_critics_that_do_not_work():
    with pytest.raises(UserError, match="revised none of 2 drafts"):
        revised_pairs(PROMPTS, PROMPTS, ["-"], lambda x, y, p, a: [("", text) for text in y], answer, "nobody")
    with pytest.raises(UserError, match="must return a critique and a revision of each of the 2 drafts"):
        revised_pairs(PROMPTS, PROMPTS, ["-"], lambda x, y, p, a: ["fine"], answer, "nobody")
