"""Models and a tokenizer small enough for tests: 24 words, two layers, built in milliseconds without any file."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<|pad|>", "<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>", "<|end|>"]
WORDS = ["=", "+", "####", *"0123456789", "a", "b", "c", "d", "e"]
TEMPLATE = (
    "{{ '<|bos|>' }}{% for m in messages %}{{ ' <|' + m['role'] + '|> ' + m['content'] }}"
    "{% if m['role'] == 'assistant' and not (loop.last and continue_final_message) %}{{ ' <|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ ' <|assistant|>' }}{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, words joined by spaces; ids count through SPECIALS, then WORDS."""
    vocabulary = {word: index for index, word in enumerate(SPECIALS + WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="e"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|eos|>", unk_token="e"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>", "<|end|>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def tiny_model(kind: str = "qwen2", *, seed: int = 0, eos_bias: float = 0.0, **options):
    """A random causal LM of a given transformers model type; ``eos_bias`` makes it stop more often."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "initializer_range": 0.5,
    }
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(kind, vocab_size=len(SPECIALS + WORDS), **sizes, **ids, **options)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    if eos_bias:
        head = model.get_output_embeddings()
        head.bias = torch.nn.Parameter(torch.zeros(head.out_features))
        head.bias.data[2] = eos_bias
    return model
