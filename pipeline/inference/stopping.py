"""Where a completion ends. Every sampler (generate, assess, rollouts, rejection sampling, vLLM) asks `stop_token_ids`.

Three places hold end tokens: the tokenizer (its eos), the model's ``generation_config`` (one id or a list), and the
chat template, whose end of turn is often neither: plain ChatML over a base ends a turn with ``<|im_end|>`` while the
base's eos is ``<|endoftext|>``. `declare_stops` writes the union into ``generation_config``, from where ``generate()``
of transformers and vLLM take it.

`Stops` are the further rules that a user may ask for: strings, and the paper's dynamic stops. They read the raw
logits z, before temperature and filters, so that a rule means the same at every tau:

    eos_probability    P(end tokens) >= q: the completion ends with the likeliest end token. For one end token and
                       q > 1/2 that is what greedy decoding draws.
    high_entropy       H(pi) / log V >= h over m steps in a row; low_entropy: <= h.
    low_variance       Var_v z_v <= V times its median over the completion's steps so far, over m steps in a row. A
                       low variance is a flat distribution; its scale is that of W_out, so the threshold is relative.
    repetition         the last p r tokens are r times the same p tokens, for a p <= P.

The token of the step at which a rule fires belongs to the completion.
"""

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import NamedTuple

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import TextStreamer

from pipeline.model.dialogue_tokens import closing_token
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import is_dialogue

# The rules over several steps, by the flag of generate.py.
FLAGS = {"low_entropy": "stop_low_entropy", "high_entropy": "stop_entropy", "low_variance": "stop_variance"}
# The reasons of a completion that said what it had to say; the others cut it off.
COMPLETE = ("eos", "stop_string", "eos_probability")


@dataclass(frozen=True)
class Stops:
    """When a completion ends before its end token and its limit; see the module's docstring.

    Attributes:
        strings: it ends before the first of these (`cut_at`); a special token may be one.
        eos_probability: q.
        low_entropy, high_entropy: (h, m).
        low_variance: (V, m).
        repetition: (P, r).
    """

    strings: tuple[str, ...] = ()
    eos_probability: float | None = None
    low_entropy: tuple[float, int] | None = None
    high_entropy: tuple[float, int] | None = None
    low_variance: tuple[float, int] | None = None
    repetition: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        """Raises UserError where a rule is out of range."""
        if "" in self.strings:
            raise UserError("stop: an empty string would end every completion at once; leave it out")
        q = self.eos_probability
        if q is not None and not 0 < q <= 1:
            raise UserError(f"stop_eos_probability is {q}: give a probability above 0 and at most 1")
        for name, flag in FLAGS.items():
            threshold, steps = getattr(self, name) or (0.5, 1)
            if not 0 <= threshold <= 1 or steps < 1:
                raise UserError(f"{flag} is {threshold:g} {steps}: give a share from 0 to 1 and 1 or more steps")
        longest, times = self.repetition or (1, 2)
        if longest < 1 or times < 2:
            raise UserError(
                f"stop_repetition is {longest} {times}: give a longest period of 1 token or more and 2 or more times"
            )

    @property
    def reads_logits(self) -> bool:
        """Whether a rule needs the `signals` of each step."""
        return any(getattr(self, f.name) is not None for f in fields(self) if f.name not in ("strings", "repetition"))


NO_STOPS = Stops()


class Signals(NamedTuple):
    """What the rules read of one row's raw logits at one step."""

    eos_probability: float
    entropy: float  # H / log V, in [0, 1]
    variance: float


def signals(logits: torch.Tensor, end_ids: Sequence[int]) -> list[Signals]:
    """The signals of each row of raw logits (B, V)."""
    z = logits.double()
    log_p = z.log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * log_p.clamp(min=-1e30)).sum(-1) / math.log(z.size(-1))
    ending = p[:, list(end_ids)].sum(-1)
    columns = (ending, entropy, z.var(-1, correction=0))
    return [Signals(*row) for row in zip(*(column.tolist() for column in columns))]


class Watch:
    """The rules' memory of one completion."""

    def __init__(self, stops: Stops):
        self.stops = stops
        self.streaks = dict.fromkeys(FLAGS, 0)
        self.variances: list[float] = []  # ascending

    def reason(self, token_ids: Sequence[int], seen: Signals | None) -> str | None:
        """Why the completion ends with the last of its tokens, or None; called once per token.

        Args:
            token_ids: of the completion so far.
            seen: of the logits that the last token was drawn from; None where no rule reads them.
        """
        stops = self.stops
        if stops.repetition and repeats(token_ids, *stops.repetition):
            return "repetition"
        if seen is None:
            return None
        bisect.insort(self.variances, seen.variance)
        low_entropy, high_entropy = stops.low_entropy or (-1.0, 1), stops.high_entropy or (2.0, 1)
        share, steps = stops.low_variance or (-1.0, 1)
        holds = {
            "low_entropy": (seen.entropy <= low_entropy[0], low_entropy[1]),
            "high_entropy": (seen.entropy >= high_entropy[0], high_entropy[1]),
            "low_variance": (seen.variance <= share * median(self.variances), steps),
        }
        for name, (true, _) in holds.items():
            self.streaks[name] = self.streaks[name] + 1 if true else 0
        return next((name for name, (_, needed) in holds.items() if self.streaks[name] >= needed), None)


def repeats(token_ids: Sequence[int], longest: int, times: int) -> bool:
    """Whether the tokens end with some p of them, p <= ``longest``, ``times`` times in a row."""
    for period in range(1, min(longest, len(token_ids) // times) + 1):
        tail = list(token_ids[-period * times :])
        if tail == tail[:period] * times:
            return True
    return False


def cut_at(text: str, strings: Sequence[str]) -> str | None:
    """The text up to the first of the strings, or None where it has none of them.

    White space at its start is not searched: a base model often begins its answer with the line break that ends it.
    """
    start = len(text) - len(text.lstrip())
    places = [place for word in strings if (place := text.find(word, start)) >= 0]
    return text[: min(places)] if places else None


def stop_tail(strings: Sequence[str]) -> int:
    """How many tokens at the end of a completion hold any of the strings that its last token completed: a token has
    at least a byte, special tokens aside; four more, for a tokenizer may strip what a text begins with."""
    return max(len(word.encode()) for word in strings) + 4 if strings else 0


class StoppedTextStreamer(TextStreamer):
    """transformers' streamer, which prints no stop string and nothing that may become one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str] = ()):
        super().__init__(tokenizer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.strings, self.text, self.printed = tuple(strings), "", 0

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print what is certain of the text so far; at the end all of it, and a line break."""
        self.text += text
        cut = cut_at(self.text, self.strings)
        held = max((len(word) for word in self.strings), default=1) - 1
        end = len(cut) if cut is not None else len(self.text) - (0 if stream_end else held)
        if end > self.printed:
            super().on_finalized_text(self.text[self.printed : end])
            self.printed = end
        if stream_end:
            super().on_finalized_text("", stream_end=True)
            self.text, self.printed = "", 0


def stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, chat: bool) -> list[int]:
    """Ids at which a completion stops, sorted.

    The tokenizer's eos, the eos ids of the model's generation config (many chat models list several), and, for chat
    prompts, the token with which the chat template closes an assistant turn.
    """
    listed = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(listed if isinstance(listed, list | tuple) else [listed])}
    if chat and tokenizer.chat_template:
        ids.add(closing_token(tokenizer, tokenizer.get_chat_template()))
    ids.discard(None)
    return sorted(ids)


def declare_stops(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, row: Mapping[str, object]) -> list[int]:
    """Write the stop ids of a model that trains on rows like this one into its ``generation_config``; return them.

    A dialogue (messages in any column) adds the template's end of turn, so that the saved model stops there under
    any ``generate()``.
    """
    ids = stop_token_ids(
        model,
        tokenizer,
        chat=any(is_dialogue(row.get(name)) for name in ("messages", "prompt", "completion", "chosen")),
    )
    model.generation_config.eos_token_id = ids[0] if len(ids) == 1 else ids
    model.generation_config._from_model_config = False  # else it may be rebuilt from the model's config on loading
    return ids
