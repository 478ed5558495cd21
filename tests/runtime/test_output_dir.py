"""Which folder a run may write to: not one that it reads, that is in use, or whose run had other inputs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.runtime.errors import UserError
from pipeline.runtime.files import files_sha256, write_json
from pipeline.runtime.process import process_identity, process_is_alive
from pipeline.runtime.record import Run
from pipeline.runtime.run_json import read_record, status_of
from tests.runtime.test_record import Demo


def start(folder, *flags, model=None, sources=()):
    """A run that reads its inputs and is killed before it writes anything else but a checkpoint."""
    run = Run("demo", ["--output_dir", str(folder), *flags])
    run.__enter__()
    run.parse(Demo)
    if model:
        run.add_parent(str(model))
    run.add_data(list(sources))
    checkpoint = folder / "checkpoint-2"
    if not checkpoint.is_dir():
        checkpoint.mkdir()
        (checkpoint / "trainer_state.json").write_text("{}")
        (checkpoint / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    run._heartbeat.stop()
    return run


@pytest.fixture
def model(tmp_path):
    """A folder with weights, a tokenizer and an adapter's config that names a base beside it."""
    for name in ("base", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "tokenizer.json").write_text("{}")
    config = {"base_model_name_or_path": str(tmp_path / "base")}
    (tmp_path / "model" / "adapter_config.json").write_text(json.dumps(config))
    return tmp_path / "model"


def rows_of(folder):
    """The source of all files in a folder, as the data room records it."""
    files = sorted(folder.iterdir())
    place = {"name": str(folder), "split": "train", "role": "train"}
    return place | {"files": [str(file) for file in files], "fingerprint": files_sha256(files)}


INPUTS = {
    "model/model.safetensors": "the weights in",
    "model/tokenizer.json": "the tokenizer, template or config in",
    "base/model.safetensors": "the weights in",
    "data/rows.jsonl": "the data in",
    "data/more.jsonl": "the data in",
}


@pytest.mark.parametrize("changed", [*INPUTS, None])
def test_what_a_killed_run_read_must_be_the_same_when_it_resumes(changed, tmp_path, model):
    """Its record has the inputs from the moment they are read: also killed again, before they are read again."""
    file = tmp_path / "data" / "rows.jsonl"
    file.parent.mkdir()
    file.write_text('{"text": "a"}\n')
    start(tmp_path / "a", model=model, sources=[rows_of(file.parent)])
    again = Run("demo", ["--output_dir", str(tmp_path / "a")])
    again.__enter__()
    again.parse(Demo)  # and killed here
    again._heartbeat.stop()
    assert len(read_record(tmp_path / "a")["parents"]) == len(read_record(tmp_path / "a")["data"]) == 1
    if changed is None:
        assert start(tmp_path / "a", model=model, sources=[rows_of(file.parent)]).record["resumed"]
        return
    (tmp_path / changed).write_text("other")
    with pytest.raises(UserError, match=rf"holds a run of other inputs \({INPUTS[changed]} .*--force"):
        start(tmp_path / "a", model=model, sources=[rows_of(file.parent)])
    assert (tmp_path / "a" / "checkpoint-2").is_dir()


@pytest.mark.parametrize("damage", ["missing", "halved", "a list", "without keys"])
def test_checkpoints_without_their_record_are_not_continued(damage, tmp_path):
    """What they were trained on is not known; --force renames them, and nothing else touches the file."""
    start(tmp_path / "a")
    file = tmp_path / "a" / "run.json"
    text = {"halved": file.read_text()[:40], "a list": "[]", "without keys": '{"stage": "demo"}'}.get(damage)
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(UserError, match=r"holds (checkpoints, but no run\.json|a run\.json that is damaged)"):
        start(tmp_path / "a")
    start(tmp_path / "a", "--force")
    assert (next(tmp_path.glob("a.old-*")) / "checkpoint-2").is_dir()


def test_an_output_folder_that_is_an_input_is_refused(tmp_path, model):
    before = (model / "model.safetensors").read_bytes()
    for flags in (["--model_name_or_path", f"{model}/"], ["--names", "x", str(model)]):
        with pytest.raises(UserError, match=r"is also (model_name_or_path|names), which would be overwritten"):
            Run("demo", ["--output_dir", str(model), *flags])
    assert (model / "model.safetensors").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    """In /proc nothing can be made; 300 letters are too many for a name; a file is no folder."""
    (tmp_path / "file").write_text("x")
    for name, said in (
        ("/proc/nope", r"cannot be made \(No such file"), (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "file" / "run", r"Not a directory"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"output_dir: .*{said}"):
            start(Path(name))
    monkeypatch.setattr(os, "access", lambda *_: False)  # as on a read-only mount, also for root
    with pytest.raises(UserError, match="nothing can be written to"):
        start(tmp_path / "a")


def test_force_cannot_rename_the_current_folder_and_never_meets_its_own_name(tmp_path, monkeypatch):
    for _ in range(3):
        start(tmp_path / "a", "--force")
    assert len(list(tmp_path.glob("a.old-*"))) == 2
    monkeypatch.chdir(tmp_path / "a")
    with pytest.raises(UserError, match="is the current folder"):
        start(Path("."), "--force")
    assert (tmp_path / "a" / "checkpoint-2").is_dir()


def test_what_a_failed_start_made_of_other_inputs_is_moved_aside(tmp_path):
    """A start from another base that was merged into the folder is no start of this run."""

    def stage():
        with Run("demo", ["--output_dir", str(tmp_path / "a"), "--beta", "0.1"]) as run:
            run.parse(Demo)
            (tmp_path / "a" / "start").mkdir()
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        stage()
    start(tmp_path / "a", "--beta", "0.2")
    assert not (tmp_path / "a" / "start").exists()
    assert (next(tmp_path.glob("a.old-*")) / "start").is_dir()


def test_a_run_on_another_host_is_alive_as_long_as_its_heart_beats(tmp_path, monkeypatch):
    """A container that started again has another name: five minutes after the last beat its old run is interrupted."""
    monkeypatch.setattr("pipeline.runtime.process.HEARTBEAT_S", 0.05)
    run = Run("demo", ["--output_dir", str(tmp_path / "a")])
    file = tmp_path / "a" / "run.json"
    with run:
        run.parse(Demo)
        run.record["process"]["host"] = "another"
        run.write()
        os.utime(file, (0, 0))
        deadline = time.monotonic() + 20
        while file.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert file.stat().st_mtime > 0
        assert status_of(read_record(tmp_path / "a")) == "running"
        with pytest.raises(UserError, match=r"on host another \(dead, if it gives no sign for 5 minutes\)"):
            Run("demo", ["--output_dir", str(tmp_path / "a")])
    record = read_record(tmp_path / "a") | {"status": "running"}
    write_json(file, record)
    os.utime(file, (time.time() - 301,) * 2)
    assert status_of(read_record(tmp_path / "a")) == "interrupted"


def test_a_dead_process_that_nobody_has_waited_for_is_dead(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    record = {"process": process_identity(child.pid)}
    assert process_is_alive(record)
    child.kill()
    deadline = time.monotonic() + 20
    while process_is_alive(record) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not process_is_alive(record)
    assert os.path.exists(f"/proc/{child.pid}")
    child.wait()


def test_a_run_that_says_completed_has_its_card(tmp_path):
    """The card comes first and says completed as well; where it cannot be written, the run is not complete."""
    seen = []

    def stage(card):
        with Run("demo", ["--output_dir", str(tmp_path / "a")]) as run:
            run.parse(Demo)
            run.complete(card)

    with pytest.raises(OSError, match="disk full"):
        stage(lambda folder, record: (_ for _ in ()).throw(OSError("disk full")))
    assert read_record(tmp_path / "a")["status"] == "failed"
    stage(lambda folder, record: seen.append((record["status"], read_record(folder)["status"])))
    assert seen == [("completed", "running")]
    assert read_record(tmp_path / "a")["status"] == "completed"
