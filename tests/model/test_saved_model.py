"""Saved folders: with our package, without it, in shards, as other heads, quantised, resized."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import pipeline.model
from pipeline.model import (
    NarLMForCausalLM,
    NarLMForSequenceClassification,
    NarLMForTokenClassification,
    NarLMModel,
)

CODE_FILES = ("configuration_narlm.py", "modeling_narlm.py", "versions_narlm.py")
VISION_FILES = ("configuration_vision_narlm.py", "modeling_vision_narlm.py", "processing_vision_narlm.py")
WITHOUT_US = """
import sys

class NoPipeline:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "pipeline":
            raise ImportError("the package is not here")

sys.meta_path.insert(0, NoPipeline())
import torch
from transformers import (
    AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoModelForTokenClassification
)

folder, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
x = torch.arange(3, 15)[None]
with torch.no_grad():
    logits = model(x).logits
tokens = model.generate(x, max_new_tokens=4, do_sample=False, eos_token_id=None)
names = [type(model).__name__]
model.save_pretrained(out)  # and on from here: a second generation, made without the package
for auto in (AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification):
    names.append(type(auto.from_pretrained(folder, trust_remote_code=True)).__name__)
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
fresh = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
names.append(type(fresh).__name__)
again = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
with torch.no_grad():
    assert torch.equal(again(x).logits, logits)
try:
    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code" in str(error)
else:
    raise AssertionError("code from the folder ran without trust")
assert "pipeline" not in sys.modules
torch.save({"logits": logits, "tokens": tokens, "names": names}, out + "/result.pt")
"""


def test_loads_without_our_package(narlm, tmp_path):
    """A fresh process in which ``pipeline`` cannot be imported: same logits, same greedy tokens, every head."""
    model = narlm("mixed", "sdpa")
    model.save_pretrained(tmp_path / "model")
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    command = [sys.executable, "-I", "-c", WITHOUT_US, str(tmp_path / "model"), str(tmp_path / "again")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    result = torch.load(tmp_path / "again" / "result.pt")
    x = torch.arange(3, 15)[None]
    with torch.no_grad():
        torch.testing.assert_close(result["logits"], model(x).logits, atol=1e-6, rtol=0)
    assert torch.equal(result["tokens"], model.generate(x, max_new_tokens=4, do_sample=False, eos_token_id=None))
    assert result["names"] == [
        "NarLMForCausalLM",
        "NarLMModel",
        "NarLMForSequenceClassification",
        "NarLMForTokenClassification",
        "NarLMForCausalLM",
    ]
    for folder in ("model", "again"):
        assert set(CODE_FILES) <= {path.name for path in (tmp_path / folder).iterdir()}


@pytest.mark.parametrize("trust", [None, False, True])
def test_loads_with_our_package(narlm, tokens, tmp_path, trust):
    """Our own classes, whatever is said about trust, and every tensor as it was."""
    model = narlm("llama", "sdpa")
    model.save_pretrained(tmp_path)
    heads = {
        AutoModel: NarLMModel,
        AutoModelForCausalLM: NarLMForCausalLM,
        AutoModelForSequenceClassification: NarLMForSequenceClassification,
        AutoModelForTokenClassification: NarLMForTokenClassification,
    }
    for auto, kind in heads.items():
        assert type(auto.from_pretrained(tmp_path, trust_remote_code=trust)) is kind
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=trust)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_every_class_writes_the_whole_auto_map(narlm, tmp_path):
    """A reward model's folder loads as a causal model too: auto_map names every head, whichever was saved."""
    NarLMForSequenceClassification(narlm("llama").config).save_pretrained(tmp_path)
    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]
    assert auto_map == {
        "AutoConfig": "configuration_narlm.NarLMConfig",
        "AutoModel": "modeling_narlm.NarLMModel",
        "AutoModelForCausalLM": "modeling_narlm.NarLMForCausalLM",
        "AutoModelForSequenceClassification": "modeling_narlm.NarLMForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_narlm.NarLMForTokenClassification",
    }


def test_code_files_stand_alone():
    """The files saved with a model import torch, transformers, huggingface_hub, the stdlib and each other."""
    folder = Path(pipeline.model.__file__).parent / "narlm"
    files = (*CODE_FILES, *VISION_FILES)
    assert sorted(path.name for path in folder.glob("*_narlm.py")) == sorted(files)
    for name in files:
        for node in ast.walk(ast.parse((folder / name).read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1, name
                assert f"{node.module}.py" in files, name
            elif isinstance(node, ast.ImportFrom | ast.Import):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                for module in modules:
                    top = module.split(".")[0]
                    allowed = {"torch", "transformers", "huggingface_hub"} | sys.stdlib_module_names
                    assert top in allowed, f"{name} imports {module}"


def test_shards(narlm, tokens, tmp_path):
    model = narlm("llama", "sdpa")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize("kind", ["paper", "llama"])
def test_resizing_the_vocabulary(narlm, tokens, kind):
    """Longer: old logits stay, b_out grows along, the loss works; and a round trip of the size."""
    model = narlm(kind)
    logits = model(tokens).logits
    model.resize_token_embeddings(70, mean_resizing=False)
    assert model.lm_head.weight.shape == (70, 32)
    assert model.lm_head.bias.shape == (70,)
    assert model.config.vocab_size == 70
    torch.testing.assert_close(model(tokens).logits[..., :61], logits)
    assert model(tokens, labels=tokens + 5).loss.isfinite()
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == (kind == "llama")


def test_reward_head_reads_the_last_real_token(narlm, tokens):
    """R_phi(x_{1:T}): the score of a padded row, on either side, is the score of the row alone."""
    torch.manual_seed(0)
    config = narlm("paper").config
    config.num_labels = 1
    model = NarLMForSequenceClassification(config).eval()
    alone = model(tokens[1:, :7]).logits
    for row in (pad_left(tokens[1, :7]), pad_right(tokens[1, :7])):
        x = torch.stack((tokens[0], row))
        scores = model(x, attention_mask=(x != 0).long()).logits
        assert scores.shape == (2, 1)
        torch.testing.assert_close(scores[1:], alone, atol=1e-5, rtol=0)


def pad_left(row):
    return torch.cat((torch.zeros(5, dtype=row.dtype), row))


def pad_right(row):
    return torch.cat((row, torch.zeros(5, dtype=row.dtype)))


def test_half_precision(narlm, tokens, tmp_path):
    """bf16 from disk and .to(bf16): logits within rounding of fp32 (8 bits of mantissa, two layers)."""
    for kind in ("llama", "learned"):
        model = narlm(kind)
        model.save_pretrained(tmp_path / kind)
        half = AutoModelForCausalLM.from_pretrained(tmp_path / kind, dtype=torch.bfloat16)
        assert half.dtype == torch.bfloat16
        with torch.no_grad():
            full, small = model(tokens).logits, half(tokens).logits
        assert small.dtype == torch.bfloat16
        assert (full - small.float()).abs().max() < 0.05 * full.abs().max()


@pytest.mark.parametrize(
    ("options", "kind", "least"),
    [
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "Linear4bit", 0.9),
        ({"load_in_8bit": True}, "Linear8bitLt", 0.99),
    ],
)
def test_four_and_eight_bits(narlm, tokens, tmp_path, options, kind, least):
    """On CPU: every projection is quantised, the head and embeddings are not, the logits still correlate."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    model = narlm("llama", hidden_size=128, intermediate_size=128, initializer_range=0.08)
    model.save_pretrained(tmp_path)
    small = AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(**options), device_map="cpu"
    )
    kinds = {name: type(module) for name, module in small.named_modules()}
    quantised = {name for name, found in kinds.items() if found is getattr(bitsandbytes.nn, kind)}
    assert quantised == {name for name in kinds if name.endswith("_proj")}
    with torch.no_grad():
        pair = torch.stack((model(tokens).logits.flatten(), small(tokens).logits.float().flatten()))
    assert torch.corrcoef(pair)[0, 1] > least


def test_token_classification_scores_every_token(narlm, tokens):
    """Each token's score is W s_t + b of its own state; the loss is the mean over labelled tokens (-100 is none)."""
    config = narlm("paper").config
    config.num_labels = 3
    model = NarLMForTokenClassification(config).eval()
    labels = (tokens % 3).masked_fill(torch.arange(12) < 2, -100)
    with torch.no_grad():
        out = model(tokens, labels=labels)
        states = model.model(tokens).last_hidden_state
    torch.testing.assert_close(out.logits, states @ model.score.weight.T + model.score.bias)
    chosen = out.logits.log_softmax(-1)[:, 2:].gather(2, labels[:, 2:, None])
    torch.testing.assert_close(out.loss, -chosen.mean())
