"""Chat templates by name, for ``--chat_template_path``: each marks by ``{% generation %}`` what the assistant writes.

`SHIPPED` are formats that TRL has no training version of; the others are TRL's own (`OF_TRL`; Gemma 3's is that of its
predecessors, and puts a system message in front of the user's first). ``narlm`` (it is in `pipeline.model.tokenizer`),
``zephyr`` and ``mistral`` end a turn with the tokenizer's EOS, so any base can learn them; the others end it with a
special token of their family, which the tokenizer must have.

A turn of the assistant is marked from its first character to the token that ends it. The mark stops there: the line
break that ChatML and Zephyr write next is the template's.
"""

CHATML = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{- message['content'] + '<|im_end|>' -}}{% endgeneration %}
{%- else -%}
{{- message['content'] + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""

# HuggingFaceH4/zephyr-7b-beta, and the handbook that its recipe is from.
ZEPHYR = """{%- for message in messages -%}
{{- '<|' + message['role'] + '|>\\n' -}}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{- message['content'] + eos_token -}}{% endgeneration %}
{%- else -%}
{{- message['content'] + eos_token -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"""

# mistralai/Mistral-7B-Instruct-v0.2; a system message goes in front of the user's first, as in its successors.
MISTRAL = """{{- bos_token -}}
{%- set system = messages[0]['content'] + '\\n\\n' if messages[0]['role'] == 'system' else '' -%}
{%- for message in (messages[1:] if system else messages) -%}
{%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
{{- raise_exception('Mistral\\'s format wants turns of user and assistant that alternate, the user first.') -}}
{%- endif -%}
{%- if message['role'] == 'user' -%}
{{- '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' -}}
{%- else -%}
{% generation %}{{- message['content'] + eos_token -}}{% endgeneration %}
{%- endif -%}
{%- endfor -%}"""

SHIPPED = {"chatml": CHATML, "zephyr": ZEPHYR, "mistral": MISTRAL}
OF_TRL = {"llama3": "llama3_training_chat_template", "gemma": "gemma3_training_chat_template"}
NAMES = ("narlm", *SHIPPED, *OF_TRL)


def named_template(name: str) -> str | None:
    """The template of a name other than ``narlm``; None where it is no such name."""
    if name in OF_TRL:
        from pipeline.runtime import compat

        return getattr(compat, OF_TRL[name])
    return SHIPPED.get(name)
