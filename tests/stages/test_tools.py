"""Tools and environments of GRPO: they reach TRL's trainer and are called in the rollout, or are refused."""

import json
from importlib.resources import files

import pytest
import trl
from PIL import Image

from pipeline.grpo import main
from pipeline.ppo import main as ppo
from pipeline.rsft import main as rsft
from pipeline.runtime.errors import UserError
from tests.stages.conftest import flags, read_metrics, write_rows

HERE = "tests.stages.test_tools"
OPTIONS = {
    "num_generations": 2, "per_device_train_batch_size": 4, "max_steps": 1, "eval_rows": 0, "guard_patience": 0,
    "max_completion_length": 250, "beta": 0.01, "top_k": 50,
}  # fmt: skip
called: list[tuple[int, int]] = []


def add(a: int, b: int) -> int:
    """Add two numbers.

    Args:
        a: the first number.
        b: the second number.

    Returns:
        their sum.
    """
    called.append((a, b))
    return a + b


def untyped(a):
    """No hints."""
    return a


class Counter:
    """An environment whose reward is what was added up in it."""

    def reset(self, **row) -> str | None:
        """Start at the row's number."""
        self.total = int(row["start"])
        return f"You have {self.total}."

    def increase(self, by: int) -> str:
        """Add to the count.

        Args:
            by: how much.

        Returns:
            the new count.
        """
        self.total += by
        return str(self.total)

    def get_reward(self) -> float:
        """The count."""
        return float(self.total)


class Deaf:
    """An environment that cannot be reset."""


def seen_tool_answers(prompts, completions, **columns):
    """1 for a dialogue in which a tool said 7."""
    return [float(any(m["role"] == "tool" and m["content"] == "7" for m in turns)) for turns in completions]


@pytest.fixture(scope="module")
def caller(foreign_model, tmp_path_factory):
    """The foreign model with Qwen3's template, whose turn ends at its EOS, and room for the list of tools."""
    from transformers import AutoTokenizer, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("caller") / "model"
    model = LlamaForCausalLM.from_pretrained(foreign_model)
    tokenizer = AutoTokenizer.from_pretrained(foreign_model)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = files("trl").joinpath("chat_templates/qwen3.jinja").read_text()
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.config.max_position_embeddings = 2048
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def scripted(monkeypatch):
    """``scripted(call)``: a sampler whose first turn calls a tool and whose second one says 7."""

    def install(call: dict) -> None:
        text = f"<tool_call>\n{json.dumps(call)}\n</tool_call><|im_end|>"

        def generate(self, prompt_ids, *args, **kwargs):
            prompts = [self._tokenizer.decode(ids) for ids in prompt_ids]
            texts = ["7<|im_end|>" if "<tool_response>\n" in p.rpartition("user")[2] else text for p in prompts]
            return [self._tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts], None

        monkeypatch.setattr(trl.GRPOTrainer, "_generate_single_turn", generate)

    return install


def rows(path, **columns):
    prompts = [[{"role": "user", "content": f"What is {a} plus 4?"}] for a in range(4)]
    return write_rows(path, [{"prompt": prompt, **columns} for prompt in prompts])


def test_a_tool_is_called_and_its_answer_is_in_the_dialogue_that_is_rewarded(caller, scripted, tmp_path):
    """Each of four rollouts calls ``add(3, 4)`` once; the reward, which reads the tool's message, is 1 in all."""
    scripted({"name": "add", "arguments": {"a": 3, "b": 4}})
    called.clear()
    main(
        flags(
            model_name_or_path=caller, dataset_name=rows(tmp_path / "rows.jsonl"), output_dir=tmp_path / "run",
            tools=f"{HERE}:add", reward=f"{HERE}:seen_tool_answers", **OPTIONS,
        )
    )  # fmt: skip
    assert called == [(3, 4)] * 4
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert history[0]["tools/call_frequency"] == 1.0
    assert history[0]["tools/failure_frequency"] == 0.0
    assert history[0]["reward"] == 1.0


def test_an_environment_is_reset_with_the_row_called_and_rewards(caller, scripted, tmp_path):
    """It starts at 5, is increased by 2, and its own reward is 7; beside it a reward of ours counts as well: 7 + 1."""
    scripted({"name": "increase", "arguments": {"by": 2}})
    common = {"model_name_or_path": caller, "dataset_name": rows(tmp_path / "rows.jsonl", start=5)} | OPTIONS
    for name, reward, total in (("own", {}, 7.0), ("both", {"reward": f"{HERE}:seen_tool_answers"}, 8.0)):
        main(flags(output_dir=tmp_path / name, environment_factory=f"{HERE}:Counter", **common, **reward))
        history = json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"]
        assert history[0]["rewards/Counter/mean"] == 7.0
        assert history[0]["reward"] == total
    assert read_metrics(tmp_path / "both")["reward_parts/Counter"] == 7.0
    assert read_metrics(tmp_path / "both")["reward_parts/seen_tool_answers"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tools": "add"}, "tools: 'add' is no dotted path; write it as package.module:function"),
        ({"tools": f"{HERE}:ad"}, "there is no ad in .*did you mean add"),
        ({"tools": f"{HERE}:untyped"}, "untyped: a tool needs type hints and a Google-style docstring"),
        ({"environment_factory": f"{HERE}:Deaf"}, "Deaf has no method reset"),
        ({"tools": f"{HERE}:add"}, "the chat template cannot write tool calls"),
        (
            {"tools": f"{HERE}:add", "dataset_name": "text", "as_chat": False},
            "tools are called in dialogues, the prompts are plain text",
        ),
    ],
)
def test_what_cannot_work_is_one_line(foreign_model, tmp_path, change, message):
    """A path, a tool or an environment that is no good; a template without tool calls (plain ChatML); text prompts."""
    given = {"dataset_name": rows(tmp_path / "rows.jsonl"), "model_name_or_path": foreign_model} | change
    if given["dataset_name"] == "text":
        given["dataset_name"] = write_rows(tmp_path / "text.jsonl", [{"prompt": "What is 1 plus 1?"}] * 4)
    with pytest.raises(UserError, match=message) as caught:
        main(flags(output_dir=tmp_path / "run", reward=f"{HERE}:seen_tool_answers", **given, **OPTIONS))
    assert "\n" not in str(caught.value)


def test_ppo_has_no_tools(foreign_model, tmp_path):
    with pytest.raises(UserError, match=r"tools: unknown flag; tools and environments are for grpo\.py"):
        ppo(
            flags(
                model_name_or_path=foreign_model, output_dir=tmp_path / "run", dataset_name="world/prompts",
                tools=f"{HERE}:add", reward="exact",
            )
        )  # fmt: skip


@pytest.mark.parametrize("stage", [main, ppo, rsft])
@pytest.mark.parametrize("chat", [True, False])
def test_images_beside_prompts_are_refused_and_not_sampled_without(foreign_model, tmp_path, stage, chat):
    """TRL would put them into the message of a text model and fail inside its chat template."""
    text = "What is it?"
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    row = {"prompt": [{"role": "user", "content": text}] if chat else text, "images": ["a.png"], "answer": "1"}
    data = write_rows(tmp_path / "rows.jsonl", [row] * 4)
    given = {"model_name_or_path": foreign_model, "dataset_name": data, "output_dir": tmp_path / "run"}
    options = {"per_device_train_batch_size": 8, "deduplicate": False, "eval_rows": 0}
    with pytest.raises(UserError, match="reads text only"):
        stage(flags(reward="exact", use_peft=True, **options, **given))
