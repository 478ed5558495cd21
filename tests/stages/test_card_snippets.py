"""The code of every stage's card runs as it is written, in a process that has transformers and PEFT alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pipeline.model.loading import load_model
from pipeline.model.tokens import encode_exchange
from pipeline.publish.cards import write_card
from pipeline.rewards.learned import load_reward_model, score_sequences
from pipeline.runtime.run_json import read_record
from tests.stages.conftest import flags, write_rows

STAGES = {"pretrain", "sft", "dpo", "reward_model", "ppo", "grpo", "rsft", "continual", "merge"}
IDS = [[1, 5, 7, 9, 20]]
# Runs the code of every card and writes, by the card's folder, what went wrong, the scores, and the logits of IDS.
STRANGER = f"""
import json, sys, traceback
import torch
package = sys.modules.get("pipeline")
found = {{}}
for folder, code, ours in json.load(open(sys.argv[1])):
    for name in ("pipeline", "trl"):
        sys.modules.pop(name, None)
        if not ours:
            sys.modules[name] = None
    place = {{}}
    try:
        exec(code, place)
        with torch.no_grad():
            logits = place["model"].eval()(input_ids=torch.tensor({IDS})).logits.tolist()
        found[folder] = [None, place.get("scores"), logits]
    except Exception:
        found[folder] = [traceback.format_exc(), None, None]
json.dump(found, open(sys.argv[2], "w"))
"""


def code_of(folder: Path) -> str:
    """The first Python block of a card, with the folder's path for the name that stands for it."""
    (block,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    assert f"'{folder.name}'" in block
    return block.replace(f"'{folder.name}'", repr(str(folder)))


@pytest.fixture(scope="module")
def cards(tiny_model, foreign_model, sft_file, preference_file, tmp_path_factory):
    """Folders with cards by ``<base>-<stage>-<kind>``: real runs of SFT, reward model, merge and continual, adapters
    and whole models, and the cards of the other stages over them."""
    from pipeline.continual import main as continual
    from pipeline.merge import main as merge
    from pipeline.reward_model import main as reward_model
    from pipeline.sft import main as sft

    root = tmp_path_factory.mktemp("cards")
    lora = {"use_peft": True, "lora_target_modules": "all-linear"}
    found = {}
    for base, start in (("narlm", tiny_model), ("llama", foreign_model)):
        common = {"model_name_or_path": start, "eval_rows": 4, "max_steps": 1, "save_steps": 5, "use_cpu": True}
        for kind, options in (("adapter", lora), ("whole", {})):
            folder = found[f"{base}-sft-{kind}"] = root / f"{base}-sft-{kind}"
            sft(flags(dataset_name=sft_file, output_dir=folder, **common, **options))
        folder = found[f"{base}-reward_model-adapter"] = root / f"{base}-reward_model-adapter"
        reward_model(flags(dataset_name=preference_file, output_dir=folder, **common, **lora))
        merged = found[f"{base}-merge-reward"] = root / f"{base}-merge-reward"
        merge(["--model_name_or_path", str(folder), "--output_dir", str(merged)])
        copies = [
            (stage, kind) for stage in ("dpo", "ppo", "grpo", "rsft", "continual") for kind in ("adapter", "whole")
        ]
        for stage, kind in [*copies, ("pretrain", "whole"), ("merge", "whole"), ("reward_model", "whole")]:
            source = merged if stage == "reward_model" else found[f"{base}-sft-{kind}"]
            folder = found[f"{base}-{stage}-{kind}"] = root / f"{base}-{stage}-{kind}"
            shutil.copytree(source, folder)
            write_card(folder, read_record(folder) | {"stage": stage})
    corpus = write_rows(root / "corpus.jsonl", [{"prompt": f"What is {a}?", "completion": "Good."} for a in range(8)])
    for method in ("bias", "layernorm"):
        folder = found[f"narlm-continual-{method}"] = root / f"narlm-continual-{method}"
        continual(
            flags(
                model_name_or_path=tiny_model, dataset_name=corpus, output_dir=folder, method=method, max_steps=1,
                save_steps=5, use_cpu=True,
            )
        )  # fmt: skip
    routed = found["narlm-continual-routed"] = root / "narlm-continual-routed"
    shutil.copytree(found["narlm-sft-adapter"], routed)
    (routed / "routes" / "1").mkdir(parents=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (routed / name).rename(routed / "routes" / "1" / name)
    config = {"peft_type": "NARLM", "method": "routed", "base_model_name_or_path": str(tiny_model)}
    (routed / "adapter_config.json").write_text(json.dumps(config))
    write_card(routed, read_record(routed) | {"stage": "continual"})
    return found


@pytest.fixture(scope="module")
def outcome(cards, tmp_path_factory):
    """What the cards' code did, in one process, the same code of a base once, and last what needs this package."""
    root = tmp_path_factory.mktemp("stranger")
    codes = {name: code_of(folder) for name, folder in cards.items()}
    distinct = {name[:5] + code.replace(str(cards[name]), ""): (name, code) for name, code in reversed(codes.items())}
    work = sorted(((name, code, "pipeline" in code) for name, code in distinct.values()), key=lambda part: part[2])
    (root / "work.json").write_text(json.dumps(work))
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(root / "work.json"), str(root / "found.json")], cwd=root, timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(root / "modules")},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((root / "found.json").read_text())


def test_every_stage_has_a_card_here(cards):
    assert {name.split("-")[1] for name in cards} == STAGES


def test_the_code_of_every_card_loads_what_was_saved(cards, outcome):
    """Without an error, and with the logits that this package computes; a card says of the model what it is."""
    assert {name: error for name, (error, _, _) in outcome.items() if error} == {}
    for name, folder in cards.items():
        is_reward = "reward" in name
        card = (folder / "README.md").read_text()
        assert f"pipeline_tag: text-{'classification' if is_reward else 'generation'}" in card
        # What the load report names as missing is explained where there is one: a score head that PEFT brings.
        assert ("score.weight" in card) == (name.endswith("reward_model-adapter")), name
        assert ("trust_remote_code" in card) == (name.startswith("narlm") and "bias" not in name), name
        if name not in outcome:  # its code is another card's
            continue
        auto_class, options = AutoModelForCausalLM, {}
        if is_reward:
            auto_class, options = AutoModelForSequenceClassification, {"num_labels": 1}
        with torch.no_grad():
            place = folder / "routes" / "1" if name.endswith("routed") else folder
            logits = load_model(str(place), auto_class=auto_class, **options)(input_ids=torch.tensor(IDS)).logits
        assert (torch.tensor(outcome[name][2]) - logits).abs().max() < 1e-5, name


@pytest.mark.parametrize("base", ["narlm", "llama"])
def test_the_code_of_a_reward_models_card_gives_the_scores_that_the_stages_give(cards, outcome, base):
    """Two answers in one batch, padded, by an adapter and by the model it was merged into."""
    model, tokenizer = load_reward_model(str(cards[f"{base}-reward_model-adapter"]))
    prompt = [{"role": "user", "content": "What is 2 plus 3?"}]
    ids = [encode_exchange(tokenizer, prompt, answer) for answer in ("5.", "I do not know.")]
    expected = pytest.approx(score_sequences(model, ids, tokenizer.pad_token_id), abs=1e-4)
    found = {name: scores for name, (_, scores, _) in outcome.items() if name.startswith(base) and "reward" in name}
    assert len(found) == 2
    assert all(scores == expected for scores in found.values())
