"""How a stage file becomes a command: help without heavy imports, one ``error:`` line, exit codes."""

import ctypes
import dataclasses
import logging
import os
import sys
import textwrap
import typing
import warnings
from collections.abc import Callable

from pipeline.runtime.errors import DivergedError, PushError, UserError

# The flags people use, with TRL's and Transformers' own names. A test checks that every training stage has each one.
COMMON_FLAGS = {
    "config": "YAML file with any of these fields; a flag beats YAML",
    "output_dir": "where weights or adapter, tokenizer, card and run.json go",
    "model_name_or_path": "Hub id, full-model folder or adapter folder",
    "adapter_mode": "what happens to an adapter that is the start: continue | merge | stack",
    "dataset_name": "Hub id, local jsonl/parquet/csv file or folder, or world/<name>",
    "dataset_map": "rename columns: old=new,…",
    "eval_dataset_name": "held-out data; without it a seeded share of the training data is set aside",
    "use_peft": "train a LoRA adapter instead of all weights",
    "lora_r": "rank of the adapter",
    "lora_alpha": "scale of the adapter (alpha / r)",
    "lora_target_modules": "modules to adapt, or all-linear",
    "load_in_4bit": "QLoRA: NF4 base weights",
    "learning_rate": "peak learning rate",
    "num_train_epochs": "passes over the data",
    "max_steps": "stop after this many steps (beats num_train_epochs)",
    "per_device_train_batch_size": "rows a device and step",
    "gradient_accumulation_steps": "steps before an update",
    "bf16": "mixed precision; TRL's default is on",
    "gradient_checkpointing": "less memory, about 20% slower; TRL's default is on",
    "eval_strategy": "no | steps | epoch",
    "save_steps": "steps between checkpoints",
    "seed": "random seed",
    "report_to": "none, tensorboard, wandb, trackio, …",
    "push_to_hub": "upload the finished run, with its card",
    "hub_model_id": "user/name on the Hub",
}


def entry(
    main: Callable[[list[str] | None], None],
    own: type,
    doc: str,
    *,
    flags: dict[str, str] | None = None,
    trains: bool = True,
) -> typing.NoReturn:
    """Run a stage as a command and exit with the right code.

    Exit codes: 0 done; 2 the user's mistake, one ``error:`` line on stderr (rank 0); 1 anything else, with the
    traceback; 130/143 after SIGINT/SIGTERM.

    Args:
        main: the stage's ``main(argv)``.
        own: the dataclass of the stage's own fields.
        doc: the stage file's docstring, shown by ``--help``.
        flags: fields of the trainer's config that decide this stage's result, with a line of help each.
        trains: whether the stage has the training flags.
    """
    argv = sys.argv[1:]
    # TRL reports its use over the network by default; a run of ours says nothing to anybody unless it is asked to.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    _quiet()
    if "--help" in argv or "-h" in argv:
        print(short_help(doc, own, flags or {}, trains))
        raise SystemExit(0)
    keep_freed_memory()
    run_and_exit(main, argv)


def run_and_exit(main: Callable[..., None], *arguments: object) -> typing.NoReturn:
    """Call ``main`` and leave the process with the exit code of what happened (see ``entry``)."""
    try:
        main(*arguments)
    except UserError as error:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except (PushError, DivergedError) as error:
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(0)


def _quiet() -> None:
    """Keep the terminal for what the user can act on: libraries' notes about their own future and missing kernels."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # DeepSpeed sets its logger's level when it is imported, which leaves filters as they are.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())


def keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB of what is freed: by default each step gives its memory back and faults it in anew.

    A tenth of the time of a small model's training step on a CPU. Without glibc nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its largest


def short_help(doc: str, own: type, flags: dict[str, str], trains: bool) -> str:
    """The stage's docstring, its own fields, and the flags people use; wrapped at 100 columns."""
    lines = [textwrap.dedent(doc).strip(), "", "This stage's own fields:"]
    lines += [_line(f.name, _help_of(f)) for f in dataclasses.fields(own)]
    if flags:
        lines += ["", "What decides its result:"]
        lines += [_line(name, text) for name, text in flags.items()]
    if trains:
        fields = {f.name for f in dataclasses.fields(own)}
        lines += ["", "Often used:"]
        lines += [_line(name, text) for name, text in COMMON_FLAGS.items() if name not in fields]
        lines += ["", "--help_all lists every field of TRL and Transformers."]
    else:
        lines += ["", _line("config", COMMON_FLAGS["config"])]
    return "\n".join(lines)


def _help_of(f: dataclasses.Field) -> str:
    text = f.metadata.get("help", "")
    default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
    if default not in (None, dataclasses.MISSING, False, "", []):
        text += f" [{default}]"
    choices = typing.get_args(f.type) if typing.get_origin(f.type) is typing.Literal else ()
    return " | ".join(map(str, choices)) + ("; " if choices else "") + text


def _line(name: str, text: str) -> str:
    return textwrap.fill(f"  --{name:<28} {text}", width=100, subsequent_indent=" " * 33)
