"""Pushing a run to the Hub: from a stage, after every checkpoint if wanted, or later from the command line.

    python -m pipeline.publish.hub push runs/my-dpo me/my-dpo [--private] [--revision NAME] [--base ORG/NAME]
        [--assessment DIR]

A run is complete on disk before anything is sent, so whatever the network does, nothing is lost and the same run can
be pushed again. What goes up names no local path: the base is looked up in the lineage, and an adapter whose base was
merged from another adapter is added to that one, so that it needs the Hub's base alone.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pipeline.publish.cards import write_card
from pipeline.publish.curves import plot_training
from pipeline.runtime.command_table import as_typed
from pipeline.runtime.entry import CommandParser, run_and_exit
from pipeline.runtime.errors import PushError, UserError
from pipeline.runtime.files import Json, write_json
from pipeline.runtime.lineage import assessments_of, merged_parent, repo_of
from pipeline.runtime.run_json import read_record

if TYPE_CHECKING:
    from huggingface_hub import HfApi

# Never uploaded: resumable state, traces of the training process, samples of the data, and pickles.
NOT_PUSHED = (
    "*.bin", "*.pt", "*.pth", "trainer_state.json", "state.json", "run.json", "latest", "zero_to_fp32.py",
    "*.jsonl", "pass_rates.json", "leg.json", "omega.*", ".*",
)  # fmt: skip
PUSHED_FOLDERS = ("plots", "critic", "routes")
# Seconds before each further try after what may pass: 5xx, a broken connection. The Hub's own http_backoff takes a URL
# and not a call of HfApi, and tenacity would be a dependency for ten lines.
RETRY_DELAYS_S = (1.0, 2.0, 4.0, 8.0)
T = TypeVar("T")


def push_run(
    folder: Path,
    repo: str | None,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    base: str | None = None,
    assessments: Sequence[Path] = (),
) -> str:
    """Upload a finished run: weights or adapter, tokenizer, plots and card, never a local path.

    Args:
        folder: a stage's output folder with a completed ``run.json``.
        repo: ``user/name``, or just a name for the logged-in user; None takes the folder's name.
        private: make a new repository private; None leaves it to the account's own default.
        token: Hub token; None takes the logged-in one.
        revision: branch to push to, made if it is not there; None is ``main``.
        base: Hub id of an adapter's base, where the lineage does not know it.
        assessments: output folders of assessments for the card, beside those that lie next to ``folder``.

    Returns:
        The repository's full id.

    Raises:
        UserError: the run is not complete, or its base is a local folder that has not been pushed itself.
        PushError: the Hub could not be reached or refused.
    """
    folder = Path(folder)
    record = read_record(folder)
    if record is None or record["status"] != "completed":
        raise UserError(f"{folder} holds no completed run (run.json), so there is nothing to push yet")
    repo = repo or folder.resolve().name
    options = {"private": private, "token": token, "revision": revision, "base": base}
    found = assessments_of(folder, assessments)
    try:
        repo = upload(folder, record, repo, message=record["stage"], assessments=found, **options)
    except UserError:
        raise
    except Exception as error:  # whatever the network or the Hub threw, the run is on disk and can be pushed again
        raise PushError(
            f"push to {repo} failed ({' '.join(str(error).split())[:200]}); the run in {folder} is complete: push it "
            f"again with `{push_command(folder, repo, private, revision)}`"
        ) from error
    write_json(folder / "run.json", record | {"hub": {"repo": repo}})
    return repo


def push_command(folder: Path, repo: str, private: bool | None = None, revision: str | None = None) -> str:
    """The command that pushes a finished run."""
    options = (" --private" if private else "") + (f" --revision {revision}" if revision else "")
    return f"{as_typed('push')} {folder} {repo}{options}"


def upload(
    folder: Path,
    record: Json,
    repo: str,
    *,
    message: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    base: str | None = None,
    assessments: Sequence[tuple[Path, Json]] = (),
) -> str:
    """Send a model's folder (a run's, or one of its checkpoints) to a branch, in one commit with its own card.

    Returns:
        The repository's full id; it is made if it is not there, and only once there is something to put into it.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as staging:
        stage_files(folder, Path(staging))
        for adapter in (Path(staging), *Path(staging).glob("routes/*")):
            resolve_base(adapter, base)
        check_base(api, Path(staging))
        plot_training(folder, Path(staging) / "plots" / "training.png")
        repo = retried(lambda: api.create_repo(repo, private=private, exist_ok=True).repo_id)
        write_card(Path(staging), record, repo, assessments)
        if revision is not None:
            retried(lambda: api.create_branch(repo, branch=revision, exist_ok=True))
        retried(
            lambda: api.upload_folder(repo_id=repo, folder_path=staging, revision=revision, commit_message=message)
        )
    return repo


def stage_files(folder: Path, staging: Path) -> None:
    """What of a folder is pushed, as a copy that can be edited; weights are linked, not copied."""
    for file in folder.iterdir():
        if file.is_dir() and file.name in PUSHED_FOLDERS:
            shutil.copytree(file, staging / file.name)
        elif file.suffix == ".safetensors":
            (staging / file.name).symlink_to(file.resolve())
        elif file.is_file() and not any(file.match(pattern) for pattern in NOT_PUSHED):
            shutil.copy2(file, staging / file.name)


def resolve_base(folder: Path, base: str | None = None) -> None:
    """Make a Hub id the base of the adapter in ``folder``.

    A local base is replaced by the repository its run was pushed to. The merged start of ``adapter_mode: merge`` has
    none: the adapter that was merged is added instead, which gives the same weights on that adapter's own base.

    Raises:
        UserError: the base is a local folder that no run has pushed.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():
        return
    while True:
        config = json.loads(file.read_text())
        found = config.get("base_model_name_or_path")
        if base is None and found and Path(found).is_dir():
            hub = repo_of({"path": found})
            if hub is None:
                merged = merged_parent(Path(found))
                if merged is None:
                    raise UserError(
                        f"the adapter's base is the local folder {found}, which is not on the Hub: push that first "
                        f"with `{push_command(Path(found), 'USER/NAME')}`, or name its repository with --base"
                    )
                weights = folder / "adapter_model.safetensors"
                if weights.is_symlink():  # the sum must not be written through the link into the run
                    target = weights.resolve()
                    weights.unlink()
                    shutil.copy2(target, weights)
                from pipeline.model.lora_sum import adapter_folder, stack_adapters

                stack_adapters(adapter_folder(merged.get("path") or merged["repo"], merged.get("revision")), folder)
                continue
            base = hub
        if base is not None:
            write_json(file, config | {"base_model_name_or_path": base})
        return


def check_base(api: "HfApi", folder: Path) -> None:
    """Nobody can load an adapter whose base is not on the Hub.

    Raises:
        UserError: the base is a name that the Hub does not know, such as a folder that is gone or lies elsewhere.
    """
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    file = folder / "adapter_config.json"
    base = json.loads(file.read_text()).get("base_model_name_or_path") if file.is_file() else None
    try:
        if base:
            retried(lambda: api.model_info(base))
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise UserError(
            f"the adapter's base is {base}, which is neither a local folder nor a repository of the Hub that can be "
            "seen: name its repository with --base"
        ) from error


def retried(call: Callable[[], T]) -> T:
    """The call's result, tried again where its failure may pass; the last failure is raised."""
    for delay in RETRY_DELAYS_S:
        try:
            return call()
        except Exception as error:
            if not _may_pass(error):
                raise
            time.sleep(delay)
    return call()


def _may_pass(error: Exception) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status >= 500 or status in (408, 429)
    # httpx and its successor share the name of what every broken connection is, and no module.
    return any(cls.__name__ == "TransportError" for cls in type(error).__mro__)


def main(argv: list[str] | None = None) -> None:
    """Push a finished run from the command line; see the module's docstring."""
    parser = CommandParser(
        prog=as_typed("push"), description="Upload a finished run, with its card, to the Hub.", allow_abbrev=False
    )
    parser.add_argument("command", choices=["push"], help=argparse.SUPPRESS)  # it is a part of ``prog``
    parser.add_argument("folder", type=Path, metavar="DIR", help="output folder of a finished run")
    parser.add_argument("repo", metavar="USER/NAME", help="repository to push to; created if it does not exist")
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", metavar="NAME", help="branch to push to; created if it does not exist [main]")
    parser.add_argument("--base", metavar="ORG/NAME", help="Hub id of an adapter's base, if no run record names it")
    parser.add_argument(
        "--assessment", type=Path, action="append", default=[], metavar="DIR",
        help="output folder of assess.py for the card; those beside the run's folder are found without it",
    )  # fmt: skip
    args = parser.parse_args(argv)
    options = {"private": args.private, "revision": args.revision, "base": args.base}
    repo = push_run(args.folder, args.repo, assessments=args.assessment, **options)
    print(f"pushed to https://huggingface.co/{repo}")


if __name__ == "__main__":
    run_and_exit(main)
