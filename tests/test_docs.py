"""What the pages tell people to write is what the stages read."""

import ast
import importlib.util
import json
import re
import shlex
from functools import cache

import pytest
import yaml

from pipeline.data.columns import parse_map
from pipeline.recipes.estimate import TRAINED
from pipeline.runtime.arguments import parse, typed
from pipeline.runtime.command_table import COMMANDS
from pipeline.runtime.commands import flags_of
from pipeline.runtime.files import config_file
from tests.conftest import ROOT
from tests.test_configs import parsers
from tests.test_design import ORDER

PAGE = (ROOT / "docs" / "new_dataset.md").read_text(encoding="utf-8")
SECTION = PAGE.split("## A new domain in under ten lines")[1].split("\n## ")[0]
BLOCKS = re.findall(r"```yaml\n(# .*?narlm (\w+) .*?)```", SECTION, re.S)


def test_there_is_one_for_each_kind_of_data():
    assert [stage for _, stage in BLOCKS] == ["sft", "dpo", "grpo", "continual"]


@pytest.mark.parametrize(("text", "stage"), BLOCKS, ids=[stage for _, stage in BLOCKS])
def test_a_new_domain_takes_under_ten_lines_that_the_stage_reads(text, stage, tmp_path):
    """Nine lines at most, the comment with the command included; no key that the stage does not know."""
    assert len(text.strip().splitlines()) < 10
    pytest.importorskip(f"pipeline.{stage}")
    path = tmp_path / "new.yaml"
    path.write_text(text)
    types = parsers(stage)
    if len(types) == 1:  # continual's trainer is SFT's unless its kind is preference
        types = (*types, *parsers("sft")[1:])
    parsed = parse(["--config", str(path), "--use_cpu", "--bf16", "false"], *types)
    written = yaml.safe_load(text)["dataset_map"]
    assert parsed[1].dataset_map == written
    # The same as a mapping, which YAML offers as naturally.
    path.write_text(yaml.safe_dump(yaml.safe_load(text) | {"dataset_map": parse_map(written)}))
    mapped = parse(["--config", str(path), "--use_cpu", "--bf16", "false"], *types)[1].dataset_map
    assert parse_map(mapped) == mapped == parse_map(written)
    assert importlib.import_module(f"pipeline.{stage}").main


def commands() -> list[tuple[str, list[str]]]:
    """``(page, words)`` of every command in a fenced block of the README and docs, as a shell would split them."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            lines = block.replace("\\\n", " ").splitlines() if language in ("", "bash") else []
            found += [(page.name, shlex.split(line, comments=True)) for line in lines if re.match(STARTS, line)]
    return found


STARTS = r"narlm |accelerate launch |python -m pipeline|python pipeline/"
LAUNCHER = {"config_file", "num_processes"}  # accelerate's own flags


def as_stage(words: list[str]) -> tuple[str, list[str]]:
    """The command of ``narlm`` that the words start, and what it is given."""
    if words[0] == "narlm":
        return words[1], words[2:]
    place = next(i for i, word in enumerate(words) if word.startswith(("pipeline/", "pipeline.")))
    launcher = {word[2:] for word in words[:place] if word.startswith("--")}
    assert launcher <= (LAUNCHER if words[0] == "accelerate" else set())
    return re.sub(r"^pipeline[./]|\.py$", "", words[place]), words[place + 1 :]


def test_every_command_of_the_pages_is_understood():
    """The command exists, each of its flags is one of its own, and each packaged config that it names is there.

    Training stages type the values as well. What stands for something of the reader's (a file, a model) is not read.
    """
    found = commands()
    assert len(found) >= 55
    assert {page for page, _ in found} >= {
        "README.md", "assess.md", "continual.md", "jobs.md", "new_dataset.md", "retrieval.md", "rewards.md", "rlhf.md",
        "scaling.md", "unified.md",
    }  # fmt: skip
    known = {}
    for page, words in found:
        name, given = as_stage(words)
        assert name in COMMANDS, f"{page}: {words}"
        trains = name in TRAINED
        config = given[given.index("--config") + 1] if "--config" in given and name != "check" else ""
        if config.startswith("my"):  # the reader's own file
            given = [word for word in given if word not in ("--config", config)]
        elif config:
            assert config_file(config).is_file()
        if name == "run":
            assert config_file(given[0]).is_file()
        if name not in known:
            known[name] = parsers(name) if trains else flags_of(name)
        if trains:
            typed(given, *(known[name] if name != "continual" else (*known[name], *parsers("sft")[1:])))
        else:
            flags = {word[2:] for word in given if word.startswith("--")}
            assert flags <= set(known[name]), f"{page}: {' '.join(words)}"


# `file.py`, `file.py: name`, `file.py::name`; after a file, in the same cell, also `name` and `::name`.
FILE = re.compile(r"([\w/]+\.py)(?:(?:::|: )([\w.]+))?")
NAME = re.compile(r"(?:::)?([A-Za-z_]\w*(?:\.\w+)*)")
# The page's own shorthand.
ALIASES = {"model.py": "model/narlm/modeling_narlm.py"}


@cache
def names_in(file) -> set[str]:
    """What a file defines at its top, and the methods and attributes of its classes as ``Class.name``."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found |= {target.id for target in targets if isinstance(target, ast.Name)}
        found |= {node.name} if isinstance(node, ast.FunctionDef | ast.ClassDef) else set()
        for inner in ast.walk(node) if isinstance(node, ast.ClassDef) else ():
            stored = isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store)
            name = inner.attr if stored else getattr(inner, "name", None)
            found |= {f"{node.name}.{name}"} if name else set()
    return found


def references(page: str) -> list[tuple[str, str | None]]:
    """``(file below the repository's root, name in it or None)`` of everything a page's tables point at."""
    found = []
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for cell in re.findall(r"[^|]+", "".join(line + "|" for line in text.splitlines() if line.startswith("|"))):
        file = None
        for quoted in re.findall(r"`([^`]+)`", cell):
            whole, part = FILE.fullmatch(quoted), NAME.fullmatch(quoted)
            if whole:
                file = ALIASES.get(whole[1], whole[1])
                if not file.startswith(("tests/", "pipeline/", "benchmarks/")):
                    file = ("tests/" if "test_" in file.rpartition("/")[2] else "pipeline/") + file
                found.append((file, whole[2]))
            elif part and (file or quoted.startswith("::")):
                found.append((str(file), part[1]))
    return found


@pytest.mark.parametrize(("page", "at_least"), [("errata.md", 25), ("paper_map.md", 90)])
def test_errata_and_paper_map_name_only_what_exists(page, at_least):
    """A line that points at a test or a function finds it. The number keeps the test from reading nothing."""
    found = references(page)
    assert len(found) >= at_least
    wrong = [
        f"{file}: {name}"
        for file, name in found
        if not (ROOT / file).is_file() or (name and name not in names_in(ROOT / file))
    ]
    assert wrong == []


def test_the_page_s_correlations_are_the_benchmark_s():
    """The runs kept in benchmarks/continual.jsonl give the figures that docs/continual.md argues from."""
    file = ROOT / "benchmarks" / "continual.py"
    spec = importlib.util.spec_from_file_location("continual_benchmark", file)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    rows = [json.loads(line) for line in file.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]
    found = [line.rpartition(": ")[2] for line in benchmark.correlations(rows)[2:]]
    page = " ".join((ROOT / "docs" / "continual.md").read_text(encoding="utf-8").split())
    lost, risen, mean_lost, mean_risen, by_accuracy, by_loss = found
    assert f"correlation is {lost} with the accuracy lost and {risen} with the rise of" in page
    assert f"({mean_lost} and {mean_risen} over the means of 21 variants)" in page
    assert f"{by_accuracy[1:]} with forgetting by accuracy and {by_loss[1:]} by loss, over 63 runs" in page


def test_contributing_draws_every_room_and_names_only_what_exists():
    """The map has one line per floor of test_design, and every path of the page is there (NAME is the reader's)."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawn = text.split("```")[1]
    for number, rooms in enumerate(ORDER, start=1):
        (line,) = [line for line in drawn.splitlines() if line.startswith(f" floor {number} ")]
        assert all(room in line for room in rooms)
    after = [
        line.split("|")[3] for line in text.split("What a newcomer reads")[1].splitlines() if line.startswith("|")
    ]
    before = text.split("## Before and after")[0]
    paths = re.findall(r"`([\w/]+/[\w.]+\.(?:py|md))(?:: (\w+))?(?:::\w+)?[\w .]*`", before + "".join(after))
    assert len(paths) >= 30
    for path, name in paths:
        file = next((f for f in (ROOT / path, ROOT / "pipeline" / path) if f.is_file()), None)
        assert file or "NAME" in path, path
        assert not name or name in names_in(file), f"{path}: {name}"
