"""What a policy may call while it answers: functions (tools), or the methods of an environment, by dotted path.

TRL's ``GRPOTrainer`` lets the model call them in a rollout and writes their results into the dialogue, whose tokens
are not learned from. Here they are found, and what they need is checked before anything is sampled.
"""

import inspect
import os
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase
from transformers.utils import get_json_schema
from trl import add_response_schema, supports_tool_calling

from pipeline.data.loading import Data
from pipeline.runtime.errors import UserError
from pipeline.runtime.registry import import_function


def load_tools(names: Sequence[str], environment: str | None) -> tuple[list[Callable] | None, Callable | None]:
    """The tools and the environment's factory that ``--tools`` and ``--environment_factory`` name.

    Args:
        names: dotted paths ``package.module:function``; one word may hold several, with commas between.
        environment: dotted path of a class or function that makes an environment: an object with ``reset``, whose
            other public methods are tools and whose ``get_reward``, where it has one, scores the rollout.

    Raises:
        UserError: a path that cannot be imported, a tool without type hints or a docstring, no ``reset``.
    """
    paths = [path.strip() for name in names for path in name.split(",") if path.strip()]
    tools = [_imported(path, "tools") for path in paths]
    for path, tool in zip(paths, tools):
        try:
            get_json_schema(tool)
        except Exception as cause:  # transformers has one exception for each thing that may be missing
            reason = " ".join(str(cause).split())
            raise UserError(
                f"tools: {path}: a tool needs type hints and a Google-style docstring: {reason}"
            ) from cause
    factory = _imported(environment, "environment_factory") if environment else None
    if factory is not None:
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # the user asked for it; the pinned TRL has it
    if inspect.isclass(factory) and not callable(getattr(factory, "reset", None)):
        raise UserError(f"environment_factory: {environment} has no method reset(self, **row)")
    return tools or None, factory


def require_reward(specs: Sequence[str], environment: Callable | None) -> None:
    """Refuse a run that has nothing to learn from.

    Raises:
        UserError: no reward, and an environment that has none of its own.
    """
    if not specs and inspect.isclass(environment) and not callable(getattr(environment, "get_reward", None)):
        raise UserError("reward is missing: name one, or give the environment a method get_reward(self) -> float")


def require_tool_calling(tokenizer: PreTrainedTokenizerBase, data: Data) -> None:
    """Refuse prompts and chat templates in which no tool can be called.

    Raises:
        UserError: prompts that are plain text, a template that cannot write tool calls or whose calls TRL cannot read.
    """
    if isinstance(next(iter(data.train))["prompt"], str):
        raise UserError(
            "tools are called in dialogues, the prompts are plain text: make each prompt a list of messages, or give "
            "--as_chat true"
        )
    if not supports_tool_calling(tokenizer):
        raise UserError(
            "the chat template cannot write tool calls (assistant with tool_calls, then role tool): take a model that "
            "was trained to call tools, or give its template with chat_template_path"
        )
    if not getattr(tokenizer, "response_template", None) and not getattr(tokenizer, "response_schema", None):
        try:
            add_response_schema(tokenizer)
        except ValueError as cause:
            raise UserError(
                "TRL does not know how this chat template writes tool calls and could not read them: use the template "
                "of a family that it knows (Qwen3, Qwen2.5, Llama 3, GLM-4, gpt-oss, …), or save the tokenizer with a "
                "response_template"
            ) from cause


def _imported(path: str, what: str) -> Callable:
    if ":" not in path:
        raise UserError(f"{what}: {path!r} is no dotted path; write it as package.module:function")
    return import_function(path, what)
