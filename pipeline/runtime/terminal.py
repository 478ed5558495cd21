"""The terminal is for what the user can act on: other libraries' notes and bars are kept out of it."""

import logging
import os
import sys
import warnings

from pipeline.runtime.distributed import is_main


def quiet() -> None:
    """Keep the terminal for what the user can act on: libraries' notes about their own future and missing kernels."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    warnings.filterwarnings("ignore", message=".*(Distutils was imported|Setuptools is replacing).*")
    # Of an adapter that holds the head of a tied model: it is saved complete, and model.loading.merged unties the two.
    warnings.filterwarnings("ignore", message="Model (has|with) `tie_word_embeddings=True`")
    warnings.filterwarnings("ignore", message="Input and output embeddings are no longer tied after merging")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # model.loading reports what matters
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP's notes on its own speed, from every process
    if not is_main():  # what every process prints alike is printed once, by the main one; errors by all
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not (sys.stderr.isatty() and is_main()):  # a bar in a log file is a line of thousands of characters
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    # tqdm reads these where it is imported: a bar is for what takes time, and leaves nothing behind ("" is False).
    os.environ.setdefault("TQDM_DELAY", "2")
    os.environ.setdefault("TQDM_LEAVE", "")
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    # DeepSpeed sets its logger's level when it is imported, which leaves filters as they are.
    logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())


def show(text: str) -> None:
    """Print a help text; that its reader has seen enough, as ``head`` and a pager have, is no error."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends


def hide_weight_bars() -> None:
    """Show no progress bar of weights read and written; those of downloads stay."""
    from huggingface_hub.utils import enable_progress_bars
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # and the Hub's with it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where the user's environment has switched the Hub's off
        enable_progress_bars()
