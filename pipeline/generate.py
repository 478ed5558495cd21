"""Generation: draw x_{t+1} from softmax((W_out s_t + b_out) / tau), token by token, until EOS or a limit.  eq. (10)

    python pipeline/generate.py --model_name_or_path runs/quickstart/grpo --prompt "What is 17+25?"
    python pipeline/generate.py --model_name_or_path runs/quickstart/grpo --chat

With --prompt one completion a prompt is printed as it comes; with --chat a conversation goes on in the terminal until
an empty line. A model with a chat template is spoken to through it; --raw gives it the text as it is.
"""

import sys
from dataclasses import dataclass, field

from pipeline.runtime.entry import entry


@dataclass
class GenerateArguments:
    """How a trained model is asked."""

    model_name_or_path: str = field(metadata={"help": "Hub id, model folder or adapter folder."})
    prompt: list[str] | None = field(default=None, metadata={"help": "One or more prompts."})
    chat: bool = field(default=False, metadata={"help": "Talk in the terminal; an empty line ends it."})
    raw: bool = field(default=False, metadata={"help": "Do not put the prompt into the chat template."})
    system: str | None = field(default=None, metadata={"help": "System message of the chat."})
    max_new_tokens: int = field(default=256, metadata={"help": "Limit for one answer."})
    temperature: float = field(default=0.0, metadata={"help": "tau; 0 always takes the most likely token."})
    top_p: float = field(default=1.0, metadata={"help": "Sample from the smallest set with this mass."})
    top_k: int = field(default=0, metadata={"help": "Sample from this many most likely tokens; 0 for all."})
    seed: int = field(default=42, metadata={"help": "Random seed."})
    dtype: str = field(
        default="float32", metadata={"help": "Weights' precision.", "choices": ["float32", "bfloat16", "float16"]}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the model repository's own code."})


def main(argv: list[str] | None = None) -> None:
    """Run the stage; see the module's docstring."""
    from pipeline.runtime.arguments import parse
    from pipeline.runtime.errors import UserError

    (args,) = parse(argv, GenerateArguments, prog="generate.py")
    if bool(args.prompt) == args.chat:
        raise UserError("give either --prompt (one or more) or --chat")
    if args.temperature < 0:
        raise UserError(f"--temperature is {args.temperature}: it must be 0 (greedy) or positive")
    from transformers import TextStreamer, set_seed

    from pipeline.model.loading import load_model, load_tokenizer

    set_seed(args.seed)
    tokenizer = load_tokenizer(args.model_name_or_path, args.trust_remote_code)
    model = load_model(args.model_name_or_path, dtype=args.dtype, trust_remote_code=args.trust_remote_code)
    sampling = {"do_sample": False}
    if args.temperature > 0:
        sampling = {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}

    def answer(messages: list[dict[str, str]]) -> str:
        """Stream one answer to the terminal and return it."""
        if args.raw or tokenizer.chat_template is None:
            inputs = tokenizer(messages[-1]["content"], return_tensors="pt")
        else:
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        inputs = inputs.to(model.device)
        output = model.generate(
            **inputs,
            **sampling,
            max_new_tokens=args.max_new_tokens,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        )
        return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    start = [{"role": "system", "content": args.system}] if args.system else []
    for prompt in args.prompt or []:
        print(f"> {prompt}")
        answer([*start, {"role": "user", "content": prompt}])
    messages = start
    while args.chat:
        print("> ", end="", flush=True)
        line = sys.stdin.readline().strip()
        if not line:
            return
        messages.append({"role": "user", "content": line})
        messages.append({"role": "assistant", "content": answer(messages)})


if __name__ == "__main__":
    entry(main, GenerateArguments, __doc__, trains=False)
