"""NarLM that sees: the paper's formula, the text model inside it, generation, encoders, and saved folders."""

import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
    ViTConfig,
)

from pipeline.model import NarLMForConditionalGeneration, NarLMVisionConfig
from pipeline.model.adapters import backbone_sha256
from pipeline.model.conversion import convert
from pipeline.runtime.errors import UserError
from tests.model.conftest import build

SHAPE = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 8,
    "initializer_range": 0.2,
}
ENCODERS = {
    "vit": (ViTConfig, 0),
    "clip": (CLIPVisionConfig, 0),
    "siglip": (SiglipVisionConfig, 0),
    "dinov2": (Dinov2Config, 0),
    "registers": (Dinov2WithRegistersConfig, 0),
}
IMAGE = 60  # the last of the 61 tokens stands for an image; P = 4 patches


def seeing(kind: str = "llama", encoder: str = "vit", **options) -> NarLMForConditionalGeneration:
    """A NarLM with large random weights and an encoder before it."""
    shape = {key: value for key, value in SHAPE.items() if not (key == "intermediate_size" and "dino" in encoder)}
    text = build(kind)
    torch.manual_seed(1)
    config = NarLMVisionConfig(
        text_config=text.config,
        vision_config=ENCODERS[encoder][0](**shape),
        image_token_id=IMAGE,
        **options,
    )
    model = NarLMForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    return model.eval()


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows of 14 tokens: the first has one image, the second two, text between them."""
    ids = torch.randint(3, IMAGE, (2, 14), generator=torch.Generator().manual_seed(2))
    ids[0, 3:7] = ids[1, 1:5] = ids[1, 7:11] = IMAGE
    return ids, torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_the_formula():
    """h_j = W_proj v_j + b_proj, coordinate by coordinate; put among the text's embeddings, the causal model does the
    rest: the logits are those of F_theta on that sequence.
    """
    model = seeing()
    ids, pixels = rows()
    features = model.model.vision_tower(pixels).last_hidden_state[:, 1:]  # v: without the class token
    W, b = model.model.multi_modal_projector.linear.weight, model.model.multi_modal_projector.linear.bias
    h = torch.zeros(3, 4, 32)
    for i in range(3):
        for j in range(4):
            for d in range(32):
                h[i, j, d] = sum(W[d, k] * features[i, j, k] for k in range(24)) + b[d]
    E = model.model.language_model.embed_tokens(ids)
    E[0, 3:7], E[1, 1:5], E[1, 7:11] = h[0], h[1], h[2]
    expected = model.lm_head(model.model.language_model(inputs_embeds=E).last_hidden_state)
    torch.testing.assert_close(model(ids, pixels).logits, expected, atol=1e-4, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["paper", "llama", "window", "learned", "sinusoidal"])
def test_text_alone_is_the_text_model(kind, tokens):
    """To the bit, with and without a mask and cache: nothing but the embeddings is different."""
    text, model = build(kind, "sdpa"), seeing(kind)
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    assert torch.equal(model(tokens).logits, text(tokens).logits)
    assert torch.equal(model(tokens, attention_mask=mask).logits, text(tokens, attention_mask=mask).logits)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    assert torch.equal(model.generate(tokens, **options), text.generate(tokens, **options))


@torch.no_grad()
def test_the_order_of_patches_matters():
    """The same four features in another order: other logits after them, the same before them."""
    model = seeing()
    ids, pixels = rows()
    before = model(ids, pixels).logits
    model.model.multi_modal_projector.register_forward_hook(lambda module, args, h: h[:, [1, 0, 2, 3]])
    after = model(ids, pixels).logits
    assert torch.equal(before[0, :3], after[0, :3])
    assert (before[0, 7:] - after[0, 7:]).abs().max() > 0.1


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_encoder_stays(frozen):
    """Its bytes are the same after AdamW with weight decay over all parameters, even if a trainer asks for gradients;
    co-trained they change. The projector learns in both.
    """
    model = seeing(freeze_vision=frozen).train()
    model.requires_grad_(True)
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    before = backbone_sha256(tower), backbone_sha256(projector)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    ids, pixels = rows()
    for _ in range(2):
        optimizer.zero_grad()
        model(ids, pixels, labels=ids).loss.backward()
        optimizer.step()
    assert (backbone_sha256(tower) == before[0]) is frozen
    assert backbone_sha256(projector) != before[1]
    assert tower.training is not frozen
    assert all(p.requires_grad is not frozen for p in tower.parameters())


@torch.no_grad()
def test_the_loss_counts_text_alone():
    """Equation (9) summed over the positions whose target is text: row 0 has 13 targets, of which 4 are visual, row 1
    13 and 8, so 14 remain.
    """
    model = seeing()
    ids, pixels = rows()
    out = model(ids, pixels, labels=ids)
    log_probs, total, count = out.logits.log_softmax(-1), 0.0, 0
    for b in range(2):
        for t in range(13):
            if ids[b, t + 1] != IMAGE:
                total, count = total - log_probs[b, t, ids[b, t + 1]], count + 1
    assert count == 14
    torch.testing.assert_close(out.loss * 14, total)


@torch.no_grad()
@pytest.mark.parametrize("encoder", list(ENCODERS))
@pytest.mark.parametrize("options", [{}, {"vision_feature_layer": [-2, 1], "projector_type": "mlp"}])
def test_encoders(encoder, options):
    """ViT, CLIP, SigLIP (no class token) and DINOv2 (with and without registers): 4 features per image, those of the
    patches; several layers are concatenated.
    """
    model = seeing(encoder=encoder, **options)
    ids, pixels = rows()
    out = model(ids, pixels)
    assert out.image_hidden_states.shape == (12, 32)
    outputs = model.model.vision_tower(pixels, output_hidden_states=True)
    if options:
        v = torch.cat([outputs.hidden_states[-2][:, -4:], outputs.hidden_states[1][:, -4:]], -1)
    else:
        v = outputs.last_hidden_state[:, -4:]
    torch.testing.assert_close(out.image_hidden_states, model.model.multi_modal_projector(v).flatten(0, 1))


@torch.no_grad()
def test_full_selection_keeps_the_class_token():
    model = seeing(vision_feature_select_strategy="full", image_seq_length=5)
    ids, pixels = rows()
    ids[0, 7] = IMAGE
    v = model.model.vision_tower(pixels[:1]).last_hidden_state
    expected = model.model.multi_modal_projector(v)[0]
    torch.testing.assert_close(model(ids[:1], pixels[:1]).image_hidden_states, expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama", "window", "learned"])
def test_a_mixed_batch_generates_as_its_rows_do(kind):
    """Left padding, rows with no, one and two images, with a cache and without: the tokens of each row alone. Sampling
    several times, or with beams, keeps every row's images together.
    """
    model = seeing(kind)
    ids, pixels = rows()
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    alone = [
        model.generate(ids[:1, :9], pixel_values=pixels[:1], **options)[0, 9:],
        model.generate(ids[1:], pixel_values=pixels[1:], **options)[0, 14:],
        model.generate(ids[:1, 9:], **options)[0, 5:],
    ]
    batch = torch.zeros(3, 14, dtype=torch.long)
    batch[0, 5:], batch[1], batch[2, 9:] = ids[0, :9], ids[1], ids[0, 9:]
    for extra in ({}, {"use_cache": False}, {"cache_implementation": "static", "disable_compile": True}):
        mixed = model.generate(batch, pixel_values=pixels, attention_mask=(batch != 0).long(), **options, **extra)
        assert torch.equal(mixed[:, 14:], torch.stack(alone))
    beams = model.generate(batch, pixel_values=pixels, attention_mask=(batch != 0).long(), num_beams=2, **options)
    one = model.generate(ids[1:], pixel_values=pixels[1:], num_beams=2, **options)
    assert torch.equal(beams[1, 14:], one[0, 14:])
    _, expanded = model._expand_inputs_for_generation(2, input_ids=batch, pixel_values=pixels)
    assert torch.equal(expanded["pixel_values"], pixels[[0, 0, 1, 2, 1, 2]])


def test_embeddings_and_checkpoints():
    """The text's embeddings instead of its ids, and gradient checkpointing, change nothing."""
    model = seeing().train()
    ids, pixels = rows()
    loss = model(ids, pixels, labels=ids).loss
    loss.backward()
    gradient = model.model.multi_modal_projector.linear.weight.grad.clone()
    embedded = model(inputs_embeds=model.get_input_embeddings()(ids), pixel_values=pixels, labels=ids).loss
    torch.testing.assert_close(embedded, loss)
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(ids, pixels, labels=ids, use_cache=False).loss.backward()
    torch.testing.assert_close(model.model.multi_modal_projector.linear.weight.grad, gradient)


@torch.no_grad()
def test_images_and_places_must_agree():
    """12 places and 8 features: said so, before anything is computed with them."""
    model = seeing()
    ids, pixels = rows()
    with pytest.raises(ValueError, match="tokens: 12, features: 8"):
        model(ids, pixels[:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projector_type": "cubic"}, "choose one of linear, mlp"),
        ({"vision_feature_select_strategy": "first"}, "choose one of default, full"),
        ({"vision_feature_select_strategy": "full"}, "image_seq_length is missing"),
        ({"vision_feature_layer": 4}, "hidden states 0 to 3"),
        ({"text_config": LlamaConfig()}, "must be a NarLMConfig"),
        ({"vision_config": LlamaConfig()}, "has no image_size"),
    ],
)
def test_a_config_that_means_nothing(options, message):
    given = {"text_config": build().config, "vision_config": ViTConfig(**SHAPE)}
    with pytest.raises(ValueError, match=message):
        NarLMVisionConfig(**{**given, **options})


# ---------------------------------------------------------------------- parity


def llava(**options) -> LlavaForConditionalGeneration:
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    vision = CLIPVisionConfig(**SHAPE)
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE, image_seq_length=4)
    return LlavaForConditionalGeneration(config).eval()


@torch.no_grad()
def test_llava_and_back():
    """CLIP tower, MLP projector, Llama: logits to 1e-5 by copying weights, and every tensor as it was on the way back;
    the greedy tokens are the same.
    """
    model = llava()
    ids, pixels = rows()
    narlm = convert(model, "narlm")
    back = convert(narlm, "llava")
    expected = model(input_ids=ids, pixel_values=pixels).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(narlm(ids, pixels).logits, expected, atol=1e-5, rtol=0)
    weights = model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in back.state_dict().items())
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    given = {"input_ids": ids[1:], "pixel_values": pixels[1:], **options}
    assert torch.equal(narlm.generate(**given), model.generate(**given))


def test_what_llava_has_no_place_for():
    with pytest.raises(UserError, match="projector_type='mlp'"):
        convert(seeing(), "llava")
    with pytest.raises(UserError, match="vision_feature_layer of this NarLM is None"):
        convert(seeing(projector_type="mlp"), "llava")
    with pytest.raises(UserError, match="Llava becomes narlm"):
        convert(llava(), "gpt2")
