"""Recipes: resolved before anything starts, skipped where up to date, run anew where stale."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from pipeline.recipes import scheduler
from pipeline.recipes.recipe import read_recipe
from pipeline.recipes.scheduler import Job
from pipeline.run import main
from pipeline.runtime.errors import UserError
from pipeline.runtime.record import Run
from pipeline.runtime.run_json import read_record
from tests.conftest import ROOT


def recipe(folder, text):
    """A recipe with a config ``a.yaml`` beside it."""
    (folder / "a.yaml").write_text("beta: 0.1\n")
    path = folder / "recipe.yaml"
    path.write_text(text.replace("OUT", str(folder)))
    return path


TWO = """
- {name: first, stage: sft, config: a.yaml, overrides: {output_dir: OUT/first}}
- {name: second, stage: dpo, overrides: {model_name_or_path: "${first}", output_dir: OUT/second, use_peft: true}}
"""


def finished(folder, stage, **given):
    """A completed run of ``stage`` with the given flags."""
    words = [word for key, value in given.items() for word in (f"--{key}", str(value).lower())]
    with Run(stage, ["--output_dir", str(folder), *words]):
        pass


def test_names_stand_for_earlier_output_folders(tmp_path):
    first, second = read_recipe(recipe(tmp_path, TWO))
    assert first.given == {"beta": "0.1", "output_dir": str(tmp_path / "first")}
    assert second.given["model_name_or_path"] == str(tmp_path / "first")
    assert second.given["use_peft"] == "true"
    assert (first.state(), second.state()) == ("new", "new")


def test_states_follow_the_run_records(tmp_path):
    path = recipe(tmp_path, TWO)
    finished(tmp_path / "first", "sft", beta=0.1)
    assert read_recipe(path)[0].state() == "up to date"
    (tmp_path / "a.yaml").write_text("beta: 0.2\n")
    assert read_recipe(path)[0].state() == "stale"
    with pytest.raises(RuntimeError), Run("dpo", read_recipe(path)[1].argv):
        raise RuntimeError("out of memory")
    assert read_recipe(path)[1].state() == "resume"


def test_a_recipe_that_is_up_to_date_starts_nothing(tmp_path, capsys):
    path = recipe(tmp_path, TWO)
    finished(tmp_path / "first", "sft", beta=0.1)
    finished(tmp_path / "second", "dpo", model_name_or_path=tmp_path / "first", use_peft=True)
    main([str(path)])
    assert capsys.readouterr().out.splitlines()[-1] == "everything is up to date"


def test_a_dry_run_prints_the_commands_and_runs_nothing(tmp_path, capsys):
    main([str(recipe(tmp_path, TWO)), "--dry_run", "--from", "second"])
    printed = capsys.readouterr().out
    assert "pipeline/dpo.py --model_name_or_path" in printed
    assert "pipeline/sft.py" not in printed
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1", "must be a list"),
        ("- {name: x}", "expected name, stage, config and overrides"),
        ("- {stage: dpo, extra: 1}", "expected name, stage, config and overrides"),
        ("- {stage: nothing, overrides: {output_dir: x}}", "there is no stage 'nothing'"),
        ("- {stage: dpo, config: b.yaml}", "there is no config"),
        ("- {stage: dpo}", "has no output_dir"),
        ("- {stage: dpo, overrides: [output_dir, x]}", "overrides must be a mapping"),
        (
            "- {name: a, stage: sft, overrides: {output_dir: x/}}\n- {stage: dpo, overrides: {output_dir: x}}",
            "dpo writes to x, as a does",
        ),
        ("- {stage: dpo, overrides: {output_dir: x, model_name_or_path: '${later}'}}", "not the name of an earlier"),
        ("- {stage: dpo, overrides: {output_dir: x}}\n- {stage: dpo, overrides: {output_dir: y}}", "already taken"),
    ],
)
def test_a_bad_recipe_is_refused_before_anything_runs(tmp_path, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read_recipe(recipe(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_an_unknown_entry_is_named_with_those_there_are(tmp_path):
    with pytest.raises(UserError, match="has no entry third; it has first, second"):
        main([str(recipe(tmp_path, TWO)), "--only", "third"])


def test_a_failing_stage_stops_the_recipe_with_its_exit_code_and_a_stale_folder_stays(tmp_path):
    """The first entry is stale (beta changed) and moves aside, but fails for a model folder that is not there: the old
    run is back in its place."""
    text = """
- {name: first, stage: sft, config: a.yaml, overrides: {output_dir: OUT/first, model_name_or_path: ./nowhere}}
- {name: second, stage: dpo, overrides: {output_dir: OUT/second}}
"""
    path = recipe(tmp_path, text)
    finished(tmp_path / "first", "sft", beta=0.9)
    (tmp_path / "a.yaml").write_text("bf16: false\ndataset_name: world/sft\n")
    result = subprocess.run(
        [sys.executable, "-m", "pipeline.run", str(path)], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 2, result.stderr[-2000:]
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 2
    assert "there is no folder ./nowhere" in errors[0]
    assert errors[1].startswith("error: first stopped with exit code 2")
    assert read_record(tmp_path / "first")["given"]["beta"] == "0.9"
    assert list(tmp_path.glob("first.old-*")) == []
    assert "second" not in result.stdout.split("[1/2]")[1]


DIAMOND = """
- {name: a, stage: sft, overrides: {output_dir: OUT/a}}
- {name: b, stage: dpo, overrides: {model_name_or_path: "${a}", output_dir: OUT/b}}
- {name: c, stage: dpo, overrides: {model_name_or_path: "${a}", output_dir: OUT/c}}
- {name: d, stage: assess, overrides: {model_name_or_path: "${b}", baseline: "${c}", output_dir: OUT/d}}
- {name: e, stage: report, overrides: {runs: OUT, output: OUT/e.html}}
"""


@pytest.mark.parametrize(
    ("jobs", "alone", "together", "beside"),
    [(1, {"a": 4, "b": 4, "c": 4, "d": 4, "e": 4}, set(), []), (2, {"a": 4, "d": 4, "e": 4}, {"b", "c"}, [2, 2])],
)
def test_entries_start_when_those_they_name_are_finished(tmp_path, monkeypatch, jobs, alone, together, beside):
    """b and c need a only; d needs both; a report needs everything before it. Four cores, shared by what starts."""
    begun, threads = {}, {}

    def start(item, accelerate_config, given, named):
        begun[item.name], threads[item.name] = set(done()), given
        output = subprocess.PIPE if named else None
        processes[item.name] = subprocess.Popen(["sleep", "0.2"], stdout=output)
        return Job(item, processes[item.name], given)

    def done():
        return {name for name, process in processes.items() if process.poll() is not None}

    processes = {}
    monkeypatch.setattr(scheduler, "start", start)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    main([str(recipe(tmp_path, DIAMOND)), "--jobs", str(jobs)])
    for name, needed in {"b": {"a"}, "c": {"a"}, "d": {"a", "b", "c"}, "e": {"a", "b", "c", "d"}}.items():
        assert needed <= begun[name]
    assert {name: threads[name] for name in alone} == alone
    assert [threads[name] for name in sorted(together)] == beside
    assert ("b" in begun["c"]) == (jobs == 1)


def test_training_goes_before_judging_where_there_is_not_room_for_all(tmp_path, monkeypatch):
    """After a its assessment and two stages could start, and two may: the stages do. One at a time, order stays."""
    text = """
- {name: a, stage: sft, config: a.yaml, overrides: {output_dir: OUT/1}}
- {name: judge, stage: assess, overrides: {output_dir: OUT/2, model_name_or_path: "${a}"}}
- {name: b, stage: dpo, overrides: {output_dir: OUT/3, model_name_or_path: "${a}"}}
- {name: c, stage: ppo, overrides: {output_dir: OUT/4, model_name_or_path: "${a}"}}
"""
    begun = []

    def start(item, accelerate_config, given, named):
        begun.append(item.name)
        process = subprocess.Popen(["sleep", "0.1"], stdout=subprocess.PIPE if named else None)
        return Job(item, process, given)

    monkeypatch.setattr(scheduler, "start", start)
    path = recipe(tmp_path, text)
    (tmp_path / "a.yaml").write_text("bf16: false\n")
    main([str(path), "--jobs", "2"])
    assert begun == ["a", "b", "c", "judge"]
    begun.clear()
    main([str(path), "--jobs", "1"])
    assert begun == ["a", "judge", "b", "c"]


def test_entries_side_by_side_put_their_names_before_their_lines_and_the_first_failure_decides(tmp_path):
    text = """
- {name: first, stage: sft, config: a.yaml, overrides: {output_dir: OUT/1, model_name_or_path: ./nowhere}}
- {name: second, stage: sft, config: a.yaml, overrides: {output_dir: OUT/2, model_name_or_path: ./nothing}}
- {name: third, stage: dpo, overrides: {output_dir: OUT/3, model_name_or_path: "${first}"}}
"""
    path = recipe(tmp_path, text)
    (tmp_path / "a.yaml").write_text("bf16: false\ndataset_name: world/sft\n")
    result = subprocess.run(
        [sys.executable, "-m", "pipeline.run", str(path), "--jobs", "2"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 2
    for name, folder in (("first", "nowhere"), ("second", "nothing")):
        assert f"{name} | error: model_name_or_path: there is no folder ./{folder}" in result.stdout
        assert f"error: {name} stopped with exit code 2" in result.stderr
    assert "third" not in result.stdout


STAGE = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("checkpoint"), sys.exit(143)))
signal.signal(signal.SIGINT, lambda *_: (print("checkpoint"), sys.exit(130)))
print("\\rstep 1\\rstep 2\\nready", flush=True)
time.sleep(20)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_every_running_stage_save_and_starts_no_other(tmp_path, monkeypatch, capsys, number):
    """Two stages run. SIGTERM is passed on to both; SIGINT comes from a terminal, which sends it to them as well. Of a
    progress bar the last state is shown."""
    text = """
- {name: a, stage: sft, overrides: {output_dir: OUT/1}}
- {name: b, stage: sft, overrides: {output_dir: OUT/2}}
- {name: c, stage: dpo, overrides: {output_dir: OUT/3}}
"""
    ready = []

    def show(job, show=Job.show):
        more = show(job)
        if not job.rest and len(ready) < 2:
            ready.append(job)
            if len(ready) == 2:
                threading.Timer(0.1, send).start()
        return more

    def send():
        os.kill(os.getpid(), number)
        for job in ready if number == signal.SIGINT else ():
            job.process.send_signal(number)

    monkeypatch.setattr(scheduler, "_process", lambda *_: ([sys.executable, "-u", "-c", STAGE], None))
    monkeypatch.setattr(Job, "show", show)
    handler = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        main([str(recipe(tmp_path, text)), "--jobs", "2"])
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) is handler
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    for name in "ab":
        assert [line for line in lines if line.startswith(f"{name} | ")] == [
            f"{name} | step 2", f"{name} | ready", f"{name} | checkpoint"
        ]  # fmt: skip
        assert f"error: {name} stopped with exit code {128 + number}" in printed.err
    assert "[3/3]" not in printed.out


@pytest.mark.parametrize("config", [None, "accelerate_configs/ddp.yaml"])
def test_a_stage_is_started_as_accelerate_launch_would(tmp_path, config):
    """Straight from here without a config file; with one through a launcher that hands back the exit code."""
    first, _ = read_recipe(recipe(tmp_path, TWO))
    words, environment = scheduler._process(first, config, 3)
    stage = [str(ROOT / "pipeline" / "sft.py"), *first.argv]
    if config is None:
        assert words == [sys.executable, *stage]
        assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
        assert environment["OMP_NUM_THREADS"] == "3"
    else:
        assert words == [sys.executable, "-m", "pipeline.recipes.launch", "--config_file", config, *stage]
