"""NarLM in transformers' common testers. ``transformers_suite.py`` prepares what this imports and runs it."""

import unittest

import torch
import transformers.models.auto.modeling_auto as auto
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import GenerationTesterMixin, ModelTesterMixin, ids_tensor
from tests.test_training_mixin import TrainingTesterMixin

from pipeline.model import (
    NarLMConfig,
    NarLMForCausalLM,
    NarLMForSequenceClassification,
    NarLMForTokenClassification,
    NarLMModel,
)

# The testers tell what a class is for by its name in the library's own tables.
auto.MODEL_MAPPING_NAMES["narlm"] = "NarLMModel"
auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["narlm"] = "NarLMForCausalLM"
auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["narlm"] = "NarLMForSequenceClassification"
auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES["narlm"] = "NarLMForTokenClassification"


class NarLMModelTester:
    """Tiny inputs and a tiny config, with the attributes that the mixins read."""

    base_model_class = NarLMModel
    causal_lm_class = NarLMForCausalLM
    config_class = NarLMConfig
    shape: dict = {}

    def __init__(self, parent):
        self.parent = parent
        self.batch_size, self.seq_length, self.vocab_size = 13, 7, 99
        self.hidden_size, self.intermediate_size = 32, 37
        self.num_hidden_layers, self.num_attention_heads, self.num_key_value_heads = 2, 2, 2
        self.pad_token_id, self.bos_token_id, self.eos_token_id = 0, 1, 2
        self.is_training = True

    def get_config(self):
        names = "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads"
        tokens = "pad_token_id bos_token_id eos_token_id"
        values = {name: getattr(self, name) for name in f"{names} {tokens}".split()}
        return NarLMConfig(**values, max_position_embeddings=512, **self.shape)

    def prepare_config_and_inputs(self):
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        return self.get_config(), input_ids, torch.tril(torch.ones_like(input_ids))

    def prepare_config_and_inputs_for_common(self):
        config, input_ids, mask = self.prepare_config_and_inputs()
        return config, {"input_ids": input_ids, "attention_mask": mask}


class Suite(ModelTesterMixin, GenerationTesterMixin, TrainingTesterMixin):
    all_model_classes = (
        NarLMModel,
        NarLMForCausalLM,
        NarLMForSequenceClassification,
        NarLMForTokenClassification,
    )
    shape: dict = {}

    def setUp(self):
        tester = type("Tester", (NarLMModelTester,), {"shape": self.shape})
        self.model_tester_class = tester
        self.model_tester = tester(self)
        self.config_tester = ConfigTester(self, config_class=NarLMConfig, num_hidden_layers=2, **self.shape)

    def test_config(self):
        self.config_tester.run_common_tests()


class TestPaperDefaults(Suite, unittest.TestCase):
    """LayerNorm, RoPE, GELU, b_out.

    The testers set a short ``sliding_window`` in a finished config, which a NarLM without window layers refuses: so
    these layers have a window from the start, as long as the longest input.
    """

    shape = {"sliding_window": 512}


class TestLlamaLike(Suite, unittest.TestCase):
    """RMSNorm, SwiGLU, tied head, a window in one of the two layers."""

    shape = {
        "norm_type": "rmsnorm",
        "ffn_type": "swiglu",
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "sliding_window": 4,
        "layer_types": ["full_attention", "sliding_attention"],
    }


class TestGPT2Like(Suite, unittest.TestCase):
    """LayerNorm, learned positions, biases everywhere, tied head without bias."""

    shape = {
        "sliding_window": 512,
        "position_embedding_type": "learned",
        "hidden_act": "gelu_new",
        "attention_bias": True,
        "output_bias": False,
        "tie_word_embeddings": True,
    }


for _name in [name for name in dir(TestGPT2Like) if name.startswith("test_model_rope")]:
    setattr(TestGPT2Like, _name, unittest.skip("learned positions: there is no RoPE to scale")(lambda self: None))
