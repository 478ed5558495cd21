"""Reward model: a score of prompt and answer, fitted to comparisons.

    pairwise:  L = -log sigma( R(x, y+) - R(x, y-) )                                       (Bradley-Terry)
    listwise:  L = -log prod_i exp R(x, y_i) / sum_{j >= i} exp R(x, y_j),  y_1 the best   (Plackett-Luce)
    binary:    L = -log sigma( R(x, y) ) of a good answer, -log(1 - sigma( R(x, y) )) of a bad one

    accelerate launch pipeline/reward_model.py --config configs/quickstart/reward_model.yaml

Data: prompt + chosen + rejected, or with objective: listwise prompt + ranked (best first; a column ranks states ties),
or with objective: binary prompt + completion + label (true or false).
The saved model is loaded anew and evaluated on held-out rows: accuracy, margin, calibration, correlation with length.

Paper: Part 2, section 1A. A reward is identified only up to a constant of each prompt, so only answers to one prompt
are ever compared; the paper's beta in P = sigma(beta (R+ - R-)) is taken into the reward's own unit.
Loss: `objectives.preference.bradley_terry_loss` (tests/stages/test_losses.py::test_reward_model_of_pairs) and
`plackett_luce_loss` (::test_reward_model_of_rankings), `binary_reward_loss` (::test_reward_model_of_labels).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.runtime.arguments import StageArguments
from pipeline.runtime.entry import entry
from pipeline.runtime.errors import UserError
from pipeline.runtime.record import Run
from pipeline.training.mistakes import refuse_mistakes

if TYPE_CHECKING:
    from trl import RewardConfig


KINDS = {"pairwise": "preference", "listwise": "ranked", "binary": "labelled"}  # of the data of each objective


@dataclass
class RewardModelArguments(StageArguments):
    """What is compared, and with what truth; everything else is TRL's ``RewardConfig``."""

    objective: Literal["pairwise", "listwise", "binary"] = field(
        default="pairwise",
        metadata={
            "help": "Pairs (Bradley-Terry), complete rankings (Plackett-Luce, ties allowed), or single answers with a "
            "label (a binary classifier)."
        },
    )
    true_reward: str | None = field(
        default=None,
        metadata={"help": "The known reward of embedded data to compare with, as package.module:function."},
    )
    reward_parts: str | None = field(
        default=None,
        metadata={
            "help": "Parts of an answer's worth on embedded data, as package.module:function; what the learned reward "
            "pays for each is reported, in units of the first."
        },
    )
    ranked_dataset_name: str | None = field(
        default=None,
        metadata={"help": "Held-out prompt + ranked rows on which the rank correlation with true_reward is reported."},
    )


def main(argv: list[str] | None = None) -> None:
    """Run the stage; see the module's docstring."""
    with Run("reward_model", argv) as run:
        if run.done:
            return
        refuse_mistakes(run, lambda own: KINDS[own.objective], RewardModelArguments)
        from transformers import AutoModelForSequenceClassification
        from trl import RewardConfig

        from pipeline.data.arguments import ChatDataArguments
        from pipeline.data.comparisons import readable_answers
        from pipeline.data.loading import load_data, read_split
        from pipeline.data.preparation import templated, within_positions
        from pipeline.evaluation.tasks.reward_quality import saved_model_figures
        from pipeline.model.chat import as_noted
        from pipeline.model.policy import ModelArguments, load_policy, read_start
        from pipeline.rewards.resolve import resolve
        from pipeline.runtime.registry import import_function
        from pipeline.training.reward_model import OBJECTIVES, build_trainer
        from pipeline.training.session import train_and_save

        own, data_args, model_args, config = run.parse(
            RewardModelArguments, ChatDataArguments, ModelArguments, RewardConfig
        )
        check(own, config)
        truth = resolve(own.true_reward) if own.true_reward else None
        parts = import_function(own.reward_parts, "reward_parts") if own.reward_parts else None
        loading = {
            "trust_remote_code": config.trust_remote_code, "auto_class": AutoModelForSequenceClassification
        }  # fmt: skip
        base, tokenizer = read_start(model_args, **loading, eos_token=config.eos_token)
        within_positions(run, config, base, "rows are left out above")
        objective, kind = OBJECTIVES[own.objective], KINDS[own.objective]
        data = load_data(data_args, kind, config.seed)
        run.add_data(data.sources)
        template, config.chat_template_path = config.chat_template_path, None  # TRL would change the model for it
        data = templated(data, tokenizer, run, kind, data_args, template)
        held_out = readable_answers(data.evaluation, tokenizer, base)
        start = load_policy(model_args, run, tokenizer, **loading, num_labels=1)
        if start.peft_config is not None:  # the head is new: it must be trained and saved with the adapter
            start.peft_config.task_type = "SEQ_CLS"
            start.peft_config.modules_to_save = sorted({*(start.peft_config.modules_to_save or ()), "score"})
        trainer = build_trainer(objective, start, data, config, run)

        def finish(folder: Path) -> None:
            start.finish(folder)
            if held_out is None:
                return
            ranked = read_split(own.ranked_dataset_name, "test", kind="ranked") if own.ranked_dataset_name else ()
            ranked = as_noted(ranked, "ranked", run.record["chat"])
            figures, curves = saved_model_figures(folder, held_out, truth, ranked, parts)
            run.add_metrics({f"held_out_{name}": value for name, value in figures.items()})
            run.add_curves("reliability", curves)

        train_and_save(run, trainer, own, finish)


def check(own: RewardModelArguments, config: "RewardConfig") -> None:
    """Refuse what does not go with labels of single answers, before anything is loaded.

    Raises:
        UserError: a comparison with a true reward, or a coefficient that centres what the labels place.
    """
    if own.objective != "binary":
        return
    if own.true_reward or own.ranked_dataset_name or own.reward_parts:
        raise UserError(
            "true_reward, reward_parts and ranked_dataset_name compare answers to one prompt: leave them out of binary"
        )
    if config.center_rewards_coefficient is not None:
        raise UserError("center_rewards_coefficient: labels say where 0 is; leave it out of objective binary")


FLAGS = {
    "max_length": "maximum tokens of prompt and answer; longer rows are left out [1024]",
    "center_rewards_coefficient": "pull rewards towards mean zero [none]",
}

if __name__ == "__main__":
    entry(main, RewardModelArguments, __doc__, flags=FLAGS)
