"""Processor of a NarLM that sees: text and images to token ids, in which every image has its places, and pixels.

This file is saved with every such model, so that the folder loads without this package.
"""

from collections.abc import Sequence

from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import MultiModalData, ProcessorMixin


class NarLMProcessor(ProcessorMixin):
    """A tokenizer and an image processor; ``image_token`` in a text stands for one image.

    Args:
        image_processor: of the encoder; without torchvision its PIL version.
        tokenizer: of the text model, with the image token among its special tokens.
        image_seq_length: places that an image takes, as in the model's config.
        chat_template: default: the tokenizer's.
        image_token: what stands for an image in a text.

    Raises:
        ValueError: the tokenizer has no such token.
    """

    def __init__(
        self, image_processor=None, tokenizer=None, image_seq_length=1, chat_template=None, image_token="<|image|>"
    ):
        self.image_seq_length = image_seq_length
        self.image_token = image_token
        if image_token not in tokenizer.get_vocab():
            raise ValueError(f"the tokenizer has no token {image_token!r} that stands for an image: add it first.")
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)

    def __call__(self, images=None, text=None, **kwargs) -> BatchFeature:
        """Text and images -> ``input_ids``, ``attention_mask`` and, where there are images, ``pixel_values``.

        Args:
            images: an image, a list of them, or one list for each text; a text without images has None or an empty
                list, as trainers pass it for mixed batches.
            text: one or several.

        Raises:
            ValueError: a text whose placeholders are not as many as its images, or an image that is a URL.
        """
        texts = [text] if isinstance(text, str) else text
        nested = isinstance(images, Sequence) and any(isinstance(own, list | tuple) or own is None for own in images)
        if nested and texts is not None and len(images) == len(texts):
            for row, (own, one) in enumerate(zip(images, texts)):
                given, places = len(_flat(own)), one.count(self.image_token)
                if given != places:
                    raise ValueError(f"text {row} has {places} places for images and {given} images: make them agree.")
        flat = _flat(images)
        for image in flat:
            if isinstance(image, str) and image.startswith(("http://", "https://")):
                raise ValueError(f"{image} is a URL: images are not fetched; give a file, bytes or a PIL image.")
        return super().__call__(images=flat or None, text=text, **kwargs)

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """The places of one image."""
        return self.image_token * self.image_seq_length

    def _get_num_multimodal_tokens(self, image_sizes=None, **kwargs) -> MultiModalData:
        """Places per image for images of the given (height, width): the encoder's size is fixed, so always as many."""
        if image_sizes is None:
            return MultiModalData()
        count = len(image_sizes)
        return MultiModalData(num_image_tokens=[self.image_seq_length] * count, num_image_patches=[1] * count)


def _flat(images) -> list:
    """All images in order, whatever lists they are in; None counts for none."""
    if images is None:
        return []
    if isinstance(images, list | tuple):
        return [image for own in images for image in _flat(own)]
    return [images]


__all__ = ["NarLMProcessor"]
