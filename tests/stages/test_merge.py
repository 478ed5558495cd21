"""Merging: the same answers before and after, at full precision, in shards; and chains of adapters add up."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from pipeline.merge import main
from pipeline.model.loading import load_model
from pipeline.runtime.errors import UserError
from pipeline.runtime.files import write_json
from tests.stages.conftest import flags, read_metrics, write_rows

IDS = torch.tensor([[1, 5, 7, 9, 20, 33], [1, 40, 41, 6, 8, 90]])


def adapter(folder: Path, base: Path, **options) -> Path:
    """A LoRA adapter with random B matrices (PEFT starts them at zero), saved with the base's tokenizer."""
    from transformers import AutoTokenizer

    torch.manual_seed(1)
    config = LoraConfig(target_modules="all-linear", r=4, lora_alpha=8, task_type="CAUSAL_LM", **options)
    model = get_peft_model(load_model(str(base)), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@torch.no_grad()
def logits(folder: Path | str, base: Path | None = None) -> torch.Tensor:
    """Logits of a model folder, or of an adapter on a base by plain PEFT, without merging."""
    model = load_model(str(base or folder))
    return (PeftModel.from_pretrained(model, folder).eval() if base else model)(IDS).logits


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"])
def test_a_merged_model_answers_as_base_and_adapter_do(tiny_model, tmp_path, options):
    folder = adapter(tmp_path / "adapter", tiny_model, **options)
    main(["--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "merged")])
    expected = logits(folder, tiny_model)
    assert (logits(tmp_path / "merged") - expected).abs().max() < 1e-4
    assert (logits(tiny_model) - expected).abs().max() > 0.1
    metrics = read_metrics(tmp_path / "merged")
    assert metrics["logit_difference"] < 1e-5
    assert metrics["saved_logit_difference"] < 1e-5
    record = json.loads((tmp_path / "merged" / "run.json").read_text())
    assert record["parents"][0]["path"] == str(folder)
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "merge started from `adapter`" in card
    assert str(tmp_path) not in card


def test_shards_and_rounding_are_asked_for_and_measured(tiny_model, tmp_path):
    """bfloat16 keeps 8 bits of a number, so logits move by about one part in 2**8, and no more than a few."""
    folder = adapter(tmp_path / "adapter", tiny_model)
    words = ["--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "merged")]
    main([*words, "--save_merged_shards", "40KB", "--dtype", "bfloat16"])
    shards = list((tmp_path / "merged").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert all(tensor.dtype == torch.bfloat16 for tensor in load_file(shards[0]).values())
    metrics = read_metrics(tmp_path / "merged")
    assert metrics["logit_difference"] < 1e-5
    assert 1e-4 < metrics["saved_logit_difference"] < 0.05


@pytest.fixture
def wide_model(tiny_model, tmp_path) -> Path:
    """The tiny model twice as wide: NF4 rounds weights in blocks of 64."""
    from transformers import AutoTokenizer

    from pipeline.model import NarLMConfig, NarLMForCausalLM

    config = NarLMConfig.from_pretrained(tiny_model)
    config.update({"hidden_size": 64, "intermediate_size": 128, "head_dim": 32})
    torch.manual_seed(0)
    NarLMForCausalLM(config).save_pretrained(tmp_path / "wide")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "wide")
    return tmp_path / "wide"


def test_an_adapter_of_a_4bit_base_is_refused_unless_the_rounded_weights_are_meant(wide_model, tmp_path):
    """Trained on NF4 weights, the adapter answers with them; merged into them dequantised, it still does. Merged into
    the weights that they were rounded from, it would answer otherwise."""
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    folder = adapter(tmp_path / "adapter", wide_model)
    arguments = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": False}
    record = {"stage": "dpo", "status": "completed", "arguments": arguments, "parents": [], "data": []}
    write_json(folder / "run.json", record)
    words = ["--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "merged")]
    with pytest.raises(UserError, match=r"was trained on a quantised base.*--allow_4bit"):
        main(words)
    assert not (tmp_path / "merged").exists()
    main([*words, "--allow_4bit"])
    four_bit = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    with torch.no_grad():
        trained = PeftModel.from_pretrained(load_model(str(wide_model), quantization_config=four_bit), folder).eval()
        expected = trained(IDS).logits
    right = (logits(tmp_path / "merged") - expected).abs().max()
    wrong = (logits(folder, wide_model) - expected).abs().max()
    assert right < 0.02 * expected.abs().max()  # the 4-bit kernel's own rounding
    assert wrong > 4 * right


def test_a_complete_model_has_nothing_to_merge(tiny_model, tmp_path):
    with pytest.raises(UserError, match="is a complete model: there is nothing to merge; --as converts it"):
        main(["--model_name_or_path", str(tiny_model), "--output_dir", str(tmp_path / "merged")])


def converted(source: Path, kind: str, folder: Path, **options: str) -> Path:
    """The output folder of ``merge --as kind``."""
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    main(["--model_name_or_path", str(source), "--as", kind, "--output_dir", str(folder), *words])
    return folder


def model_type(folder: Path) -> str:
    return json.loads((folder / "config.json").read_text())["model_type"]


def test_a_foreign_model_becomes_narlm_and_comes_back(foreign_model, tmp_path):
    """Llama -> NarLM -> Llama: the same logits, in the end the same tensors; the folder in between says what it is."""
    ours = converted(foreign_model, "narlm", tmp_path / "narlm")
    back = converted(ours, "llama", tmp_path / "llama")
    assert (model_type(ours), model_type(back)) == ("narlm", "llama")
    expected = logits(foreign_model)
    for folder in (ours, back):
        assert (logits(folder) - expected).abs().max() <= 1e-5
    assert (ours / "modeling_narlm.py").is_file()
    tensors, original = (load_file(folder / "model.safetensors") for folder in (back, foreign_model))
    assert tensors.keys() == original.keys()
    assert all(torch.equal(tensors[name], original[name]) for name in tensors)
    card = (ours / "README.md").read_text()
    assert "as **narlm**" in card
    assert "Merged" not in card


def test_an_adapter_is_merged_and_converted_in_one_step(foreign_model, tmp_path):
    folder = adapter(tmp_path / "adapter", foreign_model)
    expected = logits(folder, foreign_model)
    ours = converted(folder, "narlm", tmp_path / "narlm", dtype="bfloat16")
    assert model_type(ours) == "narlm"
    assert read_metrics(ours)["logit_difference"] < 1e-5
    assert (logits(ours) - expected).abs().max() < 0.05 * expected.abs().max()


def test_what_cannot_be_converted_is_named(tiny_model, foreign_model, tmp_path):
    """NarLM as the paper has it (LayerNorm, GELU FFN) fits no Llama; nor does a Llama fit its own kind, or GPT-2."""
    for source, kind, message in [
        (tiny_model, "llama", "Llama needs"),
        (tiny_model, "gpt2", "GPT-2 needs position_embedding_type='learned'"),
        (foreign_model, "gpt2", "GPT-2 needs position_embedding_type='learned'"),
        (foreign_model, "llama", "is a llama model already"),
    ]:
        with pytest.raises(UserError, match=message):
            converted(source, kind, tmp_path / "out")
        assert not (tmp_path / "out" / "model.safetensors").exists()


def products(folder: Path) -> dict[str, torch.Tensor]:
    """``scale B A`` of every module of a saved LoRA adapter, by the name of the weight it is added to."""
    config = json.loads((folder / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    tensors = load_file(folder / "adapter_model.safetensors")
    return {
        name.removeprefix("base_model.model.").replace(".lora_A", ""): scale
        * tensors[name.replace("lora_A", "lora_B")]
        @ a
        for name, a in tensors.items()
        if ".lora_A." in name
    }


@torch.no_grad()
def by_hand(base: Path, *folders: Path) -> torch.Tensor:
    """Logits of the base with the products of the given adapters added to its weights, without PEFT."""
    model = load_model(str(base))
    weights = dict(model.named_parameters())
    for folder in folders:
        for name, product in products(folder).items():
            weights[name] += product
    return model(IDS).logits


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["continue", "merge", "stack"])
@pytest.mark.parametrize("rslora", [False, True])
def test_sft_then_dpo_then_ppo(tiny_model, sft_file, preference_file, tmp_path, mode, rslora):
    """Three LoRA stages, each on the adapter before it. What is saved at the end answers, by plain PEFT on the base it
    names, as the base with the sum of what each stage learned: with one adapter that was continued, with the three
    products under merge (whose bases are merged starts) and stack (one adapter of the summed rank)."""
    from pipeline.dpo import main as dpo
    from pipeline.ppo import main as ppo
    from pipeline.sft import main as sft

    lora = {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 4, "use_rslora": rslora}
    common = {"eval_rows": 0, "max_steps": 2, "save_steps": 2, "use_cpu": True} | lora
    first, second, third = (tmp_path / name for name in ("sft", "dpo", "ppo"))
    sft(flags(model_name_or_path=tiny_model, dataset_name=sft_file, output_dir=first, **common))
    common["adapter_mode"] = mode
    dpo(flags(model_name_or_path=first, dataset_name=preference_file, output_dir=second, **common))
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"What is {a} plus 1?"} for a in range(8)])
    ppo(
        flags(
            model_name_or_path=second, dataset_name=prompts, output_dir=third, max_completion_length=4,
            reward="tests.stages.test_ppo:share_of_letters", guard_patience=0, **common,
        )
    )  # fmt: skip
    base = Path(json.loads((third / "adapter_config.json").read_text())["base_model_name_or_path"])
    assert base == (third / "start" if mode == "merge" else tiny_model)
    learned = [first, second / "checkpoint-2", third / "checkpoint-2"]  # before stack sums them up
    expected = by_hand(tiny_model, third) if mode == "continue" else by_hand(tiny_model, *learned)
    assert (logits(third, base) - expected).abs().max() < 1e-4
    assert (logits(second, None) - expected).abs().max() > 1e-3  # PPO moved it
    main(["--model_name_or_path", str(third), "--output_dir", str(tmp_path / "merged")])
    assert (logits(tmp_path / "merged") - expected).abs().max() < 1e-4
