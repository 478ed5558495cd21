"""The console script: its table, packaged configs by name, and the completion of shells."""

import ast
import os
import re
import shutil
import subprocess
import sys

import pytest

from pipeline.runtime import command_table, commands
from pipeline.runtime.command_table import COMMANDS, as_started, as_typed
from pipeline.runtime.commands import overview
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import config_file, packaged
from tests.conftest import ROOT

CALL = "import sys; from pipeline.runtime.commands import main; main()"


def narlm(*words, cwd=ROOT):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", CALL, *words], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_every_stage_and_tool_is_a_command():
    """Each script of the package is one, and what is none in a room has its name here."""
    scripts = {path.stem for path in (ROOT / "pipeline").glob("*.py")} - {"__init__"}
    assert scripts <= set(COMMANDS)
    assert set(COMMANDS) - scripts == {"check", "score", "retrieval", "push", "completion"}
    lines = overview().splitlines()
    assert all(sum(line.startswith(f"  {name} ") for line in lines) == 1 for name in COMMANDS)


def test_the_list_and_a_mistyped_name():
    assert narlm().stdout.strip() == overview()
    wrong = narlm("dop")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: there is no command 'dop'; did you mean dpo?; narlm --help lists them\n"
    assert narlm("completion", "tcsh").stderr == "error: narlm completion takes one of bash, zsh, fish\n"


def test_every_command_shows_its_own_help_and_imports_nothing_heavy():
    """The flags of the help, as the completion has them; ``--config`` where there are YAML fields."""
    code = (
        "import sys; from pipeline.runtime.commands import COMMANDS, flags_of\n"
        "print({name: flags_of(name) for name in COMMANDS if name != 'completion'})\n"
        "print([m for m in ('torch', 'transformers', 'trl', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    flags, heavy = map(ast.literal_eval, done.stdout.splitlines())
    assert heavy == []
    assert {"config", "output_dir", "beta", "lora_r"} <= set(flags["dpo"])
    assert {"config", "recipe", "only", "from"} <= set(flags["run"])
    assert {"kind", "split", "tokenizer"} <= set(flags["check"])
    assert {"reward", "file", "out"} <= set(flags["score"])
    assert {"documents", "chunk_by", "query", "oracle_share"} <= set(flags["retrieval"])
    assert {"private", "revision"} <= set(flags["push"])
    assert all(found for found in flags.values())


def test_a_command_passes_its_words_on_from_any_folder(tmp_path):
    """data.check on a file of this folder, and a packaged config by name."""
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    done = narlm("check", "pairs.jsonl", cwd=tmp_path)
    assert done.returncode == 0
    assert "preference" in done.stdout
    wrong = narlm("sft", "--config", "quickstart/sfft", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.strip() == "error: --config: there is no file quickstart/sfft; did you mean quickstart/sft?"


def test_a_packaged_config_goes_by_several_names_and_a_file_here_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = ROOT / "configs" / "quickstart" / "dpo.yaml"
    for name in ("quickstart/dpo", "quickstart/dpo.yaml", "configs/quickstart/dpo.yaml"):
        assert config_file(name) == expected
    for name in ("quickstart", "configs/quickstart/recipe.yaml"):
        assert config_file(name) == ROOT / "configs" / "quickstart" / "recipe.yaml"
    (tmp_path / "quickstart").mkdir()
    (tmp_path / "quickstart" / "dpo").write_text("beta: 1")
    assert str(config_file("quickstart/dpo")) == "quickstart/dpo"
    with pytest.raises(UserError, match="no file quikstart; did you mean quickstart"):
        config_file("quikstart")
    recipes = ", ".join(packaged("*/recipe.yaml"))
    with pytest.raises(UserError, match=rf"no file nope; packaged are {recipes}$"):
        config_file("nope", "*/recipe.yaml")
    (tmp_path / "mine.yaml").write_text("beta: 1")
    with pytest.raises(UserError, match=r"no file ./mien.yaml; did you mean mine.yaml\?$"):
        config_file("./mien.yaml")
    assert len(packaged("*/*.yaml")) == len(list((ROOT / "configs").glob("*/*.yaml")))


def test_a_next_step_is_named_as_this_one_was_typed(tmp_path, monkeypatch):
    """By a script of this folder, by a module or a script elsewhere, and by the console script."""
    monkeypatch.setattr(command_table, "started", set())
    commands.flags_of("dpo")  # reading a help text starts nothing
    assert not command_table.started
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [str(ROOT / "pipeline" / "dpo.py")])
    assert as_typed("generate") == "python pipeline/generate.py"
    assert as_typed("push") == "python -m pipeline.publish.hub push"
    monkeypatch.chdir(tmp_path)
    assert as_typed("generate") == "python -m pipeline.generate"
    done = narlm_says('from pipeline.runtime.command_table import as_typed; print(as_typed("generate"))', tmp_path)
    assert done == "python -m pipeline.generate\n"
    monkeypatch.setattr(command_table, "started", {"dpo"})
    assert [as_typed("generate"), as_typed("push")] == ["narlm generate", "narlm push"]


def test_a_help_shows_the_command_as_it_was_started(monkeypatch):
    """Every launch line of every command; a script and a module show their own."""
    for name in set(COMMANDS) - {"completion"}:
        text = narlm(name, "--help").stdout
        assert f"narlm {name} " in text, name
        assert not re.search(r"^ +(python|accelerate launch) ", text, re.M), name
    script = [sys.executable, "pipeline/dpo.py", "--help"]
    text = subprocess.run(script, cwd=ROOT, capture_output=True, text=True).stdout
    assert "accelerate launch pipeline/dpo.py --config" in text
    monkeypatch.setattr(command_table, "started", {"run"})
    lines = "python -m pipeline.run x\npython pipeline/run.py x\npython -m pipeline.publish.hub push r\npipeline.run"
    assert as_started(lines) == "narlm run x\nnarlm run x\nnarlm push r\npipeline.run"


def narlm_says(code, cwd):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True
    ).stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["narlm", "dp"], {"dpo"}),
        (["narlm", "dpo", "--bet"], {"--beta"}),
        (["narlm", "dpo", "--config", "quickstart/d"], {"quickstart/dpo"}),
        (["narlm", "run", "smol"], {"smollm2-135m"}),
        (["narlm", "completion", "f"], {"fish"}),
    ],
)
def test_bash_completes(words, expected, completion):
    given = " ".join(f"'{word}'" for word in words)
    script = f"source {completion}; COMP_WORDS=({given}); COMP_CWORD={len(words) - 1}; _narlm; echo ${{COMPREPLY[@]}}"
    done = subprocess.run(["bash", "-c", script], cwd=completion.parent, capture_output=True, text=True)
    assert (set(done.stdout.split()), done.stderr) == (expected, "")


@pytest.fixture(scope="module")
def completion(tmp_path_factory):
    path = tmp_path_factory.mktemp("shell") / "narlm.bash"
    path.write_text(narlm("completion", "bash").stdout)
    return path


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_have_the_same_flags(shell, tmp_path):
    text = narlm("completion", shell).stdout
    assert "--beta" in text or "-l beta" in text
    assert all(name in text for name in COMMANDS)
    if shutil.which(shell):  # where it is installed it also reads the script
        (tmp_path / "script").write_text(text)
        assert subprocess.run([shell, "-n", tmp_path / "script"]).returncode == 0


def test_small_commands_are_named_as_they_were_typed():
    for name in ("check", "score", "push"):
        assert f"usage: narlm {name} [-h]" in narlm(name, "--help").stdout
        wrong = narlm(name)
        assert (wrong.returncode, wrong.stderr.endswith(f"; see narlm {name} --help\n")) == (2, True)
    module = [sys.executable, "-m", "pipeline.publish.hub", "push", "--help"]
    done = subprocess.run(module, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("usage: python -m pipeline.publish.hub push [-h]")


@pytest.mark.parametrize("words", [[], ["dpo", "--help"], ["completion", "bash"]], ids=["list", "help", "completion"])
def test_a_reader_that_has_seen_enough_is_no_error(words):
    """``narlm dpo --help | head -1``: the pipe is closed before the text is written."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CALL, *words]
    done = subprocess.run(command, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_folder_of_a_report_needs_no_flag(tmp_path):
    assert narlm("report", str(tmp_path / "none")).stderr == narlm("report", "--runs", str(tmp_path / "none")).stderr
