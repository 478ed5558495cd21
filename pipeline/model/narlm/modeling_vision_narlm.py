"""NarLM that sees: images as further embeddings of the same causal model (Part 1, section 5 of arXiv:2602.00426).

    h_j = W_proj v_j + b_proj        the features v_1, …, v_P of an image take the places of its placeholders

Everything behind the embeddings is `NarLMModel` as it is: the same blocks, masks and positions for visual and text
positions. Shapes, beside those of ``modeling_narlm.py``: I images of a batch, P features of an image, C x Y x X
pixels, D_v width of a feature.

Where the paper leaves it open:
    - patches are in raster order, and the mask among them is causal; each takes one position;
    - (9) has no target at a visual position, so labels there are left out of the loss.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.generation import GenerationMixin
from transformers.modeling_layers import GenericForSequenceClassification
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.modeling_auto import AutoModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults

from .configuration_vision_narlm import NarLMVisionConfig
from .modeling_narlm import NarLMModel
from .versions_narlm import CACHE_NAME, CACHE_NAMES, given_cache, slice_logits_to_keep


@dataclass
class NarLMVisionModelOutput(BaseModelOutputWithPast):
    """Hidden states (B, T, D), and the projected features (I * P, D) where images were given."""

    image_hidden_states: torch.Tensor | None = None


@dataclass
class NarLMVisionCausalLMOutput(CausalLMOutputWithPast):
    """Logits (B, T, V), and the projected features (I * P, D) where images were given."""

    image_hidden_states: torch.Tensor | None = None


class NarLMLinearProjector(nn.Module):
    """h_j = W_proj v_j + b_proj."""

    def __init__(self, config: NarLMVisionConfig):
        super().__init__()
        self.linear = nn.Linear(config.feature_size, config.text_config.hidden_size, bias=config.projector_bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(I, P, D_v) -> (I, P, D)."""
        return self.linear(features)


class NarLMMLPProjector(nn.Module):
    """h_j = W_2 sigma(W_1 v_j + b_1) + b_2."""

    def __init__(self, config: NarLMVisionConfig):
        super().__init__()
        D = config.text_config.hidden_size
        self.linear_1 = nn.Linear(config.feature_size, D, bias=config.projector_bias)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(D, D, bias=config.projector_bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(I, P, D_v) -> (I, P, D)."""
        return self.linear_2(self.act(self.linear_1(features)))


PROJECTORS = {"linear": NarLMLinearProjector, "mlp": NarLMMLPProjector}


class NarLMVisionPreTrainedModel(PreTrainedModel):
    """What the heads share: the config, and what transformers may do with the model."""

    config: NarLMVisionConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["NarLMDecoderLayer"]
    _skip_keys_device_placement = list(CACHE_NAMES)
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _can_compile_fullgraph = True
    _supports_attention_backend = True

    def requires_grad_(self, requires_grad: bool = True) -> "NarLMVisionPreTrainedModel":
        """As in PyTorch, but for an encoder that is frozen by the config."""
        super().requires_grad_(requires_grad)
        if self.config.freeze_vision:
            self.base_model.vision_tower.requires_grad_(False)
        return self


class NarLMVisionModel(NarLMVisionPreTrainedModel):
    """Encoder, projector and F_theta of (4): token indices and pixels to hidden states."""

    def __init__(self, config: NarLMVisionConfig):
        super().__init__(config)
        self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = PROJECTORS[config.projector_type](config)
        self.language_model = NarLMModel(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """W_emb."""
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Another W_emb."""
        self.language_model.embed_tokens = value

    def train(self, mode: bool = True) -> "NarLMVisionModel":
        """As in PyTorch; a frozen encoder stays in evaluation mode (it has no dropout) and out of every optimizer."""
        super().train(mode)
        if self.config.freeze_vision:
            self.vision_tower.eval().requires_grad_(False)
        return self

    @merge_with_config_defaults
    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """(I, C, Y, X) pixels -> the encoder's output, whose ``pooler_output`` holds h (P, D) of each image."""
        layers = self.config.vision_feature_layer
        kwargs = {**kwargs, "output_hidden_states": layers is not None or kwargs.get("output_hidden_states", False)}
        kwargs["return_dict"] = True
        weight = next(self.vision_tower.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze_vision):
            outputs = self.vision_tower(pixel_values.to(weight.dtype), **kwargs)
            if layers is None:
                features = outputs.last_hidden_state
            else:
                chosen = layers if isinstance(layers, list) else [layers]
                features = torch.cat([outputs.hidden_states[layer] for layer in chosen], dim=-1)
        if self.config.vision_feature_select_strategy == "default":
            features = features[:, -self.config.patches :]  # what is no patch (class token, registers) stands before
        outputs.pooler_output = list(self.multi_modal_projector(features))
        return outputs

    def place(
        self, input_ids: torch.LongTensor | None, inputs_embeds: torch.Tensor, visual: torch.Tensor
    ) -> torch.Tensor:
        """E with the visual embeddings (I * P, D) at the places of the image token, in order: (B, T, D).

        Raises:
            ValueError: there are more or fewer places than embeddings.
        """
        image_token = self.config.image_token_id
        if input_ids is not None:
            places = input_ids == image_token
        else:
            index = torch.full((), image_token, dtype=torch.long, device=inputs_embeds.device)
            places = (inputs_embeds == self.get_input_embeddings()(index)).all(-1)
        if not torch.compiler.is_compiling() and int(places.sum()) != len(visual):
            raise ValueError(
                f"Image features and image tokens do not match, tokens: {int(places.sum())}, features: {len(visual)}"
            )
        return inputs_embeds.masked_scatter(places.unsqueeze(-1), visual.to(inputs_embeds))

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> NarLMVisionModelOutput:
        """input_ids (B, T) with P placeholders per image, pixel_values (I, C, Y, X) -> hidden states (B, T, D).

        Images of all rows follow each other in ``pixel_values``; a row may have none, or several.

        Raises:
            TypeError: two caches, or a cache under an unknown name.
            ValueError: both or neither of input_ids and inputs_embeds; images and placeholders that do not agree.
        """
        cache = given_cache(past_key_values, cache, kwargs)
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        visual = None
        if pixel_values is not None:
            visual = torch.cat(self.get_image_features(pixel_values, return_dict=True).pooler_output)
            inputs_embeds = self.place(input_ids, inputs_embeds, visual)
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            cache=cache,
            **kwargs,
        )
        return NarLMVisionModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=visual,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
        )


class NarLMForConditionalGeneration(NarLMVisionPreTrainedModel, GenerationMixin):
    """The next-token distribution (8) of a text with images in it."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: NarLMVisionConfig):
        super().__init__(config)
        self.model = NarLMVisionModel(config)
        text = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=text.output_bias)  # W_out, b_out
        self.post_init()

    def get_image_features(
        self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> BaseModelOutputWithPooling:
        """See `NarLMVisionModel.get_image_features`."""
        return self.model.get_image_features(pixel_values=pixel_values, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> NarLMVisionCausalLMOutput:
        """input_ids (B, T), pixel_values (I, C, Y, X) -> logits (B, T, V) and, with labels (B, T), the mean of (9).

        Labels are the input itself, shifted inside; those that are -100 or the image token are left out.
        """
        outputs: NarLMVisionModelOutput = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            cache=cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))  # (7)
        loss = None
        if labels is not None:
            labels = labels.masked_fill(labels == self.config.image_token_id, -100)
            vocab_size = self.config.text_config.vocab_size
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab_size, **kwargs)  # (9)
        return NarLMVisionCausalLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            **{CACHE_NAME: getattr(outputs, CACHE_NAME)},
        )

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids=None, **model_kwargs
    ) -> tuple[torch.LongTensor | None, dict[str, object]]:
        """Every row several times, for beams and samples: with its images, which the library would tear apart."""
        pixels = model_kwargs.pop("pixel_values", None)
        rows = input_ids
        expanded = super()._expand_inputs_for_generation(expand_size, is_encoder_decoder, input_ids, **model_kwargs)
        if pixels is not None:
            if rows is None or not rows.numel():
                pixels = pixels.repeat_interleave(expand_size, dim=0)  # of embeddings nobody says which image is whose
            else:
                places = (rows == self.config.image_token_id).sum(-1)
                counts = (places * len(pixels) // places.sum().clamp(min=1)).tolist()
                pixels = torch.cat([part for own in pixels.split(counts) for part in [own] * expand_size])
            expanded[1]["pixel_values"] = pixels
        return expanded


class NarLMVisionForSequenceClassification(GenericForSequenceClassification, NarLMVisionPreTrainedModel):
    """A linear score of the last token that is not padding; with ``num_labels=1`` the reward R_phi."""

    def __init__(self, config: NarLMVisionConfig):
        NarLMVisionPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = NarLMVisionModel(config)
        self.score = nn.Linear(config.text_config.hidden_size, config.num_labels, bias=False)
        self.post_init()


__all__ = [
    "NarLMForConditionalGeneration",
    "NarLMVisionForSequenceClassification",
    "NarLMVisionModel",
    "NarLMVisionPreTrainedModel",
]
