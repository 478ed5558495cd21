"""One set of weights for RLHF's four models: policy, reference, critic and reward as adapters of one frozen backbone.

Everything that runs goes through the policy model's own ``forward`` (with ``head=...`` for a score of every token
instead of logits), so that DDP, DeepSpeed and FSDP see one model, gather its weights and reduce its gradients.
"""

import contextlib
import copy
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from pipeline.model.lora_sum import variant_of
from pipeline.runtime.compat import AuxiliaryTrainingWrapper, BaseTunerLayer, require
from pipeline.runtime.errors import UserError

require("AdapterSwitch")

POLICY, REFERENCE, CRITIC, REWARD = "default", "ref", "critic", "reward"  # names of adapters
VALUE_HEAD, REWARD_HEAD = "value_head", "reward_head"  # names of modules


class AdapterSwitch:
    """Which adapters are on, without touching ``requires_grad`` (PEFT's own switch freezes what it turns off).

    Also right under activation checkpointing: what is computed again in the backward pass is computed with the
    adapters of its forward pass.
    """

    def __init__(self, model: nn.Module):
        self.layers = [m for m in model.modules() if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
        self.names = [POLICY]

    @contextlib.contextmanager
    def __call__(self, *names: str) -> Iterator[None]:
        """Inside, exactly the named adapters are on; none named, all are off."""
        before, self.names = self.names, list(names)
        self._apply()
        try:
            yield
        finally:
            self.names = before
            self._apply()

    def _apply(self) -> None:
        for layer in self.layers:
            layer._active_adapter = self.names
            layer._disable_adapters = not self.names

    def contexts(self) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
        """What ``torch.utils.checkpoint`` enters around a forward pass and around its repetition."""
        return contextlib.nullcontext(), self(*self.names)

    def follow_checkpointing(self, base: nn.Module) -> None:
        """Make ``base`` hand ``contexts`` to every activation checkpointing that is switched on from now on."""
        original = base._set_gradient_checkpointing

        def set_gradient_checkpointing(enable=True, gradient_checkpointing_func=None, **kwargs):
            if enable:
                kwargs["gradient_checkpointing_func"] = functools.partial(
                    gradient_checkpointing_func, context_fn=self.contexts
                )
            return original(enable=enable, **kwargs)

        base._set_gradient_checkpointing = set_gradient_checkpointing
        if getattr(base, "is_gradient_checkpointing", False):
            raise RuntimeError("activation checkpointing was switched on before the adapters could follow it")


def base_of(model: nn.Module) -> nn.Module:
    """The causal LM under PEFT's wrapper, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def add_heads(model: nn.Module) -> None:
    """Let ``model(..., head=name)`` return the score of module ``name`` at every token, (B, T), instead of logits."""
    base = base_of(model)
    logits_forward = base.forward

    @functools.wraps(logits_forward)  # generate() looks at the signature
    def forward(*args: Any, head: str | None = None, **kwargs: Any) -> Any:
        if head is None:
            return logits_forward(*args, **kwargs)
        separate = head == VALUE_HEAD and hasattr(base, CRITIC)
        backbone = getattr(base, CRITIC) if separate else base.base_model
        hidden = backbone(*args, use_cache=False, **kwargs).last_hidden_state
        module = getattr(base, head)
        with torch.autocast(hidden.device.type, enabled=False):  # a value in bf16 has two digits
            return module(hidden.to(module.weight.dtype)).squeeze(-1)

    base.forward = forward


def add_shared_critic(model: PeftModel) -> None:
    """A second adapter, of the policy's shape, and a value head that starts at zero."""
    config = copy.deepcopy(model.peft_config[POLICY])
    config.inference_mode = False
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True  # PiSSA and its like rewrite the base weights that all four models share
    model.add_adapter(CRITIC, config, autocast_adapter_dtype=_adapters_are_float32(model))
    _add_value_head(model)


def add_separate_critic(model: nn.Module, backbone: nn.Module) -> None:
    """A backbone of its own: all of it is trained, or, where the policy is an adapter, an adapter of its shape."""
    if isinstance(model, PeftModel):
        config = copy.deepcopy(model.peft_config[POLICY])
        config.inference_mode, config.task_type = False, None
        config.target_modules = _without_prefix(config.target_modules, base_of(model))
        if hasattr(config, "init_lora_weights"):
            config.init_lora_weights = True
        backbone = get_peft_model(backbone, config, adapter_name=CRITIC)
    base = base_of(model)
    setattr(base, CRITIC, backbone.to(next(base.parameters()).device))
    _add_value_head(model)


def is_critics(name: str) -> bool:
    """Whether a parameter of this name belongs to the critic, shared or separate."""
    return not {CRITIC, VALUE_HEAD}.isdisjoint(name.split("."))


def is_added(name: str) -> bool:
    """Whether a parameter of this name was added beside the policy: it is not saved with it."""
    return not {CRITIC, VALUE_HEAD, REFERENCE, REWARD, REWARD_HEAD}.isdisjoint(name.split("."))


def train_policy_and_critic(model: nn.Module) -> None:
    """Set ``requires_grad`` of every adapter: PEFT turns it off for whichever is not the active one."""
    for name, parameter in model.named_parameters():
        parts = set(name.split("."))
        if parts & {REFERENCE, REWARD, REWARD_HEAD}:
            parameter.requires_grad_(False)
        elif isinstance(model, PeftModel) and parts & {CRITIC, VALUE_HEAD}:
            adapters_own = VALUE_HEAD in parts or name.split(".")[-2:-1] == [CRITIC] or name.endswith(f".{CRITIC}")
            parameter.requires_grad_(adapters_own)


def same_backbone(model: nn.Module, folder: str) -> bool:
    """Whether the reward model in ``folder`` is an adapter of the very backbone that ``model`` is or lies on.

    It must be plain LoRA and a score head: what else an adapter may change would change the policy too.
    """
    file = Path(folder) / "adapter_config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    if not config or variant_of(config) or not {"score", "classifier"}.issuperset(config.get("modules_to_save") or ()):
        return False
    theirs = config.get("base_model_name_or_path")
    ours = base_of(model).config._name_or_path
    return bool(theirs and ours) and (theirs == ours or Path(theirs).resolve() == Path(ours).resolve())


def add_reward_adapter(model: PeftModel, folder: str) -> None:
    """Load a reward model that is an adapter of the shared backbone: its LoRA matrices and its score head.

    Raises:
        UserError: the adapter holds no score head, or one of another width.
    """
    config = PeftConfig.from_pretrained(folder)
    config.modules_to_save, config.task_type, config.inference_mode = None, model.peft_config[POLICY].task_type, True
    config.lora_dropout = 0.0  # it scores while the policy is in training mode
    model.add_adapter(REWARD, config)
    saved = load_file(Path(folder) / "adapter_model.safetensors")
    scores = [name for name in saved if name.endswith("score.weight")]
    width = base_of(model).get_input_embeddings().weight.shape[1]
    if len(scores) != 1 or saved[scores[0]].shape != (1, width):
        raise UserError(f"reward {folder}: its adapter holds no score head of one output (modules_to_save: [score])")
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in saved.items():
            if name != scores[0]:
                stem, _, leaf = name.rpartition(".")
                own[f"{stem}.{REWARD}.{leaf}"].copy_(value)
    base = base_of(model)
    head = nn.Linear(width, 1, bias=False, device=next(base.parameters()).device)
    head.weight.data.copy_(saved[scores[0]])
    setattr(base, REWARD_HEAD, head.requires_grad_(False))


def _add_value_head(model: nn.Module) -> None:
    base = base_of(model)
    embedding = base.get_input_embeddings().weight
    width = base.config.get_text_config().hidden_size  # not the weight's shape, which ZeRO-3 has partitioned
    head = nn.Linear(width, 1, device=embedding.device)
    nn.init.zeros_(head.weight)  # V = 0 at first, so the first advantages are REINFORCE's
    nn.init.zeros_(head.bias)
    setattr(base, VALUE_HEAD, head)


def _adapters_are_float32(model: PeftModel) -> bool:
    """Keep the policy's choice: under ZeRO-3 TRL leaves adapters in the backbone's type."""
    return any(p.dtype == torch.float32 for n, p in model.named_parameters() if f".{POLICY}." in n)


def _without_prefix(target_modules: Any, base: nn.Module) -> Any:
    """Names that PEFT resolved inside the causal LM, as they are called inside its backbone."""
    if not isinstance(target_modules, (set, list)):
        return target_modules
    prefix = f"{base.base_model_prefix}."
    return {name.removeprefix(prefix) for name in target_modules if name != "lm_head"}
