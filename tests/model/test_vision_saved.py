"""NarLM that sees, put together from a text model and an encoder: processor, saved folder, adapters, 4 bits."""

import copy
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    ViTConfig,
)

from pipeline.model import NarLMForConditionalGeneration, NarLMVisionConfig
from pipeline.model.sight import VISION_CHAT_TEMPLATE, give_sight, load_encoder, plain_image_processor
from pipeline.model.tokenizer import CHAT_TEMPLATE, train_tokenizer
from pipeline.runtime.errors import UserError
from tests.model.conftest import build
from tests.model.test_vision import IMAGE, SHAPE, rows, seeing


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([f"how many red circles are there? {n} blue squares" for n in range(30)], 300)


@pytest.fixture
def put_together(tokenizer):
    """A text model and a ViT as `give_sight` joins them, with the processor; the tokenizer is a copy."""
    own = copy.deepcopy(tokenizer)
    text = build("llama", vocab_size=len(own))
    torch.manual_seed(2)
    encoder = AutoModel.from_config(ViTConfig(**SHAPE))
    return *give_sight(text, own, encoder, plain_image_processor()), encoder


def test_encoders_by_folder(put_together, tmp_path):
    """The vision side of a CLIP, and the encoder of a model that sees: every tensor; another folder is refused."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    text = CLIPTextConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=20
    )
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=CLIPVisionConfig(**SHAPE), projection_dim=8))
    clip.save_pretrained(tmp_path / "clip")
    plain_image_processor().save_pretrained(tmp_path / "clip")
    encoder, _ = load_encoder(str(tmp_path / "clip"), 0)
    theirs = clip.vision_model.state_dict()
    own = {name.removeprefix("vision_model."): tensor for name, tensor in encoder.state_dict().items()}
    assert type(encoder).__name__ == "CLIPVisionModel"
    assert own.keys() == {name.removeprefix("vision_model.") for name in theirs}
    assert all(torch.equal(own[name.removeprefix("vision_model.")], tensor) for name, tensor in theirs.items())
    model, processor, vit = put_together
    model.save_pretrained(tmp_path / "seeing")
    processor.save_pretrained(tmp_path / "seeing")
    again, _ = load_encoder(str(tmp_path / "seeing"), 0)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in vit.state_dict().items())
    with pytest.raises(UserError, match="is no folder or Hub id of a vision encoder"):
        load_encoder(str(tmp_path / "nothing"), 0)
    with pytest.raises(UserError, match="a vit has no field 'colour'"):
        load_encoder("vit", 0, colour=3)


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (20, 30), colour) for colour in ("red", "blue", "green")]


def test_sight_is_added_to_a_text_model(put_together):
    """The encoder's tensors are its own, the vocabulary has one more row, a bare image takes P = 4 places."""
    model, processor, encoder = put_together
    own = model.model.vision_tower.state_dict()
    assert all(torch.equal(tensor, own[name]) for name, tensor in encoder.state_dict().items())
    assert model.config.image_token_id == len(processor.tokenizer) - 1
    assert model.get_input_embeddings().num_embeddings == len(processor.tokenizer)
    red, blue, green = pictures()
    batch = processor(
        images=[[red], None, [blue, green]],
        text=["<|image|> how many", "how many red", "<|image|> many<|image|> there"],
        padding=True,
        return_tensors="pt",
    )
    assert batch["pixel_values"].shape == (3, 3, 16, 16)
    assert (batch["input_ids"] == processor.image_token_id).sum(1).tolist() == [4, 0, 8]
    torch.testing.assert_close(batch["pixel_values"][0, :, 0, 0], torch.tensor([1.0, -1.0, -1.0]))  # red in [-1, 1]
    assert model(**batch).logits.shape[:2] == batch["input_ids"].shape


def test_the_processor_refuses(put_together):
    _, processor, _ = put_together
    red, *_ = pictures()
    with pytest.raises(ValueError, match="text 1 has 1 places for images and 0 images"):
        processor(images=[[red], None], text=["<|image|> how", "<|image|> many"])
    with pytest.raises(ValueError, match="is a URL: images are not fetched"):
        processor(images=["https://example.org/cat.png"], text=["<|image|> how"])


def test_the_chat_template(put_together, tokenizer):
    """Text alone is written as NarLM's template writes it; an image part is a placeholder where it stands."""
    _, processor, _ = put_together
    chat = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": "how many?"},
        {"role": "assistant", "content": " 3"},
    ]
    parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in chat]
    expected = tokenizer.apply_chat_template(chat, chat_template=CHAT_TEMPLATE, tokenize=False)
    assert processor.tokenizer.chat_template == VISION_CHAT_TEMPLATE
    assert processor.apply_chat_template(chat, tokenize=False) == expected
    assert processor.apply_chat_template(parts, tokenize=False) == expected
    red, blue, _ = pictures()
    asked = [{"role": "user", "content": [
        {"type": "image", "image": red}, {"type": "text", "text": "and"}, {"type": "image", "image": blue},
    ]}]  # fmt: skip
    text = processor.apply_chat_template(asked, add_generation_prompt=True)
    assert text == "<|bos|><|user|><|image|> and<|image|><|assistant|>"
    batch = processor.apply_chat_template(asked, tokenize=True, return_dict=True, return_tensors="pt")
    assert batch["pixel_values"].shape[0] == 2
    answered = [*asked, {"role": "assistant", "content": "3"}]
    marked = processor.apply_chat_template(
        [answered], tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    learned = marked["input_ids"][marked["assistant_masks"].bool()]
    assert processor.tokenizer.decode(learned) == " 3<|eos|>"  # the places of the images have moved nothing


WITHOUT_US = """
import sys

class NoPipeline:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "pipeline":
            raise ImportError("the package is not here")

sys.meta_path.insert(0, NoPipeline())
import torch
from PIL import Image
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

folder, out = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
batch = processor(images=[Image.new("RGB", (20, 30), "red")], text=["<|image|> how many"], return_tensors="pt")
with torch.no_grad():
    logits = model(**batch).logits
model.save_pretrained(out)
processor.save_pretrained(out)
again = AutoModelForImageTextToText.from_pretrained(out, trust_remote_code=True)
with torch.no_grad():
    assert torch.equal(again(**batch).logits, logits)
kinds = AutoModel, AutoModelForCausalLM
names = [type(kind.from_pretrained(folder, trust_remote_code=True)).__name__ for kind in kinds]
names.append(type(AutoProcessor.from_pretrained(out, trust_remote_code=True)).__name__)
assert "pipeline" not in sys.modules
torch.save({"logits": logits, "names": names}, out + "/result.pt")
"""


def test_loads_without_our_package(put_together, tmp_path):
    """A fresh process in which ``pipeline`` cannot be imported: model and processor, the same logits, and on."""
    model, processor, _ = put_together
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    command = [sys.executable, "-I", "-c", WITHOUT_US, str(tmp_path / "model"), str(tmp_path / "again")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    result = torch.load(tmp_path / "again" / "result.pt")
    batch = processor(images=pictures()[:1], text=["<|image|> how many"], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(result["logits"], model.eval()(**batch).logits, atol=1e-6, rtol=0)
    assert result["names"] == ["NarLMVisionModel", "NarLMForConditionalGeneration", "NarLMProcessor"]


@pytest.mark.parametrize("trust", [None, False, True])
def test_loads_with_our_package(put_together, tmp_path, trust):
    model, processor, _ = put_together
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for auto in (AutoModelForImageTextToText, AutoModelForCausalLM):
        loaded = auto.from_pretrained(tmp_path, trust_remote_code=trust)
        assert type(loaded) is NarLMForConditionalGeneration
        assert not any(p.requires_grad for p in loaded.model.vision_tower.parameters())
    assert type(AutoConfig.from_pretrained(tmp_path, trust_remote_code=trust)) is NarLMVisionConfig
    again = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=trust)
    assert (type(again), again.image_seq_length, again.chat_template) == (
        type(processor), 4, VISION_CHAT_TEMPLATE,
    )  # fmt: skip
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"]["AutoModelForImageTextToText"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (r".*language_model.*\.(q_proj|v_proj)", {"language_model"}),
        (r".*multi_modal_projector\.linear", {"multi_modal_projector"}),
        (
            r".*(language_model.*\.(q_proj|v_proj)|multi_modal_projector\.linear)",
            {"language_model", "multi_modal_projector"},
        ),
    ],
)  # fmt: skip
def test_lora(target, expected):
    """LoRA on the text side, the projector or both: what is asked for learns, and nothing else."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(seeing(), LoraConfig(r=2, target_modules=target))
    ids, pixels = rows()
    model(input_ids=ids, pixel_values=pixels, labels=ids).loss.backward()
    learned = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {part for name in learned for part in name.split(".")} & {
        "language_model", "multi_modal_projector", "vision_tower",
    } == expected  # fmt: skip
    assert all("lora_B" in name for name in learned)  # A learns once B is not zero


def test_four_bits_on_the_text_side(put_together, tmp_path):
    """NF4 with the encoder and projector left out: only projections of the text side are quantised; it still sees."""
    bitsandbytes = pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    model, _, _ = put_together
    model.save_pretrained(tmp_path)
    quantised = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4",
        llm_int8_skip_modules=["model.vision_tower", "model.multi_modal_projector", "lm_head"],
    )  # fmt: skip
    small = AutoModelForImageTextToText.from_pretrained(tmp_path, quantization_config=quantised, device_map="cpu")
    found = {name for name, m in small.named_modules() if isinstance(m, bitsandbytes.nn.Linear4bit)}
    assert found
    assert {name.split(".")[1] for name in found} == {"language_model"}
    ids, pixels = rows()
    ids = ids.where(ids != IMAGE, small.config.image_token_id)
    with torch.no_grad():
        one, other = small(ids, pixels).logits, small(ids, pixels.flip(-1) + 1).logits
    assert one.isfinite().all()
    assert (one - other).abs().max() > 1e-3
