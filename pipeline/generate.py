"""Generation: draw x_{t+1} from softmax((W_out s_t + b_out) / tau), token by token, until EOS or a limit.  eq. (10)

    python pipeline/generate.py --model_name_or_path runs/quickstart/grpo --prompt "What is 17+25?"
    python pipeline/generate.py --model_name_or_path runs/quickstart/grpo --chat

With --prompt one completion per prompt is printed as it is drawn; with --chat a conversation continues in the terminal
until an empty line. A prompt is put into the model's chat template, if it has one; --raw skips that. An answer
ends at the first end token of tokenizer, generation config or template (pipeline/inference/stopping.py), or at
max_new_tokens. Sampling is that of assess.py: the same seed gives the same answers.
"""

import itertools
import sys
from dataclasses import dataclass, field

from pipeline.runtime.entry import entry
from pipeline.runtime.messages import Message, assistant_turn, user_text, user_turn


@dataclass
class GenerateArguments:
    """The model, the prompts, and how tokens are sampled."""

    model_name_or_path: str = field(metadata={"help": "Hub id, model folder or adapter folder."})
    prompt: list[str] | None = field(default=None, metadata={"help": "One or more prompts, each answered on its own."})
    chat: bool = field(default=False, metadata={"help": "Chat in the terminal; an empty line ends it."})
    raw: bool = field(
        default=False, metadata={"help": "Give the prompt to the model as it is, without the chat template."}
    )
    system: str | None = field(default=None, metadata={"help": "System message at the start of the conversation."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest answer, in tokens."})
    temperature: float = field(
        default=0.0, metadata={"help": "Sampling temperature tau; 0 always takes the most likely token."}
    )
    top_p: float = field(
        default=1.0, metadata={"help": "Sample from the smallest set of tokens with this total probability."}
    )
    top_k: int = field(default=0, metadata={"help": "Sample from this many of the most likely tokens; 0 means all."})
    seed: int = field(default=42, metadata={"help": "Random seed of the samples."})
    dtype: str = field(
        default="float32",
        metadata={"help": "dtype of the model weights.", "choices": ["float32", "bfloat16", "float16"]},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Allow code from the model's repository to run."})


def main(argv: list[str] | None = None) -> None:
    """Run the stage; see the module's docstring."""
    from pipeline.runtime.arguments import parse
    from pipeline.runtime.checkpoints import require_model_folder
    from pipeline.runtime.errors import UserError

    (args,) = parse(argv, GenerateArguments, prog="generate.py")
    if bool(args.prompt) == args.chat:
        raise UserError("give either --prompt (one or more) or --chat")
    require_model_folder(args.model_name_or_path)
    from transformers import TextStreamer

    from pipeline.inference.decoding import check_options, sample
    from pipeline.model.loading import load_model, load_tokenizer

    sampling = {name: getattr(args, name) for name in ("max_new_tokens", "temperature", "top_p", "top_k")}
    check_options(n=1, **sampling)
    tokenizer = load_tokenizer(args.model_name_or_path, args.trust_remote_code)
    plain = args.raw or not tokenizer.chat_template
    if plain and args.system:
        raise UserError("--system needs a chat template: this model has none, or --raw skips it")
    model = load_model(args.model_name_or_path, dtype=args.dtype, trust_remote_code=args.trust_remote_code)

    seeds = itertools.count(args.seed)  # each answer is a draw of its own

    def answer(messages: list[Message]) -> str:
        """Stream one answer to the terminal and return it."""
        prompt = user_text(messages) if plain else messages
        streamer = TextStreamer(tokenizer, skip_special_tokens=True)
        [[completion]] = sample(model, tokenizer, [prompt], **sampling, seed=next(seeds), streamer=streamer)
        return completion.text

    start = [{"role": "system", "content": args.system}] if args.system else []
    for prompt in args.prompt or []:
        print(f"> {prompt}")
        answer([*start, *user_turn(prompt)])
    messages = start
    while args.chat:
        print("> ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        messages += user_turn(line)
        messages += assistant_turn(answer(messages))


if __name__ == "__main__":
    entry(main, GenerateArguments, __doc__, trains=False)
