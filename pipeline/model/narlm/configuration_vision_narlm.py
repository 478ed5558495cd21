"""Configuration of a NarLM that sees: Part 1, section 5 of arXiv:2602.00426.

A text model, a vision encoder of the library and the projector between them. This file is saved with every such model.
"""

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import AutoConfig

from .configuration_narlm import NarLMConfig

PROJECTORS = ("linear", "mlp")
SELECTIONS = ("default", "full")
VISION_AUTO_MAP = {
    "AutoConfig": "configuration_vision_narlm.NarLMVisionConfig",
    "AutoModel": "modeling_vision_narlm.NarLMVisionModel",
    "AutoModelForCausalLM": "modeling_vision_narlm.NarLMForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_vision_narlm.NarLMForConditionalGeneration",
    "AutoModelForSequenceClassification": "modeling_vision_narlm.NarLMVisionForSequenceClassification",
}


@strict
class NarLMVisionConfig(PreTrainedConfig):
    r"""Shape of a NarLM that reads images.

    Args:
        text_config: of the text model, a ``NarLMConfig`` or its fields.
        vision_config: of the encoder (ViT, CLIP, SigLIP, DINOv2, …), or its fields with their ``model_type``.
        image_token_id: the token whose places in a text the visual features take.
        vision_feature_layer: which hidden state of the encoder gives the features v_j: an index (0 is the embedding,
            -2 the last layer but one), several whose features are concatenated, or None for the encoder's output.
        vision_feature_select_strategy: ``default`` for the patches alone, ``full`` for what the encoder puts before
            them too (class token, registers).
        image_seq_length: features of one image; counted from the sizes of image and patch when not given.
        projector_type: ``linear``, W_proj v_j + b_proj, or ``mlp``, two such maps with a nonlinearity between them.
        projector_hidden_act: that nonlinearity.
        projector_bias: b_proj.
        freeze_vision: the encoder is never trained, whatever trains the model; else it is trained along.
        tie_word_embeddings: W_out = W_emb^T, as in the text model's config.

    Raises:
        ValueError: a combination that means nothing, with what to change.
    """

    model_type = "narlm_vision"
    sub_configs = {"text_config": NarLMConfig, "vision_config": AutoConfig}
    keys_to_ignore_at_inference = ["past_key_values", "cache", "image_hidden_states"]

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    image_token_id: int = 0
    vision_feature_layer: int | list[int] | None = None
    vision_feature_select_strategy: str = "default"
    image_seq_length: int | None = None
    projector_type: str = "linear"
    projector_hidden_act: str = "gelu"
    projector_bias: bool = True
    freeze_vision: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if self.text_config is None:
            self.text_config = NarLMConfig()
        elif isinstance(self.text_config, dict):
            self.text_config = NarLMConfig(**self.text_config)
        if self.vision_config is None:
            self.vision_config = AutoConfig.for_model("vit")
        elif isinstance(self.vision_config, dict):
            fields = dict(self.vision_config)
            self.vision_config = AutoConfig.for_model(fields.pop("model_type", "vit"), **fields)
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        kwargs.setdefault("auto_map", dict(VISION_AUTO_MAP))
        super().__post_init__(**kwargs)
        self.validate_architecture()
        if self.image_seq_length is None:
            self.image_seq_length = self.patches

    @property
    def patches(self) -> int:
        """Patches of an image of the encoder's size."""
        sides = zip(_pair(self.vision_config.image_size), _pair(self.vision_config.patch_size))
        height, width = (size // patch for size, patch in sides)
        return height * width

    @property
    def feature_size(self) -> int:
        """d_v, the width of a visual feature."""
        layers = self.vision_feature_layer
        return self.vision_config.hidden_size * (len(layers) if isinstance(layers, list) else 1)

    def validate_architecture(self):
        """Every rule between fields; run when a config is made and, by ``@strict``, when it is saved."""
        if self.text_config.model_type != "narlm":
            raise ValueError(f"text_config is of a {self.text_config.model_type} model: it must be a NarLMConfig.")
        for name in ("hidden_size", "image_size", "patch_size"):
            if not hasattr(self.vision_config, name):
                raise ValueError(
                    f"vision_config ({self.vision_config.model_type}) has no {name}: take an encoder of patches such "
                    "as vit, clip_vision_model, siglip_vision_model or dinov2."
                )
        for name, allowed in (
            ("projector_type", PROJECTORS),
            ("vision_feature_select_strategy", SELECTIONS),
            ("projector_hidden_act", tuple(ACT2FN)),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(allowed)}.")
        layers = self.vision_feature_layer
        if layers == []:
            raise ValueError("vision_feature_layer is empty: name a layer, or leave it out for the encoder's output.")
        depth = self.vision_config.num_hidden_layers
        for layer in layers if isinstance(layers, list) else [] if layers is None else [layers]:
            if not -depth - 1 <= layer <= depth:
                raise ValueError(f"vision_feature_layer is {layer}: the encoder has the hidden states 0 to {depth}.")
        if self.image_seq_length is None and self.vision_feature_select_strategy == "full":
            raise ValueError("image_seq_length is missing: with 'full' it depends on the encoder, so set it.")
        if self.image_seq_length is not None and self.image_seq_length < 1:
            raise ValueError(f"image_seq_length is {self.image_seq_length}: an image has at least one feature.")


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


__all__ = ["NarLMVisionConfig"]
