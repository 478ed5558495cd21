"""Checkpoints that can be trusted: written aside and renamed, verified by a manifest; saved folders are checked."""

import functools
import json
import os
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.runtime.errors import UserError
from pipeline.runtime.files import file_sha256, is_local, near_path, write_json

SAVED = (".safetensors", ".pt", ".pth", ".bin", ".distcp", ".json")
MANIFEST = "manifest.json"
UNFINISHED = ".unfinished"  # the folder in which a checkpoint is written; no name in it counts as a checkpoint


def publish_checkpoint(written: Path, final: Path) -> None:
    """Give a checkpoint that was written aside its name: manifest, sync to the disk, then one rename.

    A kill or a power cut leaves either no folder of that name or a complete one.

    Args:
        written: the complete folder, on the same file system.
        final: its name from now on; a damaged checkpoint of the same step that is there is replaced.
    """
    files = sorted(file for file in written.rglob("*") if file.is_file())
    with ThreadPoolExecutor() as pool:  # hashing lets go of the interpreter's lock
        hashes = list(pool.map(file_sha256, files))
    listed = {
        file.relative_to(written).as_posix(): {"bytes": file.stat().st_size, "sha256": digest}
        for file, digest in zip(files, hashes)
    }
    write_json(written / MANIFEST, {"files": listed})
    for path in (*files, written / MANIFEST, *(path for path in written.rglob("*") if path.is_dir()), written):
        _sync(path)
    if final.exists():
        final.rename(written.parent / f"replaced-{final.name}")
    written.rename(final)
    _sync(final.parent)
    shutil.rmtree(written.parent, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checkpoints(folder: Path) -> list[Path]:
    """The folders named as checkpoints below ``folder``, newest first, complete or not."""
    candidates = [path for path in Path(folder).glob("checkpoint-*") if path.name.split("-")[-1].isdigit()]
    return sorted(candidates, key=step_of, reverse=True)


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint below ``folder`` that holds what was written, or None.

    ``transformers.trainer_utils.get_last_checkpoint`` takes half-written folders.
    """
    return next((path for path in checkpoints(folder) if damage(path) is None), None)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in words, or None: its manifest verifies.

    A checkpoint of another program has no manifest; there ``is_whole`` decides.
    """
    manifest = checkpoint / MANIFEST
    if not manifest.is_file():
        return None if is_whole(checkpoint) else "it was not written to its end"
    return _damage(checkpoint, manifest.stat().st_mtime_ns)


@functools.lru_cache
def _damage(checkpoint: Path, stamp: int) -> str | None:
    """As ``damage``, once per manifest (``stamp``: when it was written): hashing reads every byte."""
    try:
        listed = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
        for name, written in listed.items():
            file = checkpoint / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != written["bytes"]:
                return f"{name} has {file.stat().st_size:,} of {written['bytes']:,} bytes"
        with ThreadPoolExecutor() as pool:
            hashes = pool.map(file_sha256, (checkpoint / name for name in listed))
            changed = [name for name, digest in zip(listed, hashes) if digest != listed[name]["sha256"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return f"{changed[0]} is not what was written (its SHA-256 differs)" if changed else None


def step_of(checkpoint: Path) -> int:
    """The step at which a checkpoint was written, by its name; -1 where the name says nothing."""
    number = checkpoint.name.split("-")[-1]
    return int(number) if number.isdigit() else -1


def is_whole(path: Path) -> bool:
    """Whether a checkpoint was written to its end and can be read.

    Trainer writes ``trainer_state.json`` last, so that file must parse, the weights must be there (safetensors with a
    readable header whose byte count matches, or a DeepSpeed/FSDP shard folder), no file may be empty, and what
    ``torch.save`` wrote (optimizer, scheduler, random states) must be a complete archive.
    """
    try:
        json.loads((path / "trainer_state.json").read_text())
        weights = list(path.glob("*.safetensors"))
        sharded = list(path.glob("global_step*")) + list(path.glob("pytorch_model_fsdp*"))
        saved = [file for file in path.rglob("*") if file.suffix in SAVED and file.is_file()]
        return (
            bool(weights or sharded)
            and all(file.stat().st_size for file in saved)
            and all(_safetensors_size_is_right(file) for file in weights)
            and all(zipfile.is_zipfile(file) for file in saved if file.suffix in (".pt", ".pth"))
        )
    except (OSError, ValueError):
        return False


def require_checkpoint(name: str) -> Path:
    """The folder of the checkpoint that ``resume_from_checkpoint`` names, resolved.

    Raises:
        UserError: there is no such folder, or it is no complete checkpoint.
    """
    path = Path(name).expanduser().resolve()
    where = f"resume_from_checkpoint: {name}"
    if not path.is_dir():
        raise UserError(
            f"{where}: there is no such folder; leave it out to resume from the newest checkpoint in output_dir"
            " (to start again: --force)"
        )
    if (found := damage(path)) is not None:
        raise UserError(f"{where} is no complete checkpoint: {found}; name another, or leave it out")
    return path


def _safetensors_size_is_right(file: Path) -> bool:
    """A safetensors file is 8 bytes of header length, the JSON header, then the data it announces."""
    with open(file, "rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(header_bytes))
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    return file.stat().st_size == 8 + header_bytes + end


def require_same_shards(checkpoint: Path, processes: int) -> None:
    """Refuse to resume a DeepSpeed checkpoint on another number of processes: it has one optimizer shard each.

    Raises:
        UserError: the checkpoint has shards, and not as many as there are processes.
    """
    shards = len(list(checkpoint.glob("global_step*/*zero_pp_rank_*_optim_states.pt")))
    if shards not in (0, processes):
        raise UserError(
            f"{checkpoint.name} was written by {shards} DeepSpeed processes and only as many can read it: launch with "
            f"--num_processes {shards} (DDP and FSDP2 resume on any number)"
        )


def check_saved(folder: Path, trained: bool = True) -> None:
    """Refuse a saved folder that would not load as what was trained.

    Args:
        folder: a model or adapter folder.
        trained: whether training steps were taken of which any may have had a gradient, so that an adapter whose LoRA
            B matrices are all zero (the value they start from) means the training was lost, as ZeRO-3 can do while
            saving.

    Raises:
        RuntimeError: no weights, a tensor that is empty or not finite, an adapter equal to its initialisation, or a
            tokenizer that pads with EOS: whoever trains on it masks the end of every answer.
    """
    from safetensors import safe_open

    files = sorted(Path(folder).glob("*.safetensors"))
    if not files:
        raise RuntimeError(f"{folder} holds no safetensors file after saving")
    lora_b_seen = lora_b_nonzero = False
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is not a mapping
                tensor = tensors.get_tensor(name)
                if tensor.numel() == 0:
                    raise RuntimeError(f"{file}: tensor {name} was saved empty")
                if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                    raise RuntimeError(f"{file}: tensor {name} holds numbers that are not finite")
                if "lora_B" in name:
                    lora_b_seen = True
                    lora_b_nonzero = lora_b_nonzero or bool(tensor.any())
    if trained:
        _check_pad_token(Path(folder) / "tokenizer_config.json")
    if trained and lora_b_seen and not lora_b_nonzero:
        raise RuntimeError(f"{folder}: every LoRA B matrix is zero, so the adapter was saved untrained")


def _check_pad_token(file: Path) -> None:
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    pad, eos = (
        token["content"] if isinstance(token, dict) else token
        for token in (config.get("pad_token"), config.get("eos_token"))
    )
    if pad is not None and pad == eos:
        raise RuntimeError(f"{file}: the tokenizer was saved with its EOS token {eos!r} as its pad token")


def require_model_folder(name_or_path: str, option: str = "model_name_or_path") -> None:
    """Catch a mistyped local path before the Hub is asked for a repository of that name.

    Args:
        name_or_path: a folder or a Hub id.
        option: what the user calls it.

    Raises:
        UserError: the name is local (``files.is_local``) and no folder is there, or the folder has
            neither ``config.json`` nor ``adapter_config.json``.
    """
    path = Path(name_or_path).expanduser()
    if not is_local(name_or_path):
        return
    if not path.is_dir():
        hint = near_path(name_or_path, "give a folder or a Hub id (user/name)")
        raise UserError(f"{option}: there is no folder {name_or_path}{hint}")
    if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise UserError(
            f"{option}: {name_or_path} holds neither config.json nor adapter_config.json, so it is not a "
            "saved model; did its stage finish (see its run.json)?"
        )
