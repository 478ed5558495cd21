"""What of a model that sees concerns its rows: the processor, the images of a dialogue, their places and pixels.

A model that sees is saved with a processor. `load_tokenizer` keeps that processor with the tokenizer, so that whatever
takes a tokenizer can tell, by `processor_of`, how many places an image takes and what its pixels are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeGuard

from pipeline.runtime.errors import UserError
from pipeline.runtime.messages import Message, is_dialogue

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from transformers import PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin


def sees(config: PretrainedConfig) -> bool:
    """Whether a model of this config reads images."""
    return getattr(config, "vision_config", None) is not None and getattr(config, "image_token_id", None) is not None


def processor_of(tokenizer: PreTrainedTokenizerBase) -> ProcessorMixin | None:
    """The processor that a tokenizer was saved with; None for one of a text model."""
    return getattr(tokenizer, "narlm_processor", None)


def keep_processor(tokenizer: PreTrainedTokenizerBase, processor: ProcessorMixin) -> PreTrainedTokenizerBase:
    """The tokenizer, from which `processor_of` finds the processor, and which the processor uses in turn."""
    processor.tokenizer = tokenizer
    tokenizer.narlm_processor = processor
    return tokenizer


def trained_with(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase | ProcessorMixin:
    """What a trainer takes as ``processing_class``: the processor where there is one."""
    processor = processor_of(tokenizer)
    if processor is None:
        return tokenizer
    processor.chat_template = tokenizer.chat_template
    return processor


# ---------------------------------------------------------------------- the images of a dialogue


def load_processor(name: str, config: PretrainedConfig, trust_remote_code: bool = False) -> ProcessorMixin | None:
    """The processor saved with a model that sees, or with its adapter; None for a text model.

    Raises:
        UserError: the model reads images, and there is no processor.
    """
    if not sees(config):
        return None
    from transformers import AutoProcessor

    try:
        found = AutoProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(
            f"model_name_or_path: {name} reads images, but its processor cannot be loaded: save one beside it "
            f"({' '.join(str(error).split())[:160]})"
        ) from error
    return found if hasattr(found, "image_processor") else None


def image_place(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """What stands for an image in a rendered text, and what it becomes: the same token once per place.

    None for a text model, and for one whose images take a number of places that depends on their size.
    """
    processor = processor_of(tokenizer)
    token = getattr(processor, "image_token", None)
    if token is None:
        return None
    counts = processor._get_num_multimodal_tokens(image_sizes=[[64, 64], [640, 320]])["num_image_tokens"]
    return (token, token * counts[0]) if len(set(counts)) == 1 else None


def is_image_part(part: object) -> TypeGuard[Mapping]:
    """Whether a part of a message's content is an image, or its place."""
    return isinstance(part, Mapping) and part.get("type") == "image"


def images_of(turn: object) -> list[Image.Image]:
    """The images in the content of a dialogue's messages, in order; none in text.

    Raises:
        UserError: a place without its image.
    """
    if not is_dialogue(turn):
        return []
    parts = (part for message in turn if isinstance(message.get("content"), list) for part in message["content"])
    places = [part for part in parts if is_image_part(part)]
    if any(part.get("image") is None for part in places):
        raise UserError("a prompt has a place for an image and no image: this reads text only")
    return [part["image"] for part in places]


def with_images(messages: Sequence[Message], images: Sequence[object]) -> list[Message]:
    """Messages whose image parts hold the images, as TRL fills them: before the first user's text where there is no
    part for them.

    Raises:
        UserError: there are more or fewer places than images.
    """
    from trl.data_utils import prepare_multimodal_messages

    if not images and not any(isinstance(message.get("content"), list) for message in messages):
        return list(messages)
    try:
        return prepare_multimodal_messages(list(messages), images=list(images))
    except ValueError as error:
        raise UserError(str(error)) from error


def pixels_of(tokenizer: PreTrainedTokenizerBase, images: Sequence[Image.Image]) -> torch.Tensor:
    """(I, C, Y, X) pixels of the images.

    Raises:
        UserError: a text model is given images, or the processor gives more than pixels, which only the model's own
            ``generate`` can use.
    """
    processor = processor_of(tokenizer)
    if processor is None:
        raise UserError("the prompt has an image, but the model reads text only: name a model that sees")
    found = processor.image_processor(list(images), return_tensors="pt")
    if set(found) != {"pixel_values"} or found["pixel_values"].dim() != 4 or image_place(tokenizer) is None:
        raise UserError(
            f"images of this model come as {', '.join(found)}: only models whose images are pixels of one size can be "
            "sampled from here"
        )
    return found["pixel_values"]
