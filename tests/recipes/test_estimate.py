"""Memory by formula: counts that are worked by hand, what autograd keeps, real models' parameter counts, sharding."""

import dataclasses

import pytest
import torch

from pipeline.recipes.estimate import TRAINED, defaults, estimate, fitting
from pipeline.recipes.shapes import SHAPES, Shape, shape_by_name, shape_of
from pipeline.run import main as run
from pipeline.runtime.errors import UserError

# V 10, D 4, F 8, L 2, H 2, H_kv 1, K 2: queries are 4 wide, keys 2.
SMALL = Shape(10, 4, 8, 2, 2, 1, 2, tied=True)


def test_parameters_of_a_small_model_by_hand():
    """A layer: 4 x 4 queries, 4 x 2 keys, 4 x 2 values, 4 x 4 output = 48; three 4 x 8 = 96. Two layers 288, the
    embedding 40, five norms of 4 = 20: 348; an own head 40 more. LoRA of rank 1: 8 + 6 + 6 + 8 and three times 12 are
    64 a layer, 128 in all."""
    assert SMALL.parameters == 348
    assert dataclasses.replace(SMALL, tied=False).parameters == 388
    assert SMALL.lora_parameters(1) == 128


def test_terms_of_a_small_run_by_hand():
    """SFT of all weights in float32, 2 rows of 3 tokens, no checkpointing: 348 x 4 bytes of weights, as much of
    gradients, twice as much of Adam. A layer keeps 6 x 4 + 2 x 4 + 2 x 2 + 4 x 8 = 68 numbers a token, so
    2 x 6 x 68 x 4 = 3264 bytes; the head's tiles on the CPU 8.25 x 6 x 10 x 4 = 1980, its gradient 10 x 4 x 4 = 160.
    Activations and logits, 5244, are more than the gradients that come after them."""
    given = {"bf16": False, "gradient_checkpointing": False, "per_device_train_batch_size": 2, "max_length": 3}
    given["use_cpu"] = True
    found = estimate("sft", given, SMALL)
    assert dataclasses.astuple(found) == (1392, 0, 1392, 0, 2784, 3264, 1980, 0, 160)
    assert found.used == 1392 + 2784 + 160 + 5244
    assert estimate("sft", given | {"gradient_accumulation_steps": 2}, SMALL).used == found.used + 1392
    # On a GPU one tile of 32,768 words, in place.
    assert estimate("sft", given | {"use_cpu": False}, SMALL).logits == 6 * 32768 * 4
    # DPO holds two rows a pair, and a reference of its own unless there is an adapter to switch off.
    assert estimate("dpo", given, SMALL).activations == 2 * 3264
    assert estimate("dpo", given, SMALL).reference == 1392
    lora = estimate("dpo", given | {"use_peft": True, "lora_r": 1}, SMALL)
    assert (lora.weights, lora.reference, lora.gradients, lora.optimizer) == (1392 + 512, 0, 512, 1024)
    # Norms that are not trained keep their input alone: 4 D instead of 6 D, so 60 numbers a token.
    assert lora.activations == 2 * 12 * 60 * 4
    assert (lora.logits, lora.head) == (2 * 1980, 0)
    # Checkpointing keeps each layer's input (4 wide) and one layer's rest.
    assert estimate("sft", given | {"gradient_checkpointing": True}, SMALL).activations == 2 * 6 * 4 * 4 + 6 * 68 * 4
    # Eager attention keeps T x T weights after the softmax: 2 layers x 2 rows x 2 heads x 9 x 4 bytes.
    eager = given | {"attn_implementation": "eager"}
    assert estimate("sft", eager, SMALL).activations == 3264 + 2 * 2 * 2 * 9 * 4


def test_autocast_beside_checkpointing_by_hand():
    """Float32 weights, 2 rows of 3 tokens: two inputs of layers, 2 x 6 x 4 x 4 = 192 bytes. One layer of all weights
    keeps 16 x 4 + (8 + 4 + 24 + 28) x 2 = 192 a token, and all 348 weights are there in bfloat16 besides; a layer
    under LoRA 8 x 4 + (8 + 4 + 24 + 32) x 2 = 168, and beside it a block of 144. PPO has two graphs."""
    given = {"bf16": True, "per_device_train_batch_size": 2, "max_length": 3, "lora_dropout": 0.0}
    assert estimate("sft", given, SMALL).activations == 192 + 6 * 192 + 2 * 348
    lora = given | {"use_peft": True}
    assert estimate("sft", lora, SMALL).activations == 192 + 6 * 168 + 2 * 144
    assert estimate("sft", lora | {"gradient_checkpointing": False}, SMALL).activations == 2 * 6 * 168 + 2 * 348
    ppo = {"max_completion_length": 2, "max_prompt_length": 1}
    assert estimate("ppo", given | ppo, SMALL).activations == 2 * 192 + 6 * 192 + 2 * 2 * 348
    # Weights that are bfloat16 already have no copies.
    assert estimate("sft", lora | {"dtype": "bfloat16"}, SMALL).activations == 192 / 2 + 6 * 168


@pytest.mark.parametrize(
    ("weights", "autocast", "lora", "dropout"),
    [
        ("float32", False, False, 0.0), ("float32", True, False, 0.0), ("bfloat16", True, False, 0.0),
        ("float32", False, True, 0.0), ("float32", False, True, 0.05), ("float32", True, True, 0.0),
        ("bfloat16", True, True, 0.0), ("bfloat16", True, True, 0.05),
    ],
)  # fmt: skip
def test_a_layer_keeps_what_autograd_saves(weights, autocast, lora, dropout):
    """The bytes that a third layer's forward pass adds to what a model of two saves, against the formula: within 5%,
    LoRA's narrow products and the softmax's sums being left out. Autocast's copies of the matrices are a term of
    their own: 2 bytes a weight."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    shape, rows, length = Shape(32, 96, 192, 3, 4, 2, 32, tied=True), 2, 48

    def bytes_of(layers: int) -> int:
        sizes = dataclasses.asdict(dataclasses.replace(shape, num_hidden_layers=layers))
        config = LlamaConfig(**{k: v for k, v in sizes.items() if k not in ("tied", "gated", "positions")})
        model = LlamaForCausalLM(config).to(getattr(torch, weights)).train()
        if lora:
            options = {"r": 1, "target_modules": "all-linear", "lora_dropout": dropout}
            model = get_peft_model(model, LoraConfig(**options)).get_base_model()
        own = {parameter.data_ptr() for parameter in model.parameters()}
        kept = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
            return tensor

        watch = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with watch, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model.model(input_ids=torch.ones(rows, length, dtype=torch.long), use_cache=False)
        return sum(storage.nbytes() for place, storage in kept.items() if place not in own)

    given = {
        "per_device_train_batch_size": rows, "max_length": length, "bf16": autocast, "dtype": weights, "use_cpu": True,
        "use_peft": lora, "lora_r": 1, "lora_dropout": dropout, "gradient_checkpointing": False,
    }  # fmt: skip
    assert bytes_of(3) - bytes_of(2) == pytest.approx(estimate("sft", given, shape).activations / 3, rel=0.05)


def test_the_cache_of_a_rollout_by_hand():
    """GRPO, 4 sequences of 5 + 3 tokens: 2 x 2 layers x 2 wide keys x 4 bytes = 32 a token, 4 x 8 x 32 = 1024."""
    given = {
        "bf16": False, "per_device_train_batch_size": 4, "max_completion_length": 5, "max_prompt_length": 3,
        "beta": 0.0,
    }  # fmt: skip
    assert estimate("grpo", given, SMALL).rollout == 1024
    assert estimate("grpo", given, SMALL).logits == 4 * 5 * 32768 * 4  # of completions only
    assert estimate("grpo", given, SMALL).reference == 0
    assert estimate("grpo", given | {"beta": 0.1}, SMALL).reference == 1392
    assert estimate("grpo", given | {"gradient_accumulation_steps": 3}, SMALL).rollout == 3 * 1024


def test_what_ppo_holds_besides():
    """Without an adapter pi_ref and a critic, 1392 bytes each, and the critic is trained as the policy is; its graph
    stands beside the policy's. RLOO has none of it, and a critic that shares the backbone is an adapter of 128
    weights more. A head of its own, 40 weights, is the policy's alone."""
    given = {"bf16": False, "gradient_checkpointing": False, "beta": 0.1, "lora_dropout": 0.0}
    full, rloo = (estimate("ppo", given | {"critic": critic}, SMALL) for critic in ("separate", "none"))
    assert (full.reference, full.gradients, full.optimizer) == (2 * 1392, 2 * 1392, 2 * 2784)
    assert (rloo.reference, rloo.gradients, rloo.optimizer) == (1392, 1392, 2784)
    assert full.activations == 2 * rloo.activations
    untied = estimate("ppo", given | {"critic": "separate"}, dataclasses.replace(SMALL, tied=False))
    assert untied.gradients == 4 * (388 + 348)
    lora = given | {"use_peft": True, "lora_r": 1}
    shared, separate = (estimate("ppo", lora | {"critic": critic}, SMALL) for critic in ("shared", "separate"))
    assert (shared.reference, separate.reference) == (0, 1392)
    assert shared.gradients == separate.gradients == 2 * 128 * 4
    assert shared.activations == full.activations - 2 * 2 * 8 * (512 + 256) * 2 * 4 * 4


@pytest.mark.parametrize("stage", TRAINED)
def test_what_is_not_given_has_the_default_of_the_stage(stage):
    """TRL samples completions of up to 512 tokens, not 256: a literal here had missed that it changed."""
    assert estimate(stage, {}, SMALL) == estimate(stage, defaults(stage), SMALL)
    if stage in ("grpo", "ppo"):
        assert estimate(stage, {}, SMALL).rollout == 8 * (512 + 256) * 2 * 2 * 2 * 2


def test_sharding_divides_what_it_shards():
    """ZeRO-3 and FSDP2 have two blocks of 144 weights whole at a time. In bf16 they and ZeRO-2 keep two bytes a weight
    and a gradient, and 12 for the optimizer: a float32 master and two moments."""
    given = {"bf16": False, "per_device_train_batch_size": 2, "max_length": 3}
    alone, zero2, zero3 = (estimate("sft", given, SMALL, processes=4, sharding=s) for s in ("none", "zero2", "zero3"))
    assert (zero2.weights, zero2.gradients, zero2.optimizer) == (alone.weights, 1392 / 4, 2784 / 4)
    assert (zero3.weights, zero3.gradients, zero3.optimizer) == (1392 / 4 + 2 * 144 * 4, 1392 / 4, 2784 / 4)
    assert zero3.activations == alone.activations
    mixed = estimate("sft", given | {"bf16": True}, SMALL, processes=4, sharding="zero2")
    assert (mixed.weights, mixed.gradients, mixed.optimizer) == (348 * 2, 348 * 2 / 4, 348 * 12 / 4)


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_are_those_of_the_models(name):
    """The counts of the models, built without memory; what is not counted (norms of queries and keys) is little."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = SHAPES[name]
    kind = "qwen3" if "Qwen3" in name else "llama"
    sizes = {field: value for field, value in dataclasses.asdict(shape).items() if field not in ("gated", "positions")}
    config = AutoConfig.for_model(kind, tie_word_embeddings=sizes.pop("tied"), **sizes)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == pytest.approx(model.num_parameters(), rel=1e-3)
    assert shape_of(config.to_dict()) == shape


def test_published_counts():
    """134,515,008 and 70,553,706,496 are what the models' own pages say."""
    assert SHAPES["HuggingFaceTB/SmolLM2-135M"].parameters == 134_515_008
    assert SHAPES["meta-llama/Llama-3.1-70B"].parameters == 70_553_706_496


def test_what_fits_where():
    """70B in full: 16 bytes a weight (2 + 2 + 12) over 16 GPUs are 70.6e9, twice the embedding of 1.05e9 at two bytes
    is 4.2e9, its gradient in float32 as much, with the runtime more than 76e9: 32 GPUs. LoRA of 8B in bfloat16 is 16
    GB and some: one GPU of 40 GB."""
    full = {"gradient_checkpointing": True, "per_device_train_batch_size": 1, "max_length": 1024, "bf16": True}
    assert fitting("sft", full, SHAPES["meta-llama/Llama-3.1-70B"], 0.95 * 80e9) == ("fsdp2", 32)
    lora = {"use_peft": True, "dtype": "bfloat16", "per_device_train_batch_size": 1, "max_length": 1024}
    assert fitting("dpo", lora, SHAPES["Qwen/Qwen3-8B-Base"], 0.95 * 40e9) == ("single_gpu", 1)
    four_bit = lora | {"load_in_4bit": True}
    assert fitting("dpo", four_bit, SHAPES["Qwen/Qwen3-8B-Base"], 0.95 * 24e9) == ("single_gpu", 1)


def test_a_config_of_another_family_is_read_or_named():
    gpt2 = {"n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 16, "vocab_size": 10}
    assert shape_of(gpt2) == Shape(10, 8, 32, 1, 2, 2, 4, tied=True, gated=False, positions=16)
    with pytest.raises(UserError, match=r"config\.json does not say its 'n_embd'"):
        shape_of({"vocab_size": 3})
    with pytest.raises(UserError, match="neither here nor on a Hub"):
        shape_by_name("nobody/nothing")


def test_a_recipe_is_estimated_and_not_started(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    text = """
- {stage: sft, overrides: {model_name_or_path: Qwen/Qwen3-8B-Base, output_dir: OUT/sft}}
- {stage: dpo, overrides: {model_name_or_path: "${sft}", output_dir: OUT/dpo, use_peft: true}}
- {stage: ppo, overrides: {model_name_or_path: "${dpo}", output_dir: OUT/ppo, bf16: false}}
- {stage: report, overrides: {runs: x, output: OUT/report.html}}
"""
    recipe.write_text(text.replace("OUT", str(tmp_path)))
    run([str(recipe), "--estimate"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [["sft", "8.19B"], ["dpo", "8.19B"], ["ppo", "8.19B"]]
    gradients = [float(line.split()[4]) for line in lines[2:]]
    assert gradients[0] == pytest.approx(8.19e9 * 4 / 2**30, rel=1e-2)  # all weights, in float32
    assert gradients[2] == pytest.approx(2 * gradients[1], rel=0.1)  # ppo goes on with the adapter, and has a critic's
    assert "24 GB" in lines[1]
    assert not (tmp_path / "sft").exists()


def test_checkpointing_that_nobody_gave_is_as_a_run_here_would_choose(tmp_path, capsys, monkeypatch):
    """8 rows of 1,024 tokens in float32: 4 x 8192 x 36 x (10 x 4096 + 4 x 12288 + 2 x 32 x 1024) bytes of activations;
    kept where the memory is four times that, by the rule of `runtime.hardware`."""
    recipe = tmp_path / "recipe.yaml"
    line = "- {stage: sft, overrides: {model_name_or_path: Qwen/Qwen3-8B-Base, output_dir: OUT, bf16: false}}"
    recipe.write_text(line.replace("OUT", str(tmp_path / "sft")))
    needed = 4 * 8192 * 36 * (10 * 4096 + 4 * 12288 + 2 * 32 * 1024)
    found = {}
    for share in (3.9, 4.1):
        monkeypatch.setattr("pipeline.runtime.hardware.free_memory", lambda use_cpu, share=share: share * needed)
        run([str(recipe), "--estimate"])
        names, cells = (line.split() for line in capsys.readouterr().out.splitlines()[1:])
        found[share] = float(cells[names.index("activations")])
    recipe.write_text(recipe.read_text().replace("bf16: false", "bf16: false, gradient_checkpointing: true"))
    run([str(recipe), "--estimate"])
    given = float(capsys.readouterr().out.splitlines()[2].split()[names.index("activations")])
    assert found[3.9] == given
    assert found[4.1] > 3 * given
