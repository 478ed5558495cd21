"""The model room: importing it makes NarLM known to transformers' Auto classes.

A saved NarLM also carries its three code files and an ``auto_map``, so that it loads with ``trust_remote_code=True``
where this package is not installed.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from pipeline.model.narlm.configuration_narlm import NarLMConfig
from pipeline.model.narlm.modeling_narlm import (
    NarLMForCausalLM,
    NarLMForSequenceClassification,
    NarLMForTokenClassification,
    NarLMModel,
    NarLMPreTrainedModel,
)

AutoConfig.register("narlm", NarLMConfig, exist_ok=True)
NarLMConfig.register_for_auto_class()
for _auto_class, _model_class in (
    (AutoModel, NarLMModel),
    (AutoModelForCausalLM, NarLMForCausalLM),
    (AutoModelForSequenceClassification, NarLMForSequenceClassification),
    (AutoModelForTokenClassification, NarLMForTokenClassification),
):
    _auto_class.register(NarLMConfig, _model_class, exist_ok=True)
    _model_class.register_for_auto_class(_auto_class.__name__)

__all__ = [
    "NarLMConfig",
    "NarLMForCausalLM",
    "NarLMForSequenceClassification",
    "NarLMForTokenClassification",
    "NarLMModel",
    "NarLMPreTrainedModel",
]
