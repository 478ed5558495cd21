"""Completions for whoever sits at the terminal: streamed, listed or traced, one prompt or a conversation."""

import itertools
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pipeline.data.images import opened, see
from pipeline.data.rows import RowError
from pipeline.inference.decoding import Completion, sample
from pipeline.inference.positions import recent_turns
from pipeline.inference.stopping import StoppedTextStreamer
from pipeline.inference.trace import step_table
from pipeline.model.vision import processor_of, with_images
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import Json
from pipeline.runtime.messages import Turn, assistant_turn, begun, is_dialogue, user_text, user_turn


class Speaker(NamedTuple):
    """Who answers, and how.

    Attributes:
        options: of `decoding.sample`, ``n``, ``stops`` and ``crop`` among them.
        system: the message with which every dialogue begins, where it has none of its own.
        plain: prompts are text as it is, without a chat template.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    options: Json
    system: str | None
    plain: bool


def turn_of(prompt: Turn, system: str | None, plain: bool) -> Turn:
    """A prompt as the model gets it: the user's words as they are, or a dialogue with a system message."""
    return user_text(prompt) if plain else begun(prompt if is_dialogue(prompt) else user_turn(prompt), system)


def seen_turn(turn: Turn, row: Json, tokenizer: PreTrainedTokenizerBase, place: str | None = None) -> Turn:
    """A prompt as the model gets it, with the images of its row in their places.

    Args:
        place: the file that the row is stored in, by whose folder paths of images are read.

    Raises:
        UserError: an image that cannot be read, images and places that do not agree, or a model that reads text only.
    """
    where = place or "--image"
    try:
        found = see({"prompt": turn}, row, "prompt", place or "")
    except RowError as error:
        raise UserError(f"{where}: {error}") from None
    if not found.get("images"):
        return turn
    if processor_of(tokenizer) is None:
        raise UserError(f"{where}: the prompt has an image, but the model reads text only: name a model that sees")
    return with_images(found["prompt"], opened(found["images"]))


def answer(speaker: Speaker, prompt: Turn, seed: int, *, trace: bool = False) -> Completion:
    """Print the completions of a prompt, a single one as it is drawn, and return the first.

    Args:
        trace: print a table of each step of the first completion instead of its text as it is drawn.
    """
    shown: Json = {}
    if trace:
        count = itertools.count(1)
        shown["trace"] = lambda step: print(step_table(speaker.tokenizer, next(count), step), flush=True)
    elif speaker.options["n"] == 1:
        shown["streamer"] = StoppedTextStreamer(speaker.tokenizer, speaker.options["stops"].strings)
    [group] = sample(speaker.model, speaker.tokenizer, [prompt], **speaker.options, seed=[seed], **shown)
    for number, one in enumerate(group, 1):
        if "streamer" not in shown:
            print(f"[{number}] {one.text}" if len(group) > 1 else one.text, flush=True)
        if one.finish_reason not in ("eos", "stop_string"):
            note(f"ended by {one.finish_reason}")
    say_cropped([group])
    return group[0]


def converse(speaker: Speaker, lines: Callable[[], str], seed: int, room: int | None, *, trace: bool = False) -> None:
    """A conversation: each line of the user is answered after all that was said; an empty one ends it.

    Args:
        seed: of the first answer; each next one adds 1.
        room: tokens that a prompt may have; the oldest turns of a longer one are forgotten. None: no limit.
    """
    messages = begun([], speaker.system)
    for number in itertools.count(seed):
        print("> ", end="", flush=True)
        line = lines().strip()
        if not line:
            return
        messages = [*messages, *user_turn(line)]
        if room is not None and not speaker.plain:
            messages, lost = recent_turns(speaker.tokenizer, messages, room)
            if lost:
                note(f"forgotten: the {lost} oldest messages, which no longer fit into the model's positions")
        said = answer(speaker, turn_of(messages, speaker.system, speaker.plain), number, trace=trace)
        messages = [*messages, *assistant_turn(said.text)]


def note(line: str) -> None:
    """Say something that is no part of an answer."""
    print(f"generate: {line}", file=sys.stderr, flush=True)


def say_cropped(drawn: Sequence[Sequence[Completion]]) -> None:
    """How many completions lost the beginning of their context, if any did."""
    lost = [one.cropped for group in drawn for one in group if one.cropped]
    if lost:
        total = sum(map(len, drawn))
        note(f"context cropped: {len(lost)} of {total} completions lost up to {max(lost)} tokens of its beginning")
