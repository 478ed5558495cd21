"""The model room: importing it makes NarLM known to transformers' Auto classes.

A saved NarLM also carries its code files and an ``auto_map``, so that it loads with ``trust_remote_code=True``
where this package is not installed.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoProcessor,
)

from pipeline.model.narlm.configuration_narlm import NarLMConfig
from pipeline.model.narlm.configuration_vision_narlm import NarLMVisionConfig
from pipeline.model.narlm.modeling_narlm import (
    NarLMForCausalLM,
    NarLMForSequenceClassification,
    NarLMForTokenClassification,
    NarLMModel,
    NarLMPreTrainedModel,
)
from pipeline.model.narlm.modeling_vision_narlm import (
    NarLMForConditionalGeneration,
    NarLMVisionForSequenceClassification,
    NarLMVisionModel,
)
from pipeline.model.narlm.processing_vision_narlm import NarLMProcessor

for _config_class in (NarLMConfig, NarLMVisionConfig):
    AutoConfig.register(_config_class.model_type, _config_class, exist_ok=True)
    _config_class.register_for_auto_class()
AutoProcessor.register(NarLMVisionConfig, NarLMProcessor, exist_ok=True)
NarLMProcessor.register_for_auto_class()
for _auto_class, _config_class, _model_class in (
    (AutoModel, NarLMConfig, NarLMModel),
    (AutoModelForCausalLM, NarLMConfig, NarLMForCausalLM),
    (AutoModelForSequenceClassification, NarLMConfig, NarLMForSequenceClassification),
    (AutoModelForTokenClassification, NarLMConfig, NarLMForTokenClassification),
    (AutoModel, NarLMVisionConfig, NarLMVisionModel),
    (AutoModelForCausalLM, NarLMVisionConfig, NarLMForConditionalGeneration),
    (AutoModelForImageTextToText, NarLMVisionConfig, NarLMForConditionalGeneration),
    (AutoModelForSequenceClassification, NarLMVisionConfig, NarLMVisionForSequenceClassification),
):
    _auto_class.register(_config_class, _model_class, exist_ok=True)
    _model_class.register_for_auto_class(_auto_class.__name__)

__all__ = [
    "NarLMConfig",
    "NarLMForCausalLM",
    "NarLMForConditionalGeneration",
    "NarLMForSequenceClassification",
    "NarLMForTokenClassification",
    "NarLMModel",
    "NarLMPreTrainedModel",
    "NarLMProcessor",
    "NarLMVisionConfig",
    "NarLMVisionForSequenceClassification",
    "NarLMVisionModel",
]
