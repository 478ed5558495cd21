"""A tiny NarLM and tiny files for the stage tests: everything a stage needs, made once a session."""

import json
from pathlib import Path

import pytest

TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.08,
    "tie_word_embeddings": True,
}
# Flags that keep a stage small, quiet and the same on every machine.
QUICK = {
    "bf16": "false",
    "report_to": "none",
    "logging_steps": "1",
    "per_device_train_batch_size": "4",
    "per_device_eval_batch_size": "8",
    "learning_rate": "1e-2",
    "lr_scheduler_type": "constant",
    "disable_tqdm": "true",
    "save_total_limit": "2",
}


def flags(**values: object) -> list[str]:
    """``--key value`` words; a list gives several values, a bool its lower-case word."""
    words = []
    for key, value in (QUICK | values).items():
        items = value if isinstance(value, list) else [value]
        words += [f"--{key}", *(str(item).lower() if isinstance(item, bool) else str(item) for item in items)]
    return words


def write_rows(path: Path, rows: list[dict]) -> Path:
    """A JSONL file of the given rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Folder of a NarLM of about 30,000 parameters with random weights and a tokenizer of sums."""
    import torch

    from pipeline.model import NarLMConfig, NarLMForCausalLM
    from pipeline.model.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("tiny") / "model"
    texts = [
        f"What is {a} plus {b}? The answer is {a + b}. Good, bad, right, wrong." for a in range(9) for b in range(9)
    ]
    tokenizer = train_tokenizer(texts, 300)
    torch.manual_seed(0)
    config = NarLMConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **TINY,
    )
    NarLMForCausalLM._from_config(config, attn_implementation="eager").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def preference_file(tmp_path_factory) -> Path:
    """Forty preference pairs in which the right sum is chosen."""
    rows = [
        {"prompt": f"What is {a} plus {b}?", "chosen": f"The answer is {a + b}.", "rejected": "Bad."}
        for a in range(8)
        for b in range(5)
    ]
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows)


@pytest.fixture(scope="session")
def sft_file(tmp_path_factory) -> Path:
    """Forty prompt-completion rows."""
    rows = [
        {"prompt": f"What is {a} plus {b}?", "completion": f"The answer is {a + b}."}
        for a in range(8)
        for b in range(5)
    ]
    return write_rows(tmp_path_factory.mktemp("answers") / "answers.jsonl", rows)


def read_metrics(folder: Path) -> dict[str, float]:
    """The metrics of a finished run."""
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "completed"
    return record["metrics"]


CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def foreign_model(tmp_path_factory) -> Path:
    """Folder of a base as others publish them: Llama architecture, a vocabulary of its own, plain ChatML.

    It differs from NarLM in all that a stage may silently take for granted: no pad token and no BOS, the end of a turn
    (``<|im_end|>``) is not the EOS (``<|endoftext|>``), the template has no ``{% generation %}`` markers, the head is
    not tied, and ``all-linear`` finds other names.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("foreign") / "model"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    texts = [
        f"user assistant system What is {a} plus {b}? It is {a + b}. Nobody knows." for a in range(9) for b in range(9)
    ]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=340,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHATML
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(fast), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.08, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=fast.eos_token_id, pad_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 16,
    "initializer_range": 0.2,
}


@pytest.fixture(scope="session")
def seeing_model(tiny_model, tmp_path_factory) -> Path:
    """The tiny NarLM with a frozen random ViT of 4 patches before it."""
    import torch
    from transformers import AutoModel, ViTConfig

    from pipeline.model.loading import load_model, load_tokenizer
    from pipeline.model.sight import give_sight, plain_image_processor

    torch.manual_seed(3)
    encoder = AutoModel.from_config(ViTConfig(**VISION))
    tokenizer = load_tokenizer(str(tiny_model), for_training=True)
    model, processor = give_sight(load_model(str(tiny_model)), tokenizer, encoder, plain_image_processor())
    folder = tmp_path_factory.mktemp("seeing") / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def foreign_seeing_model(foreign_model, tmp_path_factory) -> Path:
    """A Llava as others publish them: CLIP, the foreign base's tokenizer, ChatML over parts, ``<image>``."""
    import torch
    from transformers import (
        AutoTokenizer,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(foreign_model)
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    template = CHATML.replace(
        "message['content'] +",
        "(message['content'] if message['content'] is string else image_parts(message['content'])) +",
    )
    template = (
        "{% macro image_parts(parts) %}{% for part in parts %}"
        "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endmacro %}" + template
    )
    tokenizer.chat_template = template
    square = {"height": 32, "width": 32}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size=square, crop_size=square), tokenizer, patch_size=16,
        vision_feature_select_strategy="default", chat_template=template, num_additional_image_tokens=1,
    )  # fmt: skip
    text = LlamaConfig.from_pretrained(foreign_model)
    text.vocab_size, text.pad_token_id = len(tokenizer), tokenizer.pad_token_id
    torch.manual_seed(4)
    config = LlavaConfig(
        text_config=text, vision_config=CLIPVisionConfig(**VISION), image_seq_length=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("foreign_seeing") / "model"
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def picture_rows(tmp_path_factory) -> dict[str, Path]:
    """Sixteen questions about red and blue pictures (``ask``), and as pairs (``pair``), with paths of images."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    colours = {"red": "blue", "blue": "red"}
    for colour in colours:
        Image.new("RGB", (32, 32), colour).save(folder / f"{colour}.png")
    asked = [
        {
            "image": f"{colour}.png",
            "prompt": f"What is {i} plus it?",
            "completion": f"It is {colour}.",
            "answer": colour,
        }
        for i in range(8)
        for colour in colours
    ]
    pairs = [{**row, "chosen": row["completion"], "rejected": f"It is {colours[row['answer']]}."} for row in asked]
    return {
        "ask": write_rows(folder / "ask.jsonl", asked),
        "pair": write_rows(folder / "pair.jsonl", pairs),
    }


def _turns(*contents: str) -> list[dict]:
    """A user's and an assistant's turns, in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def public_rows(schema: str, count: int = 24) -> list[dict]:
    """``count`` rows of a schema as it stands on the Hub, whose sums differ from row to row."""
    return [_public_row(schema, i, i % 5) for i in range(count)]


def _public_row(schema: str, a: int, b: int) -> dict:
    question, good, bad = f"What is {a} plus {b}?", f"It is {a + b}.", "Nobody knows."
    # Of the rows with a system prompt some have none, as on the Hub.
    system = "Be short." if b else ""
    match schema:
        case "sharegpt":
            return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": good}]}
        case "messages":
            return {"messages": _turns(question, good, f"And {b} plus 2?", f"It is {b + 2}.")}
        case "smoltalk":
            return {"messages": _turns(question, good), "source": "sums", "full_topic": "Arithmetic/Sums"}
        case "ultrafeedback":
            return {
                "prompt": question, "prompt_id": f"{a:08x}", "chosen": _turns(question, good),
                "rejected": _turns(question, bad), "messages": _turns(question, good),
                "score_chosen": 8.5, "score_rejected": 2.0,
            }  # fmt: skip
        case "hh":
            dialogue = f"\n\nHuman: {question}\n\nAssistant: "
            return {"chosen": dialogue + good, "rejected": dialogue + bad}
        case "gsm8k":
            return {"question": question, "answer": f"{a}+{b} = {a + b}.\n#### {a + b}"}
        case "math":
            return {"problem": question, "solution": f"It is $\\boxed{{{a + b}}}$.", "answer": str(a + b), "level": b}
        case "alpaca":
            return {"instruction": "Add the numbers.", "input": f"{a} and {b}", "output": good, "text": "### no"}
        case "openorca":
            return {"id": f"cot.{a}", "system_prompt": system, "question": question, "response": good}
        case "orca_dpo":
            return {"system": system, "question": question, "chosen": good, "rejected": bad}
        case "capybara":
            turns = [{"input": question, "output": good}, {"input": f"And {b} plus 2?", "output": f"It is {b + 2}."}]
            return {"source": "sums", "conversation": turns}
        case "kto":
            return {"prompt": question, "completion": good if a % 2 else bad, "label": bool(a % 2)}
    raise ValueError(schema)


@pytest.fixture
def trainer_of(monkeypatch, request, tmp_path):
    """``(stage, model, rows, **flags)`` -> the trainer that the stage's main builds; nothing is trained."""

    class Built(Exception):
        pass

    def stop(run, trainer, *rest):
        raise Built(trainer)

    for module in ("legs", "session"):  # in this order: legs imports it from session
        monkeypatch.setattr(f"pipeline.training.{module}.train_and_save", stop)

    def build(stage, model, rows, **options):
        rows = write_rows(tmp_path / "rows.jsonl", rows) if isinstance(rows, list) else rows
        model = model if isinstance(model, Path) else request.getfixturevalue(model)
        given = {"dataset_name": rows} if rows else {}
        with pytest.raises(Built) as built:
            stage.main(
                flags(
                    model_name_or_path=model, output_dir=tmp_path / "run",
                    deduplicate=False, force=True, **given, **options,
                )
            )  # fmt: skip
        return built.value.args[0]

    return build
