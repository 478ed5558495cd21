"""What is wrong with a command by its arguments, files and first rows: reported in a second, before torch is imported.

A stage calls `refuse_mistakes` first. All of it is checked again where it is used, by the same functions; what only a
model or every row can tell is found there.
"""

from collections.abc import Callable
from typing import TypeVar

from pipeline.data.arguments import DataArguments
from pipeline.data.columns import parse_map
from pipeline.data.loading import look_at
from pipeline.data.sources import Source, eval_sources, sources_of
from pipeline.rewards.judging import Reward
from pipeline.rewards.resolve import resolve_each
from pipeline.runtime.arguments import RewardArguments, StageArguments, part
from pipeline.runtime.checkpoints import require_model_folder
from pipeline.runtime.coercion import coerce
from pipeline.runtime.defaults import default_reward
from pipeline.runtime.errors import UserError, did_you_mean
from pipeline.runtime.needs import require_needs
from pipeline.runtime.record import Run

Own = TypeVar("Own", bound=StageArguments)
# TRL looks at the name of a loss in the first training step, with the model loaded. A test compares them with TRL's.
LOSSES = {
    "dpo": (
        "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
        "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
    ),
    "grpo": ("grpo", "bnpo", "dr_grpo", "dapo", "luspo", "cispo", "sapo", "vespo"),
}  # fmt: skip


def refuse_mistakes(
    run: Run,
    kind: str | Callable[[Own], str],
    own_type: type[Own] = StageArguments,
    check: Callable[[Own], None] = lambda own: None,
) -> None:
    """Refuse a training run that cannot succeed.

    Args:
        run: it, before its arguments are parsed.
        kind: the kind of its data (`pipeline.data.schemas`), or what it is by the stage's own fields.
        own_type: the class of the stage's own fields.
        check: raises UserError where they do not go together.

    Raises:
        UserError: no model, data or output folder is named; a local model, dataset, split or checkpoint is not there;
            the columns are not those of this kind; a loss or a reward is unknown, cannot run here or lacks a column.
    """
    if run.helping:
        return
    require_needs(run.stage, run.given)
    _require_losses(run)
    own, data = part(run.argv, own_type), part(run.argv, DataArguments)
    check(own)
    rewards = _rewards(run, own) if isinstance(own, RewardArguments) else []
    if run.given.get("model_name_or_path"):
        require_model_folder(str(run.given["model_name_or_path"]))
    looked_at = [look_at(source, kind if isinstance(kind, str) else kind(own)) for source in _sources(own, data)]
    if all(looked_at) and not run.given.get("from_candidates"):  # which may have scores already
        for reward in rewards:
            reward.require_columns([row for rows in looked_at for row in rows])


def _require_losses(run: Run) -> None:
    """Refuse a loss_type that TRL's trainer of this stage does not have; YAML may give several."""
    known = LOSSES.get(run.stage)
    for name in coerce(run.given.get("loss_type"), list[str] | None, "loss_type") or []:
        if known and name not in known:
            raise UserError(
                f"loss_type: there is no {name!r}{did_you_mean(name, known)}; choose of {', '.join(known)}"
            )


def _rewards(run: Run, own: RewardArguments) -> list[Reward]:
    """The rewards that are given, or what a stage takes where none is."""
    weights = coerce(run.given.get("reward_weights"), list[float] | None, "reward_weights")
    specs = own.reward or default_reward(run.stage, run.given)
    return resolve_each(specs, weights, allow_unsafe_code_execution=own.allow_unsafe_code_execution) if specs else []


def _sources(own: StageArguments, data: DataArguments) -> list[Source]:
    """The datasets of a run; candidates made elsewhere and corpora are named by fields of their stages."""
    names = getattr(own, "corpora", None) or getattr(own, "from_candidates", None)
    if names:
        named = [names] if isinstance(names, str) else names
        return [Source(name, dataset_map=parse_map(data.dataset_map)) for name in named]
    sources = sources_of(data)
    return [*sources, *eval_sources(data, sources)]
