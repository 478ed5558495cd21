"""NarLM that sees in the common testers of transformers; ``transformers_suite.py`` prepares what this imports."""

import unittest

import transformers.models.auto.modeling_auto as auto
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor, random_attention_mask
from transformers import CLIPVisionConfig, ViTConfig

from pipeline.model import NarLMConfig, NarLMForConditionalGeneration, NarLMVisionConfig, NarLMVisionModel

# The testers tell what a class is for by its name in the library's own tables.
auto.MODEL_MAPPING_NAMES["narlm_vision"] = "NarLMVisionModel"
auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["narlm_vision"] = "NarLMForConditionalGeneration"

SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 37,
    "image_size": 8,
    "patch_size": 4,
}


class NarLMVisionModelTester:
    """Three rows of eleven tokens, of which four are the places of an image."""

    is_training = True
    encoder: type = ViTConfig
    options: dict = {}

    def __init__(self, parent):
        self.parent = parent
        self.batch_size, self.seq_length, self.image_token_id = 3, 11, 98
        self.hidden_size, self.num_hidden_layers, self.num_attention_heads = 32, 2, 2

    def get_config(self) -> NarLMVisionConfig:
        """Both sides tiny."""
        text = NarLMConfig(
            vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            intermediate_size=37, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        return NarLMVisionConfig(
            text_config=text, vision_config=self.encoder(**SHAPE), image_token_id=self.image_token_id, **self.options
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[NarLMVisionConfig, dict]:
        """As the testers call it."""
        ids = ids_tensor([self.batch_size, self.seq_length], 95) + 3
        ids[:, 1:5] = self.image_token_id
        pixels = floats_tensor([self.batch_size, 3, 8, 8])
        mask = random_attention_mask([self.batch_size, self.seq_length])
        return self.get_config(), {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}


class VisionSuite(ModelTesterMixin, GenerationTesterMixin):
    """The common tests of models and of generation."""

    all_model_classes = (NarLMVisionModel, NarLMForConditionalGeneration)
    all_generative_model_classes = (NarLMForConditionalGeneration,)
    pipeline_model_mapping: dict = {}
    model_tester_class = NarLMVisionModelTester
    _is_composite = True
    test_resize_embeddings = True

    def setUp(self):
        self.model_tester = self.model_tester_class(self)
        self.config_tester = ConfigTester(
            self, config_class=NarLMVisionConfig, has_text_modality=False, common_properties=["image_token_id"]
        )

    def test_config(self):
        """Save, load, compose."""
        self.config_tester.run_common_tests()


class TestLinearViT(VisionSuite, unittest.TestCase):
    """A linear projector before a trained ViT."""

    class model_tester_class(NarLMVisionModelTester):
        options = {"freeze_vision": False}


class TestMLPClip(VisionSuite, unittest.TestCase):
    """An MLP projector before a trained CLIP, the last layer but one."""

    class model_tester_class(NarLMVisionModelTester):
        encoder = CLIPVisionConfig
        options = {"freeze_vision": False, "projector_type": "mlp", "vision_feature_layer": -2}
