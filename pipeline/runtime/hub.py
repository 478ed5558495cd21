"""Pushing a finished run to the Hub, from a stage or by ``python -m pipeline.runtime.hub push DIR REPO``."""

import json
import sys
import tempfile
from pathlib import Path
from shutil import copy2

from pipeline.runtime.cards import write_card
from pipeline.runtime.entry import run_and_exit
from pipeline.runtime.errors import PushError, UserError
from pipeline.runtime.record import read_record, write_json

# Left at home: resumable state, traces of the training process and the metrics viewer's logs.
NOT_PUSHED = ("checkpoint-*", "runs/*", "training_args.bin", "trainer_state.json", ".run.json*", "run.json")


def push_run(folder: Path, repo: str | None, *, private: bool | None = None, token: str | None = None) -> str:
    """Upload a finished run: weights or adapter, tokenizer and card, never a local path.

    Args:
        folder: a stage's output folder with a completed ``run.json``.
        repo: ``user/name``, or just a name for the logged-in user; None takes the folder's name.
        private: make a new repository private.
        token: Hub token; None takes the logged-in one.

    Returns:
        The repository's full id.

    Raises:
        UserError: the run is not complete, or its base is a local folder that has not been pushed itself.
        PushError: the Hub could not be reached or refused.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    record = read_record(folder)
    if record is None or record["status"] != "completed":
        raise UserError(f"{folder} holds no completed run (run.json), so there is nothing to push yet")
    repo = repo or folder.resolve().name
    try:
        api = HfApi(token=token)
        repo = api.create_repo(repo, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as staging:
            upload = _staged(folder, Path(staging), record)
            api.upload_folder(
                repo_id=repo, folder_path=upload, ignore_patterns=list(NOT_PUSHED), commit_message=record["stage"]
            )
    except UserError:
        raise
    except Exception as error:  # whatever the network or the Hub threw, the run is on disk and can be pushed again
        raise PushError(
            f"push to {repo} failed ({' '.join(str(error).split())[:200]}); the run in {folder} is complete: push it "
            f"again with `python -m pipeline.runtime.hub push {folder} {repo}`"
        ) from error
    write_json(folder / "run.json", record | {"hub": {"repo": repo}})
    return repo


def _staged(folder: Path, staging: Path, record: dict) -> Path:
    """A copy of the run's small files with the base resolved to its Hub id; weights are linked, not copied."""
    for file in folder.iterdir():
        if file.suffix == ".safetensors":
            (staging / file.name).symlink_to(file.resolve())
        elif file.is_file():
            copy2(file, staging / file.name)
    config_file = staging / "adapter_config.json"
    if config_file.is_file():
        config = json.loads(config_file.read_text())
        base = config.get("base_model_name_or_path")
        if base and Path(base).is_dir():
            hub = (read_record(Path(base)) or {}).get("hub", {}).get("repo")
            if hub is None:
                raise UserError(
                    f"the adapter in {folder} stands on the local folder {base}, which is not on the Hub: push that "
                    f"first with `python -m pipeline.runtime.hub push {base} USER/NAME`"
                )
            config["base_model_name_or_path"] = hub
            config_file.write_text(json.dumps(config, indent=2) + "\n")
    write_card(staging, record)
    return staging


def main(argv: list[str] | None = None) -> None:
    """``push DIR REPO [--private]``."""
    words = list(sys.argv[1:] if argv is None else argv)
    private = "--private" in words
    words = [word for word in words if word != "--private"]
    if len(words) != 3 or words[0] != "push":
        raise UserError("usage: python -m pipeline.runtime.hub push DIR USER/NAME [--private]")
    print(f"pushed to https://huggingface.co/{push_run(Path(words[1]), words[2], private=private or None)}")


if __name__ == "__main__":
    run_and_exit(main)
