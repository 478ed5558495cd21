"""What this package uses of other libraries beyond their documented interface, in one list.

Such names move without notice between minor versions. Names are imported from here, as in
``from pipeline.runtime.compat import RepeatSampler``; a class of ours that overrides or reads private members calls
``require`` where it is defined. Both happen when a stage imports its trainer, before it loads a model, so a version
that moved something ends in one ``error:`` line rather than in an AttributeError after the first rollout.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.runtime.errors import UserError

# The versions that the test suite passes on: the ranges in pyproject.toml (a test compares them).
TESTED = {
    "transformers": ">=5.21,<5.25",
    "trl": ">=1.16,<1.17",
    "peft": ">=0.21,<0.22",
    "accelerate": ">=1.14,<1.16",
    "math-verify": ">=0.9,<0.10",
}
# The versions of transformers that run the code files of a saved NarLM (make test-versions), for the model cards.
SAVED_MODELS_RUN_ON = ("5.18", "5.24")

NAMES = {
    "RepeatSampler": "trl.trainer.utils",
    "get_config_model_id": "trl.trainer.utils",
    "pad": "trl.trainer.utils",
    "disable_gradient_checkpointing": "trl.models.utils",
    "get_training_chat_template": "trl.chat_template_utils",
    "llama3_training_chat_template": "trl.chat_template_utils",
    "gemma3_training_chat_template": "trl.chat_template_utils",
    "render_jinja_template": "transformers.utils.chat_template_utils",
    "rotate_checkpoints": "transformers.trainer_utils",
    "BaseTunerLayer": "peft.tuners.tuners_utils",
    "AuxiliaryTrainingWrapper": "peft.utils",
    "AcceleratorState": "accelerate.state",
    "launch_command": "accelerate.commands.launch",
    "launch_command_parser": "accelerate.commands.launch",
    "_validate_launch_command": "accelerate.commands.launch",
    "prepare_simple_launcher_cmd_env": "accelerate.utils.launch",
}

# Our class or function -> the module or class it reaches into, and the members it needs there. A method is written
# with the parameters that it is called with.
SAVE = ("_save(output_dir, state_dict)", "_load_from_checkpoint(resume_from_checkpoint, model)")
MEMBERS: dict[str, dict[str, tuple[str, ...]]] = {
    "Resumable": {
        "transformers:Trainer": (
            "_save_checkpoint(model, trial)",
            "_get_output_dir(trial)",
            "train(resume_from_checkpoint)",
        )
    },
    "RolloutTrainer": {
        "trl:GRPOTrainer": (
            "_get_train_sampler(dataset)",
            "_generate_and_score_completions(inputs)",
            "_get_per_token_logps_and_entropies(model, input_ids, attention_mask, logits_to_keep, batch_size, "
            "compute_entropy)",
            "eos_token_ids",
            "num_generations",
            "_step",
            "_calculate_rewards(inputs, prompts, completions, completion_ids_list)",
            "reward_func_names",
            "reward_weights",
            "_determine_best_metric(metrics, trial)",
        )
    },
    "PPOTrainer": {
        "trl:GRPOTrainer": (
            "_calculate_rewards(inputs, prompts, completions, completion_ids_list)",
            "_compute_loss(model, inputs)",
            "_dist",
            "_logs",
            "_metrics",
            "_tokenizer",
            "current_gradient_accumulation_steps",
            "save_model(output_dir, _internal_call)",
            *SAVE,
        )
    },
    "DPOTrainer": {"trl:DPOTrainer": ("_compute_loss(model, inputs, return_outputs)", "_metrics")},
    "RewardTrainer": {"trl:RewardTrainer": ("_metrics",)},
    "HeldOut": {"trl:GRPOTrainer": ("_calculate_rewards", "reward_weights"), "trl:DPOTrainer": ("_metrics",)},
    "LabelledRewardTrainer": {"trl:RewardTrainer": ("_metrics",)},
    "RankedRewardTrainer": {"trl:RewardTrainer": ("_metrics", "_total_train_tokens")},
    "Regularised": {
        f"trl:{trainer}": (
            "_metrics",
            "_prepare_inputs(inputs)",
            "current_gradient_accumulation_steps",
            "model_accepts_loss_kwargs",
            *SAVE,
        )
        for trainer in ("SFTTrainer", "DPOTrainer")
    },
    "AdapterSwitch": {
        "peft.tuners.tuners_utils:BaseTunerLayer": ("_active_adapter", "_disable_adapters"),
        "peft.utils:AuxiliaryTrainingWrapper": ("_active_adapter", "_disable_adapters"),
        "transformers:PreTrainedModel": ("_set_gradient_checkpointing(enable, gradient_checkpointing_func)",),
    },
    "whole_weights": {"transformers.integrations.deepspeed": ("_hf_deepspeed_config_weak_ref",)},
    "forget_deepspeed": {"accelerate.state:AcceleratorState": ("_shared_state", "_reset_state()")},
    "exactly_equal": {
        "math_verify.grader": (
            "sympy_numeric_eq(a, b, float_rounding, numeric_precision)",
            "sympy_expr_eq(gold, pred, float_rounding, numeric_precision)",
            "sympy_compare_interval(a, b, float_rounding, numeric_precision)",
            "safe_sympy_doit(a)",
            "is_relation(expr)",
        )
    },
    "check_trackers": {"transformers.integrations.integration_utils": ("INTEGRATION_TO_CALLBACK",)},
}


def __getattr__(name: str) -> Any:
    """A name of ``NAMES``, from the library that has it.

    Raises:
        UserError: the installed version has it no more.
    """
    if name not in NAMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return _found(NAMES[name], name)


def require(user: str) -> None:
    """Check every member that a class or function of ours needs (``MEMBERS``).

    Raises:
        UserError: the installed version has one no more, or a method of it lost a parameter.
    """
    for place, members in MEMBERS[user].items():
        module, _, name = place.partition(":")
        owner = _found(module, name)
        for member in members:
            wanted, called, parameters = member.rstrip(")").partition("(")
            where = f"{place.replace(':', '.')}.{wanted}"
            if not (hasattr(owner, wanted) if called else _has(owner, wanted)):
                raise _moved(where, user)
            for parameter in _missing(getattr(owner, wanted), parameters.split(", ")) if parameters else ():
                raise _moved(f"the parameter {parameter} of {where}", user)


def _found(module: str, name: str) -> object:
    """``module``, or ``name`` in it."""
    try:
        found = import_module(module)
        return getattr(found, name) if name else found
    except (ImportError, AttributeError) as error:
        raise _moved(f"{module}.{name}" if name else module, "narlm") from error


def _missing(method: Callable, parameters: list[str]) -> list[str]:
    """Those of ``parameters`` that a method does not take."""
    given = inspect.signature(method).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in given.values()):
        return []
    return [parameter for parameter in parameters if parameter not in given]


def _has(owner: object, name: str) -> bool:
    """Whether a module or class has an attribute, or a method of the class mentions it: ``self.name = ...``."""
    if hasattr(owner, name) or not inspect.isclass(owner):
        return hasattr(owner, name)
    functions = (inspect.unwrap(x) for base in owner.__mro__ for x in vars(base).values() if inspect.isfunction(x))
    return any(name in function.__code__.co_names for function in functions)


def _moved(what: str, user: str) -> UserError:
    package = what.removeprefix("the parameter ").rpartition(" of ")[2].partition(".")[0].replace("_", "-")
    try:
        installed = version(package)
    except PackageNotFoundError:
        return UserError(f"{package} is not installed: pip install '{package}{TESTED[package]}'")
    return UserError(
        f"{what} is not in {package} {installed}, and {user} builds on it: the versions tested are "
        f"{package}{TESTED[package]}; pip install '{package}{TESTED[package]}'"
    )
