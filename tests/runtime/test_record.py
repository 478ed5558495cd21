"""The run record: what makes a run finished, stale, interrupted or somebody else's."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from pipeline.runtime.comparison import changed_inputs
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import file_sha256, write_json
from pipeline.runtime.process import process_identity
from pipeline.runtime.record import Run
from pipeline.runtime.run_json import parent_of, read_record, status_of


@dataclass
class Demo:
    """Fields of an empty stage."""

    output_dir: str
    beta: float = 0.1
    seed: int = 42
    gradient_checkpointing: bool = True
    rows: int | None = None
    model_name_or_path: str | None = None
    eval_strategy: str = "no"
    per_device_eval_batch_size: int = 8
    load_best_model_at_end: bool = False
    names: list[str] | None = None
    logging_steps: int = 10
    hub_token: str | None = None
    force: bool = False


def finish(folder, *flags, parents=(), sources=()):
    """Run an empty stage to its end in ``folder``."""
    with Run("demo", ["--output_dir", str(folder), *flags]) as run:
        assert not run.done
        run.parse(Demo)
        run.record["parents"] = list(parents)
        run.add_data(list(sources))
        run.add_metrics({"loss": 1.5, "name": "text", "flag": True, "bad": float("nan")})
    return run


def test_a_record_has_the_contract_s_keys_and_only_numbers_as_metrics(tmp_path):
    finish(tmp_path / "a", "--seed", "7")
    record = read_record(tmp_path / "a")
    keys = {"schema", "stage", "status", "parents", "arguments", "data", "versions", "seed", "metrics", "seconds"}
    assert keys | {"peak_memory_bytes"} <= record.keys()
    assert (record["schema"], record["stage"], record["status"], record["seed"]) == (1, "demo", "completed", 7)
    assert record["metrics"] == {"loss": 1.5, "bad": None}
    assert record["versions"]["torch"].startswith("2.")
    assert record["peak_memory_bytes"] > 1_000_000


def test_the_peak_is_the_run_s_and_not_that_of_what_started_it(tmp_path):
    """A process that once held 600 MB starts a run that needs a tenth."""
    stage = f"from pipeline.runtime.record import Run\nwith Run('demo', ['--output_dir', '{tmp_path}/a']): pass"
    command = f"import subprocess, sys; b'x' * 600_000_000; subprocess.run([sys.executable, '-c', {stage!r}])"
    subprocess.run([sys.executable, "-c", command], check=True)
    assert 1_000_000 < read_record(tmp_path / "a")["peak_memory_bytes"] < 300_000_000


@dataclass
class Tracked:
    """As much of a trainer's config as says whom a run reports to."""

    output_dir: str
    report_to: list[str] = field(default_factory=list)


@pytest.mark.parametrize(("tracker", "installed"), [("wandb", False), ("wandb", True), ("wanbd", True), (None, False)])
def test_a_tracker_is_there_before_anything_is_loaded(tmp_path, monkeypatch, tracker, installed):
    """What a run cannot report to is a mistake told at once, and leaves nothing behind; `none` needs nothing."""
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: installed)
    words = ["--output_dir", str(tmp_path / "a"), *(["--report_to", tracker] if tracker else [])]
    wrong = tracker == "wanbd" or (tracker and not installed)
    expected = pytest.raises(UserError, match=r"report_to: there is no wanbd|wandb is not installed: pip install")
    with expected if wrong else contextlib.nullcontext(), Run("demo", words) as run:
        run.parse(Tracked)
    assert (tmp_path / "a").exists() != bool(wrong)


def test_the_same_inputs_are_up_to_date_whatever_is_only_cosmetic(tmp_path, capsys):
    finish(tmp_path / "a", "--beta", "0.1")
    with Run("demo", ["--output_dir", str(tmp_path / "a"), "--beta", "0.1", "--logging_steps", "5"]) as run:
        assert run.done
    assert "up to date" in capsys.readouterr().out


def test_other_inputs_are_refused_with_the_difference_named(tmp_path):
    finish(tmp_path / "a", "--beta", "0.1")
    with pytest.raises(UserError, match=r"beta: 0.1 then, 0.2 now.*--force"):
        Run("demo", ["--output_dir", str(tmp_path / "a"), "--beta", "0.2"]).parse(Demo)
    assert read_record(tmp_path / "a")["status"] == "completed"


def test_a_value_that_was_not_given_is_shown_as_it_was_and_will_be(tmp_path):
    """First beta was its default, 0.1, then it would be."""
    given = ["--beta", "0.2"]
    for then, now, message in ([], given, "0.1 then, 0.2 now"), (given, [], "0.2 then, 0.1 now"):
        folder = tmp_path / str(len(then))
        finish(folder, *then)
        with pytest.raises(UserError, match=rf"\(beta: {message}\)"):
            Run("demo", ["--output_dir", str(folder), *now]).parse(Demo)


@pytest.mark.parametrize(("world_size", "wrong"), [(1, True), (2, False)])
def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path, monkeypatch, world_size, wrong):
    """Two are started; a trainer's config that counts one would train a model in each, into one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(Demo, "world_size", world_size, raising=False)
    expected = pytest.raises(UserError, match="2 processes were started, and each would train alone")
    with expected if wrong else contextlib.nullcontext():
        finish(tmp_path / "a")
    assert (tmp_path / "a").exists() != wrong


def test_force_moves_the_old_folder_aside(tmp_path, capsys):
    finish(tmp_path / "a", "--beta", "0.1")
    finish(tmp_path / "a", "--beta", "0.2", "--force")
    assert capsys.readouterr().out.count(f"demo: the old {tmp_path}/a is now {tmp_path}/a.old-") == 1
    (old,) = tmp_path.glob("a.old-*")
    assert (read_record(old)["given"]["beta"], read_record(tmp_path / "a")["given"]["beta"]) == (0.1, 0.2)


SAME = [
    ("--beta 1e-1", "--beta 0.1"), ("--beta 1e-05", "--beta 0.00001"), ("", "--beta 0.1"), ("--beta 0.1", ""),
    ("--seed 0042", "--seed 42"), ("", "--seed 42"), ("--model_name_or_path runs/a/", "--model_name_or_path runs/a"),
    ("--model_name_or_path 007", "--model_name_or_path 007"), ("--rows none", ""), ("--names a", "--names=a"),
    ("--per_device_eval_batch_size 4", "--per_device_eval_batch_size 2"),
    ("--eval_strategy no", "--eval_strategy steps"),
    ("", "--gradient_checkpointing false"), ("--no_gradient_checkpointing", ""),
    ("--no_load_best_model_at_end", ""), ("--logging_steps 1", "--logging_steps 2"),
]  # fmt: skip
OTHER = [
    ("--beta 0.1", "--beta 0.2"), ("--beta 0.2", ""), ("", "--rows 5"), ("--rows 5", ""),
    ("--model_name_or_path 007", "--model_name_or_path 7"), ("--model_name_or_path 1e5", "--model_name_or_path 1e05"),
    ("--names a b", "--names b a"), ("", "--load_best_model_at_end"),
    ("--load_best_model_at_end --eval_strategy steps", "--load_best_model_at_end --eval_strategy epoch"),
    ("--load_best_model_at_end", "--load_best_model_at_end --per_device_eval_batch_size 2"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("then", "now", "same"), [*((*pair, True) for pair in SAME), *((*pair, False) for pair in OTHER)]
)
def test_runs_are_compared_by_parsed_values_that_can_change_the_weights(tmp_path, then, now, same):
    """However a number, a default or a path is written; how rows are judged only where the best model is kept."""
    record = finish(tmp_path / "a", *then.split()).record
    again = Run("demo", ["--output_dir", str(tmp_path / "a"), *now.split()])
    assert again.done == same
    assert (changed_inputs(json.loads(json.dumps(record)), again.given) == []) == same


def test_sampled_evaluation_decides_the_weights_of_a_rollout_stage():
    """It draws random numbers; in any other stage, and without it, evaluation changes nothing."""
    record = {"stage": "grpo", "given": {"eval_strategy": "steps", "save_steps": 5}}
    now = {"eval_strategy": "no", "save_steps": "10"}
    assert changed_inputs(record, now) == ["eval_strategy: 'steps' then, 'no' now"]
    assert changed_inputs(record | {"stage": "dpo"}, now) == []


def test_a_record_of_an_earlier_version_is_compared_by_what_it_took():
    """It holds what YAML 1.1 made of the values (34 for 0042, text for 1e-3) beside the arguments as they were."""
    record = {
        "given": {"seed": 34, "learning_rate": "1e-3", "model_name_or_path": 100000.0, "use_peft": True, "beta": 0.1},
        "arguments": {"seed": 42, "learning_rate": 0.001, "model_name_or_path": "1e5", "use_peft": True, "beta": 0.1},
    }
    now = {"seed": "0042", "learning_rate": "0.001", "model_name_or_path": "1e5", "use_peft": "true", "beta": "1e-1"}
    assert changed_inputs(record, now) == []
    assert changed_inputs(record, now | {"beta": "0.2"}) == ["beta: 0.1 then, 0.2 now"]


def test_one_folder_takes_what_its_name_says(tmp_path, monkeypatch):
    """The record and the trainer's config name the same folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("007", "2026_11_30", "3.10", "1:30"):
        with Run("demo", ["--output_dir", name]) as run:
            (args,) = run.parse(Demo)
        assert (str(run.folder), args.output_dir) == (name, name)
    assert {path.name for path in tmp_path.iterdir()} == {"007", "2026_11_30", "3.10", "1:30"}


def test_a_misspelt_flag_on_an_existing_folder_is_named_and_changes_nothing(tmp_path):
    """Neither is it another run, to be forced, nor does --force move anything aside for it."""
    finish(tmp_path / "a", "--beta", "0.1")
    before = (tmp_path / "a" / "run.json").read_bytes()
    for words in (["--betta", "0.2"], ["--betta", "0.2", "--force"], ["--beta", "high", "--force"]):
        mistake = pytest.raises(
            UserError, match=r"--betta: unknown flag; did you mean --beta\?|--beta: expected a number"
        )
        with mistake, Run("demo", ["--output_dir", str(tmp_path / "a"), *words]) as run:
            run.parse(Demo)
        assert (tmp_path / "a" / "run.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_force_moved_aside_comes_back_when_the_new_run_cannot_start(tmp_path, capsys):
    """A mistake that only the data shows: the old run is where it was, and nothing is said of having moved it."""
    finish(tmp_path / "a", "--beta", "0.1")
    before = (tmp_path / "a" / "run.json").read_bytes()

    def stage() -> None:
        with Run("demo", ["--output_dir", str(tmp_path / "a"), "--force"]) as run:
            run.parse(Demo)
            raise UserError("no such column")

    with pytest.raises(UserError, match="no such column"):
        stage()
    assert (tmp_path / "a" / "run.json").read_bytes() == before
    assert "is now" not in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_force_does_not_pull_the_folder_from_under_a_living_run(tmp_path):
    finish(tmp_path / "a")
    record = read_record(tmp_path / "a") | {"status": "running"}
    record["process"] |= {"host": "another"}
    write_json(tmp_path / "a" / "run.json", record)
    with pytest.raises(UserError, match="is running in"):
        Run("demo", ["--output_dir", str(tmp_path / "a"), "--force"])


def test_another_stage_s_folder_is_refused(tmp_path):
    finish(tmp_path / "a")
    with pytest.raises(UserError, match="holds a demo run"):
        Run("other", ["--output_dir", str(tmp_path / "a")]).parse(Demo)


def test_changed_parents_and_data_make_a_run_stale(tmp_path):
    """A parent is its safetensors' bytes, a data source the bytes of its file; other files do not count."""
    parent = tmp_path / "parent"
    parent.mkdir()
    (parent / "model.safetensors").write_bytes(b"weights")
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "a"}\n')
    source = {"name": str(data), "split": "train", "rows": 1, "fingerprint": file_sha256(data)}
    run = finish(tmp_path / "a", parents=[parent_of(str(parent))], sources=[source])
    assert changed_inputs(run.record, run.given) == []
    (parent / "README.md").write_text("a card")
    assert changed_inputs(run.record, run.given) == []
    (parent / "model.safetensors").write_bytes(b"other weights")
    data.write_text('{"text": "b"}\n')
    assert [change.split()[1] for change in changed_inputs(run.record, run.given)] == ["weights", "data"]


def test_a_failure_is_recorded_and_a_user_error_leaves_no_trace(tmp_path):
    with pytest.raises(ZeroDivisionError), Run("demo", ["--output_dir", str(tmp_path / "a")]):
        raise ZeroDivisionError("division by zero")
    record = read_record(tmp_path / "a")
    assert (record["status"], record["error"]) == ("failed", "ZeroDivisionError: division by zero")
    with pytest.raises(UserError), Run("demo", ["--output_dir", str(tmp_path / "b")]):
        raise UserError("no such column")
    assert not (tmp_path / "b").exists()


def test_a_running_record_of_a_dead_process_is_interrupted(tmp_path):
    """A pid that is given again to another process does not bring the old run back: its start time differs."""
    finish(tmp_path / "a")
    record = read_record(tmp_path / "a") | {"status": "running"}
    alive = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        record["process"] = process_identity(alive.pid)
        write_json(tmp_path / "a" / "run.json", record)
        assert status_of(record) == "running"
        with pytest.raises(UserError, match=f"another process \\({alive.pid}\\) is running"):
            Run("demo", ["--output_dir", str(tmp_path / "a")])
        record["process"]["start"] += 10
        assert status_of(record) == "interrupted"
    finally:
        alive.kill()
        alive.wait()


def test_output_dir_is_required_and_must_not_be_a_file(tmp_path):
    with pytest.raises(UserError, match=r"needs .*--output_dir"):
        Run("demo", [])
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        Run("demo", ["--output_dir", str(tmp_path / "file")])


def test_secrets_are_not_recorded(tmp_path):
    finish(tmp_path / "a", "--hub_token", "hf_secret")
    assert "hf_secret" not in (tmp_path / "a" / "run.json").read_text()


def test_a_signal_outside_training_ends_the_run_as_interrupted(tmp_path):
    with pytest.raises(SystemExit) as caught, Run("demo", ["--output_dir", str(tmp_path / "a")]):
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.code == 128 + signal.SIGTERM
    assert read_record(tmp_path / "a")["status"] == "interrupted"


def test_a_signal_in_training_waits_for_the_checkpoint(tmp_path):
    """The trainer goes on to its next step end; only after ``training()`` does the run exit, with 143."""
    seen = []

    def interrupted_training() -> None:
        with Run("demo", ["--output_dir", str(tmp_path / "a")]) as run, run.training():
            os.kill(os.getpid(), signal.SIGTERM)
            seen.append(run.stop_signal)

    with pytest.raises(SystemExit) as caught:
        interrupted_training()
    assert seen == [signal.SIGTERM]
    assert caught.value.code == 143


def test_a_reader_never_sees_half_a_record(tmp_path):
    """The file is replaced, not rewritten: an open handle still reads the old content whole."""
    path = tmp_path / "run.json"
    write_json(path, {"a": 1})
    with open(path) as before:
        write_json(path, {"a": 2})
        assert json.load(before) == {"a": 1}
    assert json.loads(path.read_text()) == {"a": 2}
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_the_same_rows_a_step_may_be_split_over_another_number_of_processes(monkeypatch):
    """Two processes with 4 rows, one with 8, one with 4 twice and four with 2 take 8 rows a step; one with 4 does not.
    What is not given is Trainer's default, 8 rows and one step."""
    record = {"given": {"per_device_train_batch_size": 4, "beta": 0.1}, "processes": 2}

    def changes(processes: int, **given) -> list[str]:
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        return changed_inputs(record, {"beta": 0.1} | given)

    assert changes(2, per_device_train_batch_size=4) == []
    assert changes(1, per_device_train_batch_size=8) == []
    assert changes(1) == []
    assert changes(1, per_device_train_batch_size=4, gradient_accumulation_steps=2) == []
    assert changes(4, per_device_train_batch_size=2) == []
    assert changes(2, per_device_train_batch_size=8) == ["per_device_train_batch_size: 4 then, 8 now"]
    assert changes(1, per_device_train_batch_size=8, beta=0.2) == ["beta: 0.1 then, 0.2 now"]


def test_a_push_is_taken_from_the_trainer_and_offered_again_when_it_is_too_late(tmp_path, capsys):
    """Trainer makes the repository before it trains; the run does it after. A finished run says how to push it."""
    from trl import SFTConfig

    given = {"output_dir": tmp_path / "run", "push_to_hub": "true", "hub_model_id": "me/run", "bf16": "false"}
    words = [str(word) for pair in given.items() for word in (f"--{pair[0]}", pair[1])]
    with Run("sft", words) as run:
        (config,) = run.parse(SFTConfig)
        assert (run.push, config.push_to_hub, config.hub_model_id) == (True, False, "me/run")
        assert run.record["arguments"]["push_to_hub"] is True
    capsys.readouterr()
    assert Run("sft", words).done
    assert f"python -m pipeline.publish.hub push {tmp_path / 'run'} me/run" in capsys.readouterr().out
