"""The part of a training stage that is the same in all of them: resume, train, evaluate, save, card, push."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from datasets import Dataset, IterableDataset
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import TrainOutput
from trl import GRPOConfig

from pipeline.model.chat import untrained_tokens
from pipeline.publish.cards import write_card
from pipeline.publish.hub import push_run
from pipeline.runtime.arguments import StageArguments
from pipeline.runtime.checkpoints import check_saved, checkpoints, damage, require_same_shards
from pipeline.runtime.compat import AcceleratorState, require
from pipeline.runtime.errors import DivergedError, UserError
from pipeline.runtime.record import Run
from pipeline.training.callbacks import MeanLoss, PushCheckpoints, RequireMetric, StopOnSignal
from pipeline.training.ending import say_end
from pipeline.training.finite import ADVICE, StopWhenNotFinite, diverged_in_sampling
from pipeline.training.held_out import HeldOut
from pipeline.training.learning import WatchGradients, could_learn
from pipeline.training.optimizers import split_groups
from pipeline.training.progress import show_progress

require("forget_deepspeed")

PROMPTS_JUDGED = 64  # held-out prompts that are sampled for at the end of a run that was not evaluated before


def train_and_save(
    run: Run,
    trainer: Trainer,
    own: StageArguments,
    finish: Callable[[Path], None] | None = None,
    leg: str = "",
) -> dict[str, float | None]:
    """Train from the newest complete checkpoint, evaluate on held-out rows, save, write the card, push if asked.

    Args:
        run: the run whose folder and record are filled.
        trainer: any Trainer, built on the run's data and model.
        own: the stage's own fields.
        finish: called on the main process with the output folder once the weights are saved, before they are checked.
        leg: what of a longer run this is, for the terminal, such as ``round 2 of 2``.

    Returns:
        The run's metrics, which are also in ``run.json``.

    Raises:
        UserError: early stopping without an evaluation metric to watch.
        SystemExit: 130 or 143 after a signal, once a checkpoint is written.
    """
    args = trainer.args
    pushes = _checkpoint_pushes(run, args)
    if pushes is not None:
        trainer.add_callback(pushes)
    _stop_early(trainer, own.early_stopping_patience)
    held_out = HeldOut(trainer) if trainer.eval_dataset is not None else None
    if held_out is not None:
        trainer.add_callback(held_out)
    result = train_from_newest(run, trainer, run.folder, leg)
    run.add_metrics(result.metrics)
    run.add_metrics({"steps": trainer.state.global_step})
    if held_out is not None:
        run.add_metrics(_evaluated(trainer, held_out))
    trainer.save_model(str(run.folder))
    trainer.save_state()
    if run.is_main:
        (run.folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says the same in plain text
        if finish is not None:
            finish(run.folder)
        check_saved(run.folder, trained=could_learn(trainer))
    run.complete(write_card)
    if run.is_main:
        say_end(run)
    trainer.accelerator.wait_for_everyone()
    if pushes is not None:
        pushes.finish()
    if run.push and run.is_main:
        push_run(
            run.folder,
            args.hub_model_id,
            private=args.hub_private_repo,
            token=args.hub_token,
            revision=args.hub_revision,
        )
    trainer.end()  # a process group that is not destroyed can hang, or abort, at exit
    return run.record["metrics"]


def train_from_newest(run: Run, trainer: Trainer, folder: Path, leg: str = "") -> TrainOutput:
    """Train from the newest complete checkpoint in ``folder``: the run's own, or that of one of its rounds or corpora.

    Raises:
        UserError: the checkpoint cannot be read by so many processes, ``loraplus_lr_ratio`` does not apply, or
            padding ends answers.
        SystemExit: 130 or 143 after a signal, once a checkpoint is written.
        DivergedError: a loss, gradient or weight was not finite; the checkpoints before it are kept.
    """
    require_pad_token(trainer)
    trainer.add_callback(StopOnSignal(run))
    trainer.add_callback(StopWhenNotFinite(trainer, run.stage))  # after it: a checkpoint may have been asked for
    trainer.add_callback(WatchGradients(trainer))
    mean_loss = MeanLoss(trainer.accelerator)
    trainer.add_callback(mean_loss)
    if trainer.args.load_best_model_at_end or trainer.args.save_strategy == "best":
        trainer.add_callback(RequireMetric())
    warn_of_untrained_tokens(run, trainer)
    apply_loraplus(trainer, run.record["arguments"].get("loraplus_lr_ratio"))
    show_progress(trainer, run, leg)
    stop_where_done(trainer)
    checkpoint = run.checkpoint_in(folder)
    for path in checkpoints(folder):
        if (found := damage(path)) is not None:
            run.warn(f"{path} is damaged ({found}): resuming from {checkpoint.name if checkpoint else 'the start'}")
    if checkpoint:
        run.say(f"resuming from {checkpoint}")
        require_same_shards(checkpoint, trainer.args.world_size)
    try:
        with run.training():
            result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except RuntimeError as error:
        if not diverged_in_sampling(error):
            raise
        step = trainer.state.global_step + 1
        raise DivergedError(
            f"{run.stage} diverged: sampling for step {step} met probabilities that are not finite. {ADVICE}"
        ) from error
    if trainer.state.global_step > 0 and not could_learn(trainer):
        run.note("nothing_learned", True)
        run.warn(
            f"nothing was learned: the gradient of every one of {trainer.state.global_step} steps was zero, so the "
            "weights are those that the run started from"
        )
    result.metrics.update(mean_loss.metrics(trainer.state.global_step))
    return result


def warn_of_untrained_tokens(run: Run, trainer: Trainer) -> None:
    """Say so where an adapter learns chats over special tokens that no training has moved, and that it cannot move.

    A base that reserves the tokens of its chat model (Llama 3's ``<|eot_id|>``) has nothing in these rows: an adapter
    on the layers alone learns neither to read nor to write them.
    """
    if not run.record.get("chat", {}).get("as_chat") or "untrained_tokens" in run.record:
        return
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    embedding = trainer.model.get_input_embeddings()
    if any(parameter.requires_grad for parameter in embedding.parameters()):
        return
    found = untrained_tokens(trainer.model, tokenizer)
    if not found:
        return
    run.note("untrained_tokens", found)
    run.warn(
        f"the embeddings of {', '.join(found)} look untrained, and the adapter does not train them: add "
        "--lora_modules_to_save embed_tokens lm_head, or train all weights"
    )


def stop_where_done(trainer: Trainer) -> None:
    """Make no step where the checkpoint is that of the last one: Trainer would make one more before it looks.

    That is how a run resumes which was killed after its last checkpoint and before its end.
    """
    get_batch_samples = trainer.get_batch_samples

    def unless_done(*args, **kwargs) -> tuple[list, torch.Tensor | int | None]:
        if trainer.state.global_step >= trainer.state.max_steps:
            trainer.control.should_training_stop = True
            return [], None
        return get_batch_samples(*args, **kwargs)

    trainer.get_batch_samples = unless_done


def forget_deepspeed() -> None:
    """Let a further Trainer of this process set DeepSpeed up as the first did; accelerate takes its plugin once."""
    if AcceleratorState._shared_state and AcceleratorState().distributed_type == DistributedType.DEEPSPEED:
        AcceleratorState._reset_state()


def apply_loraplus(trainer: Trainer, ratio: float | None) -> None:
    """LoRA+ (Hayou et al. 2024, arXiv:2402.12354): let LoRA's B matrices learn ``ratio`` times as fast as the rest.

    PEFT's ``create_loraplus_optimizer`` makes another optimizer; this splits the groups of the one that the trainer
    makes, whatever it is, so that a critic's learning rate or a sharded optimizer stay as they are.

    Raises:
        UserError: the ratio is not above 0, or there is no LoRA to apply it to.
    """
    if ratio is None:
        return
    if not ratio > 0 or not any("lora_B" in name for name, _ in trainer.model.named_parameters()):
        raise UserError(f"loraplus_lr_ratio {ratio}: give a number above 0, together with use_peft: true")
    create = trainer.create_optimizer

    def create_optimizer(*args, **kwargs) -> torch.optim.Optimizer:
        optimizer = create(*args, **kwargs)
        b_matrices = [parameter for name, parameter in trainer.model.named_parameters() if "lora_B" in name]
        split_groups(optimizer, b_matrices, lambda rate: rate * ratio)
        return optimizer

    trainer.create_optimizer = create_optimizer


def _checkpoint_pushes(run: Run, args: TrainingArguments) -> PushCheckpoints | None:
    """What sends checkpoints while training continues, on the main process of a run that asks for it."""
    if not (run.push and run.is_main) or getattr(args.hub_strategy, "value", args.hub_strategy) == "end":
        return None
    if run.record["arguments"].get("adapter_mode") == "stack" and run.record["arguments"].get("use_peft"):
        run.warn("under adapter_mode stack only the finished adapter is complete: checkpoints are not pushed")
        return None
    return PushCheckpoints(run, args)


def _stop_early(trainer: Trainer, patience: int | None) -> None:
    """Stop a training that has not improved for so many evaluations; None never does.

    Raises:
        UserError: there is no metric to watch.
    """
    if patience is None:
        return
    if not (trainer.args.load_best_model_at_end and trainer.args.metric_for_best_model):
        raise UserError(
            "early_stopping_patience needs load_best_model_at_end: true and metric_for_best_model, so that it is "
            "known what better means"
        )
    trainer.add_callback(EarlyStoppingCallback(patience))


def _evaluated(trainer: Trainer, held_out: HeldOut) -> dict[str, float]:
    """Held-out metrics of the trained weights; with evaluations during the training those of the first one too."""
    last = _last_evaluation(trainer) if held_out.figures else None  # an earlier process kept no figures
    if last is None:
        set_seed(trainer.args.seed)  # a trainer that samples: a resumed run ends as one go does
    metrics = (last or trainer.evaluate()) | held_out.figures
    first = first_evaluation(trainer.state.log_history) if trainer.args.eval_strategy != "no" else {}
    return metrics | first


def _last_evaluation(trainer: Trainer) -> dict[str, float] | None:
    """The evaluation made at the last step, where the weights are still the same; evaluating twice costs time."""
    last = next((entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry), {})
    if trainer.args.load_best_model_at_end or last.get("step") != trainer.state.global_step:
        return None
    return {name: value for name, value in last.items() if name.startswith("eval_")}


def first_evaluation(log_history: list[dict[str, Any]]) -> dict[str, float]:
    """The first evaluation's metrics under ``first_eval_*``, so that the record says what training changed."""
    for entry in log_history:
        if any(name.startswith("eval_") for name in entry):
            return {f"first_{name}": value for name, value in entry.items() if name.startswith("eval_")}
    return {}


def require_pad_token(trainer: Trainer) -> None:
    """Refuse ``--pad_token`` and ``--eos_token`` that are one: the end of every answer would be masked as padding.

    Raises:
        UserError: they are.
    """
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    if tokenizer is not None and tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UserError(
            f"pad_token and eos_token are both {tokenizer.pad_token!r}: the model would never learn to stop; leave "
            "pad_token out, or name a token that occurs in no text"
        )


def require_rows(dataset: Dataset | IterableDataset, name: str | Path) -> None:
    """Refuse a dataset that has become empty, e.g. by a length filter.

    Raises:
        UserError: no row is left.
    """
    if hasattr(dataset, "__len__") and len(dataset) == 0:
        raise UserError(f"{name}: no row is left to train on; check max_length and the dataset's columns")


def judged_at_end(rows: Dataset | None, config: GRPOConfig) -> Dataset | None:
    """Held-out prompts as a trainer that samples takes them.

    Where it does not evaluate while it trains, it samples for a part of them at the end, one completion each (two
    where the trainer compares completions): sampling for all of them could take longer than the training.
    """
    if rows is None or config.eval_strategy != "no":
        return rows
    if getattr(config, "critic", None) != "none":
        config.num_generations_eval = 1
    return rows.select(range(min(PROMPTS_JUDGED, len(rows))))
