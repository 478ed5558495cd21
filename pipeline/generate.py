"""Generation: draw x_{t+1} from softmax((W_out s_t + b_out) / tau), token by token, until EOS or a limit.  eq. (10)

    python pipeline/generate.py --model_name_or_path runs/quickstart/grpo --prompt "What is 17+25?"
    python pipeline/generate.py --model_name_or_path runs/quickstart/grpo --chat
    python pipeline/generate.py --model_name_or_path runs/quickstart/grpo --prompt_file rows.jsonl \\
        --output_file out.jsonl --n 4 --temperature 1

With --prompt or --prompt_file each prompt is completed, in the terminal or, with --output_file, in a file: the same
rows with `completions` and `finish_reasons`, lists of --n. A killed run continues with the rows that are missing. With
--chat a conversation continues in the terminal until an empty line; turns that no longer fit are forgotten, the oldest
first. --image shows a prompt its images, the column image or images of a file too. A prompt is a user's turn, written
by the chat template, where the model was trained on chats (--as_chat auto); dialogues begin with the system message
that it was trained with, if --system names no other. An answer ends at the first end token of tokenizer, generation
config or template, at a --stop string, by one of the --stop_ rules on the raw logits (pipeline/inference/stopping.py),
or at max_new_tokens. A prompt is sampled by the `seed` of its row, else by --seed plus its place, so it gets the same
tokens alone, in a batch, in a stream or in a file. --retrieve puts passages of an index in front of every prompt;
their ids are printed, or in the file as `retrieved_ids` beside `retrieved_contexts`. --examples puts --shots worked or
bare examples before each prompt, --cot asks for a chain of thought, and --think_end_token parts it from the answer,
which is printed, or in the file as `answers`. --constitution turns answers
into preference pairs by a critic (docs/sycophancy.md).
"""

import functools
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.inference.prompting import PromptingArguments
from pipeline.inference.retrieval.arguments import RetrievalArguments
from pipeline.runtime.entry import entry
from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import Turn, user_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.inference.answers import Speaker
    from pipeline.inference.decoding import Completion
    from pipeline.inference.stopping import Stops
    from pipeline.model.chat import Decision
    from pipeline.runtime.files import Json


@dataclass
class GenerateArguments:
    """The model, the prompts, and how tokens are sampled."""

    model_name_or_path: str = field(metadata={"help": "Hub id, model folder or adapter folder."})
    prompt: list[str] | None = field(default=None, metadata={"help": "One or more prompts, each answered on its own."})
    image: list[str] | None = field(
        default=None,
        metadata={"help": "Image files of --prompt: all of one prompt, or one for each of several prompts."},
    )
    prompt_file: str | None = field(
        default=None,
        metadata={
            "help": "File of rows with a `prompt`, text or messages, or with the columns of a public dataset "
            "(docs/new_dataset.md); of a .txt file each line is a prompt."
        },
    )
    dataset_map: str = field(default="", metadata={"help": "Rename columns of the file: old=new,…"})
    output_file: str | None = field(default=None, metadata={"help": "JSONL file for the rows with completions."})
    force: bool = field(default=False, metadata={"help": "Rename an existing output file and start again."})
    chat: bool = field(default=False, metadata={"help": "Chat in the terminal; an empty line ends it."})
    as_chat: Literal["auto", "true", "false"] = field(
        default="auto",
        metadata={
            "help": "Whether a prompt is a turn of a chat, written by the chat template, or text as it is. auto: as "
            "the model was trained."
        },
    )
    system: str | None = field(
        default=None,
        metadata={
            "help": "System message at the start of the conversation. Default: the one of the training; '' for none."
        },
    )
    n: int = field(default=1, metadata={"help": "Number of completions per prompt."})
    max_new_tokens: int = field(default=256, metadata={"help": "Longest answer, in tokens."})
    temperature: float = field(
        default=0.0, metadata={"help": "Sampling temperature tau; 0 always takes the most likely token."}
    )
    top_k: int = field(default=0, metadata={"help": "Sample from this many of the most likely tokens; 0 means all."})
    top_p: float = field(
        default=1.0, metadata={"help": "Sample from the smallest set of tokens with this total probability."}
    )
    min_p: float = field(
        default=0.0, metadata={"help": "Sample from tokens at least this many times as likely as the likeliest."}
    )
    repetition_penalty: float = field(
        default=1.0,
        metadata={"help": "Divide positive logits of tokens that occurred by this; multiply negative ones."},
    )
    seed: int = field(default=42, metadata={"help": "Random seed of the first prompt; each next one adds 1."})
    stop: list[str] | None = field(
        default=None, metadata={"help": r"End an answer before the first of these strings; \n is a line break."}
    )
    stop_eos_probability: float | None = field(
        default=None, metadata={"help": "Q: end an answer where its end token has this probability."}
    )
    stop_entropy: list[float] | None = field(
        default=None, metadata={"help": "H M: end an answer after M steps of entropy above H, in units of log V."}
    )
    stop_low_entropy: list[float] | None = field(
        default=None, metadata={"help": "H M: end an answer after M steps of entropy below H, in units of log V."}
    )
    stop_variance: list[float] | None = field(
        default=None, metadata={"help": "V M: end after M steps of logit variance below V times its running median."}
    )
    stop_repetition: list[int] | None = field(
        default=None, metadata={"help": "P R: end an answer whose last tokens are R times the same P or fewer."}
    )
    crop: bool = field(
        default=False,
        metadata={"help": "Cut a context longer than the model's positions to its last tokens; else it is an error."},
    )
    trace: bool = field(default=False, metadata={"help": "Print each step's logits, probabilities and entropy."})
    constitution: str | None = field(
        default=None,
        metadata={
            "help": "File of principles, one per line: --output_file then gets preference pairs, the critic's "
            "revision of an answer against the answer, for dpo.py."
        },
    )
    critic: str | None = field(
        default=None,
        metadata={
            "help": "Who criticises and revises: Hub id or folder of a model, or package.module:function. Default: "
            "the model itself."
        },
    )
    batch_size: int = field(default=64, metadata={"help": "Completions decoded together for an output file."})
    dtype: str = field(
        default="float32",
        metadata={"help": "dtype of the model weights.", "choices": ["float32", "bfloat16", "float16"]},
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Allow code from the model's repository to run."})


SAMPLING = ("n", "max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "crop")


def main(argv: list[str] | None = None) -> None:
    """Run the stage; see the module's docstring."""
    args, retrieval, asking, rows = read_arguments(argv)
    name, remote = args.model_name_or_path, args.trust_remote_code
    from pipeline.inference.answers import Speaker, answer, converse, note, seen_turn, turn_of
    from pipeline.inference.decoding import check_lengths
    from pipeline.inference.filters import check_options
    from pipeline.inference.prompting import answer_after, with_prompting
    from pipeline.inference.retrieval.context import context_limit, with_retrieved
    from pipeline.model.chat import sentence
    from pipeline.model.loading import load_tokenizer, model_config, position_limit, require_language_model
    from pipeline.model.tokens import encode_prompts

    options = {key: getattr(args, key) for key in SAMPLING} | {"stops": stop_rules(args)}
    check_options(batch_size=args.batch_size, **{key: options[key] for key in SAMPLING if key != "crop"})
    require_language_model(name, remote)
    tokenizer = load_tokenizer(name, remote)
    decision = decision_of(args, tokenizer)
    plain, system = not decision.as_chat, decision.system
    prompts = [seen_turn(turn_of(row["prompt"], system, plain), row, tokenizer, args.prompt_file) for row in rows]
    seeds = [args.seed + place if row.get("seed") is None else row["seed"] for place, row in enumerate(rows)]
    config = model_config(name, remote)
    limit = None if args.crop else position_limit(config)
    room = context_limit(config, args.max_new_tokens)
    prompts = with_prompting(prompts, asking, seeds)
    rows, prompts, searched = with_retrieved(rows, prompts, retrieval, tokenizer, room)
    if prompts:  # all of them, before the first is answered
        check_lengths(limit, encode_prompts(tokenizer, prompts), args.max_new_tokens)
    note(f"{sentence(decision)}{f'; system: {system!r}' if system else ''}")

    @functools.cache
    def speaker() -> "Speaker":
        from pipeline.model.loading import load_for_use

        model = load_for_use(name, dtype=args.dtype, trust_remote_code=remote)
        return Speaker(model, tokenizer, options, system, plain)

    if args.constitution:
        write_revised(args, rows, prompts, speaker())
    elif args.output_file:
        settings = {"as_chat": not plain, "system": system, **options, "stops": asdict(options["stops"])}
        if searched:
            settings["retrieval"] = {**asdict(retrieval), "index": searched["fingerprint"]}
        if asking != PromptingArguments():
            settings["prompting"] = asdict(asking)
        write_completions(args, rows, prompts, seeds, speaker, settings, asking.think_end_token)
    elif args.chat:
        left = None if limit is None else limit - args.max_new_tokens
        converse(speaker(), sys.stdin.readline, args.seed, left, trace=args.trace)
    else:
        for row, prompt, seed in zip(rows, prompts, seeds, strict=True):
            print(f"> {user_text(row['prompt'])}")
            first = answer(speaker(), prompt, seed, trace=args.trace)
            if asking.think_end_token:
                print(f"[answer: {answer_after(tokenizer, first, asking.think_end_token).strip()}]", flush=True)
            if searched:
                print(f"[passages: {', '.join(row['retrieved_ids']) or 'none found'}]", flush=True)


def given_rows(args: GenerateArguments) -> "list[Json]":
    """The prompts of the command line as rows, with the images that belong to them."""
    rows: list[Json] = [{"prompt": prompt} for prompt in args.prompt or []]
    for place, image in enumerate(args.image or []):
        rows[place if len(rows) > 1 else 0].setdefault("images", []).append(image)
    return rows


def decision_of(args: GenerateArguments, tokenizer: "PreTrainedTokenizerBase") -> "Decision":
    """Whether prompts are turns of a chat, and with which system message: that of --system, else of the training.

    Raises:
        UserError: there is --system and no chat.
    """
    from pipeline.model.chat import decide, sentence

    decision = decide(args.as_chat, tokenizer, args.model_name_or_path)
    if args.system and not decision.as_chat:
        raise UserError(f"--system needs a chat: {sentence(decision)}")
    return decision if args.system is None else decision._replace(system=args.system)


def write_completions(
    args: GenerateArguments,
    rows: "list[Json]",
    prompts: list[Turn],
    seeds: list[int],
    speaker: "Callable[[], Speaker]",
    settings: "Json",
    think_end_token: str | None,
) -> None:
    """Complete every row into the output file; rows that an earlier start wrote by the same settings are kept.

    Args:
        args: the arguments.
        rows: as they are written, with the completions.
        prompts: of the rows, as the model gets them.
        seeds: of the rows.
        speaker: loads the model, once there is a row to complete.
        settings: what was settled of chat, sampling and retrieval; model and prompts are added.
        think_end_token: end of the reasoning, for the column ``answers``.
    """
    from pipeline.inference.answers import say_cropped
    from pipeline.inference.batch_files import complete_file
    from pipeline.inference.decoding import sample
    from pipeline.inference.prompting import answer_after
    from pipeline.runtime.files import file_sha256
    from pipeline.runtime.run_json import parent_of

    file = args.prompt_file
    settings = {
        "model": parent_of(args.model_name_or_path), "dtype": args.dtype, "seed": args.seed,
        "prompts": file_sha256(Path(file)) if file else args.prompt, "dataset_map": args.dataset_map, **settings,
    }  # fmt: skip

    def draw(numbers: range) -> "list[list[Completion]]":
        model, tokenizer, options, *_ = speaker()
        chosen, own = [prompts[i] for i in numbers], [seeds[i] for i in numbers]
        return sample(model, tokenizer, chosen, **options, seed=own, batch_size=args.batch_size)

    def answer_of(one: "Completion") -> str:
        return answer_after(speaker().tokenizer, one, think_end_token)

    drawn = complete_file(
        rows, Path(args.output_file), settings, draw, chunk=max(1, args.batch_size // args.n), force=args.force,
        answer_of=answer_of if think_end_token else None,
    )  # fmt: skip
    say_cropped(drawn)
    print(f"{len(rows)} rows: {args.output_file}")


def read_arguments(
    argv: list[str] | None,
) -> "tuple[GenerateArguments, RetrievalArguments, PromptingArguments, list[Json]]":
    """The arguments and the rows of prompts, checked before torch is imported.

    Raises:
        UserError: something is missing, unknown or not there.
    """
    from pipeline.inference.batch_files import read_prompts
    from pipeline.runtime.arguments import parse
    from pipeline.runtime.checkpoints import require_model_folder
    from pipeline.runtime.given import read_given
    from pipeline.runtime.needs import require_needs

    given = read_given(argv)
    if "help_all" not in given:
        require_needs("generate", given | {"prompt": "prompt" in given})
    args, retrieval, asking = parse(
        argv, GenerateArguments, RetrievalArguments, PromptingArguments, prog="generate.py"
    )
    check(args, retrieval, asking)
    require_model_folder(args.model_name_or_path)
    if args.prompt_file:
        return args, retrieval, asking, read_prompts(Path(args.prompt_file), args.dataset_map)
    return args, retrieval, asking, given_rows(args)


def write_revised(args: GenerateArguments, rows: "list[Json]", prompts: list[Turn], speaker: "Speaker") -> None:
    """Write the preference pairs that a critic makes of the model's answers into the output file.

    Raises:
        UserError: the file is there already, or the critic cannot be used.
    """
    from pipeline.inference.constitution import answers_of, get_critic, read_principles, revised_pairs
    from pipeline.runtime.files import write_rows

    output = Path(args.output_file)
    if output.exists() and not args.force:
        raise UserError(f"output_file: {output} exists; name another, or --force replaces it")
    principles = read_principles(Path(args.constitution))
    sampling = {**speaker.options, "n": 1, "seed": args.seed, "batch_size": args.batch_size}
    own = answers_of(speaker.model, speaker.tokenizer, sampling)
    name = args.critic or args.model_name_or_path
    loading = {"dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
    critic = get_critic(args.critic, own, sampling, loading)
    pairs = revised_pairs(prompts, [row["prompt"] for row in rows], principles, critic, own, name)
    write_rows(output, pairs)
    print(f"{len(pairs)} pairs of {len(rows)} prompts: {output}")


def check(args: GenerateArguments, retrieval: RetrievalArguments, asking: PromptingArguments) -> None:
    """What the arguments alone can tell.

    Raises:
        UserError: not exactly one source of prompts, or flags that exclude each other.
    """
    if bool(args.prompt) + bool(args.prompt_file) + args.chat != 1:
        raise UserError("give either --prompt (one or more), or --prompt_file, or --chat")
    if args.image and (not args.prompt or len(args.prompt) not in (1, len(args.image))):
        raise UserError("--image goes with --prompt: all images with one prompt, or one image for each prompt")
    given = {"retrieve": retrieval.retrieve, "examples": asking.examples, "cot": asking.cot}
    if args.chat and (named := next((name for name, value in given.items() if value), None)):
        raise UserError(f"--{named} does not go with --chat: leave one of them out")
    if args.output_file and (args.chat or args.trace):
        raise UserError(f"--output_file does not go with --{'chat' if args.chat else 'trace'}: leave one of them out")
    if (args.constitution or args.critic) and not (args.constitution and args.output_file):
        raise UserError("--critic goes with --constitution, and --constitution needs --output_file for its pairs")
    if args.constitution and args.n > 1:
        raise UserError("--constitution revises one answer per prompt: leave --n out")
    if args.n > 1 and (args.temperature == 0 or args.chat):
        raise UserError(
            "--n above 1 does not go with --chat: leave one of them out"
            if args.chat
            else "n above 1 with temperature 0 gives the same completion n times: set a temperature"
        )


def stop_rules(args: GenerateArguments) -> "Stops":
    """The stop rules of the flags.

    Raises:
        UserError: a flag without its two values, or out of range.
    """
    from pipeline.inference.stopping import FLAGS, Stops

    pairs = {"repetition": "stop_repetition", **FLAGS}
    given = {name: getattr(args, flag) for name, flag in pairs.items() if getattr(args, flag) is not None}
    for name, values in given.items():
        if len(values) != 2 or values[1] != int(values[1]):
            raise UserError(f"{pairs[name]} is {values}: give two numbers, a threshold and a whole number of steps")
    strings = tuple(word.replace("\\n", "\n").replace("\\t", "\t") for word in args.stop or [])
    rules = {name: (values[0], int(values[1])) for name, values in given.items()}
    return Stops(strings=strings, eos_probability=args.stop_eos_probability, **rules)


if __name__ == "__main__":
    flags = {f.name: f.metadata["help"] for kind in (RetrievalArguments, PromptingArguments) for f in fields(kind)}
    entry(main, GenerateArguments, __doc__, flags=flags, trains=False)
