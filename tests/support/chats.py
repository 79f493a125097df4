"""Chat templates and rows as people have them, and a tokenizer for them."""

from typing import Any

from tests.support import tiny

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{{ '\\n' }}"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Thinks, calls tools, and drops the thoughts of earlier turns, as Qwen3's and its like do.
THINKING = """\
{%- if tools %}<|im_start|>system
Tools:{% for t in tools %} {{ t | tojson }}{% endfor %}<|im_end|>
{% endif -%}
{%- set ns = namespace(last=-1) -%}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}\
{% endfor -%}
{%- for m in messages -%}
<|im_start|>{{ m.role }}
{% if m.role == 'assistant' -%}
{%- set said = m.content or '' -%}
{%- if m.reasoning_content %}{% set thought = m.reasoning_content %}\
{% elif '</think>' in said %}\
{% set thought = said.split('</think>')[0].split('<think>')[-1].strip('\\n') %}\
{% set said = said.split('</think>')[-1].lstrip('\\n') %}\
{% else %}{% set thought = '' %}{% endif -%}
{%- if loop.index0 > ns.last %}<think>
{{ thought }}
</think>

{% endif %}{{ said }}
{%- for c in m.tool_calls or [] %}
<tool_call>{{ (c.function if c.function else c) | tojson }}</tool_call>
{%- endfor %}
{%- else %}{{ m.content }}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif %}{% endif -%}
"""

ASKED = {"role": "user", "content": "How do I reset my password?"}
SAID = {"role": "assistant", "content": "Open settings, choose security."}
ASKED_AGAIN = {"role": "user", "content": "And my e-mail address?"}
SAID_AGAIN = {"role": "assistant", "content": "It is in the same place."}
WEATHER = {
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def tokenizer(template: str = CHATML) -> Any:
    """The tiny tokenizer with ChatML's marks as tokens."""
    made = tiny.tokenizer()
    made.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    made.eos_token = "<|im_end|>"
    made.chat_template = template
    return made
