"""A text model that gets eyes: its tokenizer, an encoder, a new projector and the processor, put together."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from transformers import AutoConfig, AutoImageProcessor, AutoModel, set_seed
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pipeline.model.conversion import convert
from pipeline.model.narlm.configuration_vision_narlm import NarLMVisionConfig
from pipeline.model.narlm.modeling_vision_narlm import NarLMForConditionalGeneration
from pipeline.model.narlm.processing_vision_narlm import NarLMProcessor
from pipeline.model.tokenizer import CHAT_TEMPLATE, MESSAGE_RULES
from pipeline.model.vision import keep_processor, sees
from pipeline.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    from pipeline.model.narlm.modeling_narlm import NarLMForCausalLM

IMAGE_TOKEN = "<|image|>"


@dataclass
class SightArguments:
    """The encoder of a text model that learns to see, and how its features enter."""

    vision_model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Encoder before the text model: folder or Hub id of one, or of a model that sees; or a type with "
            "random weights (vit, clip_vision_model, siglip_vision_model, dinov2). Rows then have image and text."
        },
    )
    vision_image_size: int = field(default=32, metadata={"help": "Side of the image in pixels, for a new encoder."})
    vision_patch_size: int = field(default=8, metadata={"help": "Side of a patch in pixels, for a new encoder."})
    vision_hidden_size: int = field(default=64, metadata={"help": "Width d_v of a new encoder's features."})
    vision_num_hidden_layers: int = field(default=2, metadata={"help": "Layers of a new encoder."})
    vision_num_attention_heads: int = field(default=4, metadata={"help": "Attention heads of a new encoder."})
    vision_feature_layer: int | None = field(
        default=None, metadata={"help": "Hidden state that gives the features, e.g. -2; default: the output."}
    )
    vision_feature_select_strategy: Literal["default", "full"] = field(
        default="default", metadata={"help": "default: the patches alone; full: class token and registers too."}
    )
    projector_type: Literal["linear", "mlp"] = field(
        default="linear", metadata={"help": "Projector: W v + b, or two such maps with a GELU between them."}
    )
    freeze_vision: bool = field(
        default=True, metadata={"help": "Never train the encoder, in this stage and the later ones."}
    )
    projector_only: bool = field(
        default=False, metadata={"help": "Train the new projector and leave the text model as it is."}
    )

    def encoder_shape(self) -> dict[str, int]:
        """Fields of a new encoder's config."""
        names = ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
        return {name: getattr(self, f"vision_{name}") for name in names}

    def options(self) -> dict[str, object]:
        """Fields of ``NarLMVisionConfig``."""
        names = ("vision_feature_layer", "vision_feature_select_strategy", "projector_type", "freeze_vision")
        return {name: getattr(self, name) for name in names}


def seeing_model(
    text: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, arguments: SightArguments, seed: int
) -> NarLMForConditionalGeneration:
    """The text model with the encoder that the arguments name before it; a Llama or Mistral becomes a NarLM first.

    Raises:
        UserError: no such encoder, a text model that NarLM cannot hold, or a model that sees already.
    """
    if sees(text.config):
        raise UserError("vision_model_name_or_path: the model sees already; leave it out")
    text = text if text.config.model_type == "narlm" else convert(text, "narlm")
    name = str(arguments.vision_model_name_or_path)
    shape = arguments.encoder_shape()
    shape |= {"intermediate_size": 4 * shape["hidden_size"]} if name in ("vit", "clip_vision_model") else {}
    encoder, image_processor = load_encoder(name, seed, **(shape if is_encoder_type(name) else {}))
    set_seed(seed)  # of the projector
    model, _ = give_sight(text, tokenizer, encoder, image_processor, **arguments.options())
    if arguments.projector_only:
        model.requires_grad_(False)
        model.model.multi_modal_projector.requires_grad_(True)
    return model


def is_encoder_type(name: str) -> bool:
    """Whether it is a type of the library rather than a folder or Hub id."""
    return name in CONFIG_MAPPING and not Path(name).exists()


# NarLM's template for content that may be parts: what is text comes after a space, as in NarLM's own.
VISION_CHAT_TEMPLATE = (
    """{{- bos_token -}}
{%- macro write(content) -%}
{%- if content is string -%}
{{- content if content[:1] in ' \\n\\t' else ' ' + content -}}
{%- else -%}
{%- for part in content -%}
{%- if part['type'] == 'image' -%}<|image|>{%- elif part['text'] -%}{{- write(part['text']) -}}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
"""
    + MESSAGE_RULES
    + """{{- '<|' + role + '|>' -}}
{%- if role == 'assistant' -%}
{% generation %}{{- write(message['content'] or '') + eos_token -}}{% endgeneration %}
{%- else -%}
{{- write(message['content'] or '') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"""
)


def give_sight(
    model: NarLMForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    encoder: PreTrainedModel,
    image_processor: object,
    **options: object,
) -> tuple[NarLMForConditionalGeneration, ProcessorMixin]:
    """A text NarLM with an encoder and a new projector before it, and the processor that goes with them.

    The text model's weights are the same tensors; its vocabulary grows by the image token. The tokenizer gets that
    token and, where it has NarLM's chat template or none, a template that writes images.

    Args:
        model: the text model, which is taken apart.
        encoder: a vision model of the library, such as ``CLIPVisionModel`` or ``ViTModel``.
        image_processor: of the encoder; its size is set to the encoder's.
        options: further fields of ``NarLMVisionConfig``: the feature layer, the selection, the projector, freezing.

    Raises:
        UserError: a config that means nothing, or an encoder without patches.
    """
    add_image_token(tokenizer)
    if tokenizer.chat_template in (None, CHAT_TEMPLATE):
        tokenizer.chat_template = VISION_CHAT_TEMPLATE
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    try:
        config = NarLMVisionConfig(
            text_config=model.config,
            vision_config=encoder.config,
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            image_seq_length=count_features(encoder, options.get("vision_feature_select_strategy", "default")),
            dtype=model.config.dtype,
            **options,
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"the model's shape: {' '.join(str(error).split())}") from error
    attention = model.config._attn_implementation
    seeing = NarLMForConditionalGeneration._from_config(config, attn_implementation=attention).to(model.dtype)
    try:
        seeing.model.vision_tower.load_state_dict(encoder.state_dict())
    except RuntimeError as error:
        raise UserError(
            f"the encoder's weights are not those of a {type(seeing.model.vision_tower).__name__} "
            f"({' '.join(str(error).split())[:160]})"
        ) from error
    seeing.model.language_model = model.model
    seeing.lm_head = model.lm_head
    seeing.generation_config = model.generation_config
    image_processor = fitted(image_processor, config.vision_config.image_size)
    processor = NarLMProcessor(image_processor, tokenizer, config.image_seq_length)
    keep_processor(tokenizer, processor)
    return seeing.train(model.training), processor


def add_image_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make ``<|image|>`` a special token of the tokenizer, in place."""
    from tokenizers import AddedToken

    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)], special_tokens=True)


def count_features(encoder: PreTrainedModel, strategy: str) -> int:
    """Features of one image: with ``default`` its patches, with ``full`` all that the encoder puts out."""
    import torch

    size, patch = encoder.config.image_size, encoder.config.patch_size
    if strategy != "full":
        return (size // patch) ** 2
    pixels = torch.zeros(1, getattr(encoder.config, "num_channels", 3), size, size, dtype=encoder.dtype)
    with torch.no_grad():
        return encoder(pixels.to(encoder.device)).last_hidden_state.shape[1]


def load_encoder(name: str, seed: int, **shape: object) -> tuple[PreTrainedModel, object]:
    """A vision encoder and its image processor.

    Args:
        name: a folder or Hub id of an encoder, or of a model that sees, whose encoder is taken; or a type of the
            library (``vit``, ``clip_vision_model``, ``siglip_vision_model``, ``dinov2``), whose weights are random.
        seed: of the random weights.
        shape: fields of the config of such a type; for a folder there are none.

    Raises:
        UserError: there is no such encoder, or it has no such field.
    """
    if is_encoder_type(name):
        unknown = [field for field in shape if field not in CONFIG_MAPPING[name]().to_dict()]
        if unknown:
            raise UserError(f"vision_config: a {name} has no field {unknown[0]!r}")
        set_seed(seed)
        return AutoModel.from_config(AutoConfig.for_model(name, **shape)), plain_image_processor()
    if shape:
        raise UserError(f"vision_config: {name} has its shape already; leave it out")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        image_processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False)
        whole = sees(config) or not hasattr(config, "vision_config")  # of CLIP and SigLIP the vision side alone
        model = AutoModel.from_pretrained(
            name, trust_remote_code=False, config=config if whole else config.vision_config
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"vision_model_name_or_path: {name} is no folder or Hub id of a vision encoder with its image processor, "
            f"and no type such as vit ({' '.join(str(error).split())[:120]})"
        ) from error
    return (model.vision_tower if sees(config) else model), image_processor


def plain_image_processor() -> object:
    """Pixels of any image in [-1, 1], resized to the encoder's size; by PIL alone."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil()


def fitted(image_processor: object, size: int) -> object:
    """The image processor with the encoder's size, in place; a square is cut out where it cuts."""
    square = {"height": size, "width": size}
    image_processor.size = square
    if getattr(image_processor, "crop_size", None):
        image_processor.crop_size = square
    return image_processor
