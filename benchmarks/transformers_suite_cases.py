"""NarLM in transformers' common testers. ``transformers_suite.py`` prepares what this imports and runs it."""

import unittest

import transformers.models.auto.modeling_auto as auto
from tests.causal_lm_tester import CausalLMModelTest, CausalLMModelTester

from pipeline.model import (
    NarLMConfig,
    NarLMForCausalLM,
    NarLMForSequenceClassification,
    NarLMForTokenClassification,
    NarLMModel,
)
from tests import test_fsdp_mixin, test_tensor_parallel_mixin

# The testers tell what a class is for by its name in the library's own tables.
auto.MODEL_MAPPING_NAMES["narlm"] = "NarLMModel"
auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["narlm"] = "NarLMForCausalLM"
auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["narlm"] = "NarLMForSequenceClassification"
auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES["narlm"] = "NarLMForTokenClassification"
# Tests on several processes run for the model types listed only; Llama's, to compare with, are listed for FSDP alone.
test_tensor_parallel_mixin.TP_DISTRIBUTED_TEST_MODEL_TYPES.update(("narlm", "llama"))
test_fsdp_mixin.FSDP_DISTRIBUTED_TEST_MODEL_TYPES.add("narlm")


class NarLMModelTester(CausalLMModelTester):
    """The testers' tiny sizes with one kind's choices laid over them."""

    config_class = NarLMConfig
    base_model_class = NarLMModel
    causal_lm_class = NarLMForCausalLM
    sequence_classification_class = NarLMForSequenceClassification
    token_classification_class = NarLMForTokenClassification
    shape: dict = {}

    def __init__(self, parent):
        super().__init__(parent, **self.shape)


class Suite(CausalLMModelTest):
    """Every kind has window layers, since a tester sets a short ``sliding_window`` in a finished config, which a NarLM
    without such layers refuses; they are as long as the longest input, since others compare the shapes of keys and
    attention maps with the input's length. Windows that cut something off are tested in ``tests/model``.
    """

    # As Llama's own tests set them.
    model_split_percents = [0.5, 0.7, 0.8]
    _torch_compile_train_cls = NarLMForCausalLM

    def test_custom_4d_attention_mask(self):
        """Without windows, for which the tester has no mask."""
        self.model_tester.sliding_window = self.model_tester.layer_types = None
        super().test_custom_4d_attention_mask()


class TestPaperDefaults(Suite, unittest.TestCase):
    """LayerNorm, RoPE, GELU, b_out."""

    class model_tester_class(NarLMModelTester):
        shape = {"sliding_window": 512}


class TestLlamaLike(Suite, unittest.TestCase):
    """RMSNorm, SwiGLU, tied head, a window in one of the two layers."""

    class model_tester_class(NarLMModelTester):
        shape = {
            "norm_type": "rmsnorm",
            "ffn_type": "swiglu",
            "hidden_act": "silu",
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "sliding_window": 512,
            "layer_types": ["full_attention", "sliding_attention"],
        }


class TestGPT2Like(Suite, unittest.TestCase):
    """LayerNorm, learned positions, biases everywhere, tied head without bias."""

    class model_tester_class(NarLMModelTester):
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
