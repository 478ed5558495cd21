"""Prompting strategies (Part 5): how a fixed model is asked, by examples and by a chain of thought.

    y ~ p(y | P, x; theta)          (r_{1:K}, a) ~ p(a, r_{1:K} | P, x; theta)

============== ========================================== ===========================================================
               without a chain of thought                 with one (``cot``)
============== ========================================== ===========================================================
zero-shot      the question                               the question in a template (``Let's think step by step.``)
few-shot       questions with their answers before it     questions with their worked answers before it
============== ========================================== ===========================================================

A worked answer is a ``completion`` with its reasoning, which ends in a marker, ``… #### 42``; the answer alone is the
marker and what follows it. Examples are turns of the dialogue before the question, or text in front of it.
Imports nothing heavy.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import Turn, assistant_turn, content_text, is_dialogue, text_of, user_text, user_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.inference.decoding import Completion

MARKER = "####"
STEP_BY_STEP = "{prompt}\nLet's think step by step."
EXAMPLE_TEMPLATE = "Question: {prompt}\nAnswer: {completion}\n\n"


@dataclass
class PromptingArguments:
    """How prompts are asked: examples in front of them, and a chain of thought."""

    examples: str | None = field(
        default=None,
        metadata={
            "help": "Rows of prompt and completion to draw examples from (file, folder, Hub id, world/<name>; split "
            "train). A row whose prompt is asked is never one."
        },
    )
    shots: int = field(default=3, metadata={"help": "Examples in front of every prompt, drawn by its seed."})
    cot: bool = field(
        default=False,
        metadata={
            "help": "Ask for a chain of thought by --cot_template, and show it in the examples; without, an example "
            "with a #### shows only that and what follows."
        },
    )
    cot_template: str = field(default=STEP_BY_STEP, metadata={"help": "How --cot asks; {prompt} is the question."})
    shots_as: Literal["auto", "text", "turns"] = field(
        default="auto",
        metadata={"help": "Examples as turns of the chat or as text in front of the prompt. auto: turns in a chat."},
    )
    example_template: str = field(
        default=EXAMPLE_TEMPLATE,
        metadata={"help": "How an example is written as text, and the question up to {completion}."},
    )
    think_end_token: str | None = field(
        default=None, metadata={"help": "End of the reasoning: the answer is what comes after it (</think>, ####)."}
    )


class Example(NamedTuple):
    """One demonstration: what is asked, and its complete answer."""

    prompt: str
    completion: str


class Form(NamedTuple):
    """How a question and its examples are written.

    Attributes:
        template: the user's words, with ``{prompt}`` where the question goes.
        turns: examples are turns of the dialogue; else text.
        example_template: an example as text; None: the question is left as it is where no example precedes it.
    """

    template: str = "{prompt}"
    turns: bool = False
    example_template: str = EXAMPLE_TEMPLATE


def check_form(form: Form) -> None:
    """Raises UserError where a template has no place for what it is filled with."""
    if "{prompt}" not in form.template:
        raise UserError(f"template {form.template!r} has no {{prompt}} in it")
    missing = [word for word in ("{prompt}", "{completion}") if word not in form.example_template]
    if missing and not form.turns:
        raise UserError(f"example_template {form.example_template!r} has no {missing[0]} in it")


def direct_answer(completion: str) -> str:
    """The marker and what follows it, without the reasoning before; all of a completion that has no marker."""
    _, marker, answer = completion.rpartition(MARKER)
    return marker + answer if marker else completion


def read_examples(name: str, split: str = "train") -> list[Example]:
    """The rows of a dataset that may be shown.

    Raises:
        UserError: it cannot be read, or its rows have no prompt and completion.
    """
    from pipeline.data.loading import read_source
    from pipeline.data.sources import Source

    rows = read_source(Source(name=name, split=split, role="examples"), "sft", False).rows
    if any("prompt" not in row or "completion" not in row for row in rows):
        raise UserError(f"examples: the rows of {name} have {', '.join(rows[0])}; give a prompt and a completion")
    return [Example(user_text(row["prompt"]), text_of(row["completion"]).strip()) for row in rows]


def draw_examples(
    pool: Sequence[Example], prompts: Sequence[Turn], count: int, seeds: Sequence[int]
) -> list[list[Example]]:
    """``count`` different examples for each prompt, by its seed; fewer of them are the first of more.

    None of them asks what any of the prompts asks (but for case and spaces).

    Raises:
        UserError: there are not that many.
    """
    asked = {_key(user_text(prompt)) for prompt in prompts}
    free = list({_key(e.prompt): e for e in pool if _key(e.prompt) not in asked}.values())
    if len(free) < count:
        raise UserError(
            f"examples: {count} shots need {count} rows that nobody asks; {len(free)} of {len(pool)} are left"
        )
    return [random.Random(f"examples {seed}").sample(free, count) for seed in seeds]


def ask(prompt: Turn, examples: Sequence[Example], form: Form) -> Turn:
    """The prompt as it is asked: its question in the template, with examples in front of it.

    Of a dialogue the last message of the user is the question. Plain text stays text.

    Raises:
        UserError: examples as turns before plain text, or a dialogue without a message of the user.
    """
    check_form(form)
    written = [(form.template.replace("{prompt}", e.prompt), e.completion) for e in examples]
    if not is_dialogue(prompt):
        if form.turns and examples:
            raise UserError("shots_as turns: the prompts are plain text, which has no turns (--as_chat true)")
        return _as_text(form.template.replace("{prompt}", prompt), written, form)
    place = max((i for i, message in enumerate(prompt) if message["role"] == "user"), default=None)
    if place is None:
        raise UserError("a prompt has no message of the user, which examples go in front of")
    content = prompt[place]["content"]
    if isinstance(content, list) and any(isinstance(part, dict) and part.get("type") != "text" for part in content):
        raise UserError("a prompt has an image: examples and a chain of thought are for prompts of text")
    question = form.template.replace("{prompt}", content_text(content))
    shown: Turn = []
    if form.turns:
        shown = [message for x, y in written for message in (*user_turn(x), *assistant_turn(y))]
    else:
        question = _as_text(question, written, form) if written else question
    return [*prompt[:place], *shown, prompt[place] | {"content": question}, *prompt[place + 1 :]]


def with_beginning(prompt: Turn, beginning: str) -> Turn:
    """The prompt with the beginning of an answer, which a model continues."""
    return [*prompt, *assistant_turn(beginning)] if is_dialogue(prompt) else prompt + beginning


def answer_after(tokenizer: "PreTrainedTokenizerBase", completion: "Completion", think_end_token: str | None) -> str:
    """What a completion answers: all of it, or what comes after the last ``think_end_token``; "" where it has none."""
    if think_end_token is None:
        return completion.text
    if think_end_token in tokenizer.all_special_tokens:  # the text is without them
        ids, end = completion.token_ids, tokenizer.convert_tokens_to_ids(think_end_token)
        after = ids[len(ids) - ids[::-1].index(end) :] if end in ids else []
        return tokenizer.decode(after, skip_special_tokens=True)
    return completion.text.rpartition(think_end_token)[2] if think_end_token in completion.text else ""


def with_prompting(prompts: Sequence[Turn], arguments: PromptingArguments, seeds: Sequence[int]) -> list[Turn]:
    """The prompts as ``generate.py`` asks them; unchanged without examples and chain of thought.

    Raises:
        UserError: an option that cannot be, or too few examples.
    """
    if not arguments.examples and not arguments.cot:
        return list(prompts)
    template = arguments.cot_template if arguments.cot else "{prompt}"
    chat = any(map(is_dialogue, prompts))
    form = Form(template, arguments.shots_as == "turns" or (arguments.shots_as == "auto" and chat))
    form = form._replace(example_template=arguments.example_template if arguments.examples else "{prompt}{completion}")
    check_form(form)
    shown: list[list[Example]] = [[] for _ in prompts]
    if arguments.examples:
        if arguments.shots < 1:
            raise UserError(f"shots is {arguments.shots}: give 1 or more, or leave --examples out")
        shown = draw_examples(read_examples(arguments.examples), prompts, arguments.shots, seeds)
    if not arguments.cot:
        shown = [[e._replace(completion=direct_answer(e.completion)) for e in group] for group in shown]
    return [ask(prompt, group, form) for prompt, group in zip(prompts, shown, strict=True)]


def _as_text(question: str, examples: Sequence[tuple[str, str]], form: Form) -> str:
    """Examples and question as one text that the answer continues: no space at its end."""
    filled = [form.example_template.replace("{prompt}", x).replace("{completion}", y) for x, y in examples]
    before = form.example_template.partition("{completion}")[0].rstrip(" ")
    return "".join(filled) + before.replace("{prompt}", question)


def _key(prompt: str) -> str:
    return " ".join(prompt.casefold().split())
