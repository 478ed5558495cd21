"""How a stage file becomes a command: help without heavy imports, one ``error:`` line, exit codes."""

import argparse
import contextlib
import ctypes
import dataclasses
import json
import os
import sys
import textwrap
import time
import typing
from collections.abc import Callable
from pathlib import Path

from pipeline.runtime.command_table import as_started
from pipeline.runtime.defaults import rate_in_words
from pipeline.runtime.distributed import is_main
from pipeline.runtime.errors import DivergedError, PushError, UserError
from pipeline.runtime.run_json import RECIPE_VARIABLE
from pipeline.runtime.terminal import quiet, show

# Read at the start, for a Trainer sets such variables itself. A recipe's launcher prints no traceback.
LAUNCHED = any(name.startswith("ACCELERATE_") for name in os.environ) and RECIPE_VARIABLE not in os.environ
PATIENCE_S = 20  # how long a process other than the main one waits before it reports an error

# The flags people use, under TRL's and Transformers' names. A test checks that every training stage has each one.
COMMON_FLAGS = {
    "config": "YAML file with any of these fields; a flag overrides the YAML.",
    "output_dir": "Output folder: weights or adapter, tokenizer, card, run.json.",
    "model_name_or_path": "Hub id, full-model folder or adapter folder to start from.",
    "adapter_mode": "An adapter as the start: continue | merge | stack [continue]",
    "dataset_name": "Hub id, local file or folder (jsonl, parquet, csv), world/<name>.",
    "dataset_map": "Rename columns: old=new,…",
    "eval_dataset_name": "Held-out data [a seeded share of the training data].",
    "use_peft": "Train a LoRA adapter instead of all weights [false]",
    "lora_r": "Rank of the adapter [16]",
    "lora_alpha": "Scale of the adapter: its update is multiplied by alpha / r [32]",
    "lora_target_modules": "Modules to adapt [PEFT's for the model type, else all-linear].",
    "load_in_4bit": "QLoRA: load the base weights in 4 bits (NF4) [false]",
    "learning_rate": "Peak learning rate",
    "num_train_epochs": "Number of passes over the data [3]",
    "max_steps": "Optimizer steps; overrides num_train_epochs [-1: by the passes]",
    "per_device_train_batch_size": "Rows per device and forward pass [8]",
    "gradient_accumulation_steps": "Forward passes per optimizer step [1]",
    "bf16": "Mixed precision [on where the device is faster with it]",
    "gradient_checkpointing": "Recompute activations to save memory [off where they fit]",
    "eval_strategy": "When to evaluate beside the end: no | steps | epoch [no]",
    "save_steps": "Optimizer steps between checkpoints [500]",
    "seed": "Random seed [42]",
    "report_to": "Where to log: none, tensorboard, wandb, trackio, … [none]",
    "push_to_hub": "Upload the finished run with its card [false]",
    "hub_model_id": "Repository on the Hub: user/name.",
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
    if "--help" in argv or "-h" in argv:
        stage = Path(sys.modules[main.__module__].__file__ or "").stem
        show(short_help(doc, own, flags or {}, stage if trains else None))
        raise SystemExit(0)
    keep_freed_memory()
    run_and_exit(main, argv)


class CommandParser(argparse.ArgumentParser):
    """The parser of a command that is no stage; a mistake becomes one ``error:`` line and exit code 2."""

    def error(self, message: str) -> typing.NoReturn:
        """Raise the mistake as a ``UserError``."""
        raise UserError(f"{message}; see {self.prog} --help")


def run_and_exit(main: Callable[..., None], *arguments: object) -> typing.NoReturn:
    """Call ``main`` in a quiet terminal and leave the process with the exit code of what happened (see ``entry``)."""
    # TRL reports its use over the network by default; a run of ours says nothing to anybody unless it is asked to.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    quiet()
    try:
        main(*arguments)
    except (UserError, PushError, DivergedError) as error:
        report(error)
        raise SystemExit(2 if isinstance(error, UserError) else 1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    raise SystemExit(0)


def report(error: Exception) -> None:
    """Print one ``error:`` line on stderr, from the main process.

    Under ``accelerate launch`` the parent's own traceback follows, whatever the stage does: there the line is framed,
    and torch's launcher, which prints last, gets the same line for its summary. The other processes wait for the
    main one to report, since the launcher ends all of them with the first; then they report
    what only they met.
    """
    if not is_main():
        time.sleep(PATIENCE_S)
    red, plain = ("\033[1;31m", "\033[0m") if sys.stderr.isatty() else ("", "")
    lines = [f"{red}error: {error}{plain}"]
    if LAUNCHED:
        rule = "=" * 100
        quietly = "" if "WORLD_SIZE" in os.environ else "; accelerate launch -q leaves it out"
        note = f"(What follows is accelerate's, and only says that this process has ended{quietly}.)"
        lines = ["", rule, *lines, note, rule]
    print("\n".join(lines), file=sys.stderr, flush=True)
    summary = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if summary:
        text = {"message": f"error: {error}", "extraInfo": {"timestamp": int(time.time())}}
        with contextlib.suppress(OSError):
            Path(summary).write_text(json.dumps({"message": text}), encoding="utf-8")


def keep_freed_memory() -> None:
    """Let glibc keep up to 1 GiB of what is freed: by default each step returns its memory and faults it in again.

    A tenth of the time of a small model's training step on a CPU. Without glibc nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
        mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its largest


def short_help(doc: str, own: type, flags: dict[str, str], stage: str | None) -> str:
    """The stage's docstring, its own fields, and the flags people use; wrapped at 100 columns.

    ``stage`` names a training stage; None where there are no training flags.
    """
    lines = [as_started(textwrap.dedent(doc)).strip(), "", "This stage's own fields:"]
    lines += [_line(_flag_of(f), _help_of(f)) for f in dataclasses.fields(own)]
    if flags:
        lines += ["", "What decides its result:"]
        lines += [_line(name, text) for name, text in flags.items()]
    if stage is not None:
        rate = rate_in_words(stage)
        above = {*flags, *(f.name for f in dataclasses.fields(own))}
        lines += ["", "Often used:"]
        common = COMMON_FLAGS | {"learning_rate": f"{COMMON_FLAGS['learning_rate']} [{rate}]"}
        lines += [_line(name, text) for name, text in common.items() if name not in above]
        lines += ["", "--help_all lists every field of TRL and Transformers."]
    else:
        lines += ["", _line("config", COMMON_FLAGS["config"])]
    return "\n".join(lines)


def _flag_of(f: dataclasses.Field) -> str:
    """The name that a field has on the command line: ``--from`` is no name in Python."""
    return f.metadata["aliases"][0].lstrip("-") if "aliases" in f.metadata else f.name


def _help_of(f: dataclasses.Field) -> str:
    text = f.metadata.get("help", "")
    default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
    if default not in (None, dataclasses.MISSING, False, "", []):
        text += f" [{'true' if default is True else default}]"
    kinds = (f.type, *typing.get_args(f.type))  # Literal[...], or Literal[...] | None
    literals = (typing.get_args(kind) for kind in kinds if typing.get_origin(kind) is typing.Literal)
    choices = next(literals, f.metadata.get("choices", ()))
    return " | ".join(map(str, choices)) + ("; " if choices else "") + text


def _line(name: str, text: str) -> str:
    return textwrap.fill(f"  --{name:<28} {as_started(text)}", width=100, subsequent_indent=" " * 33)
