"""What the chat templates of this package have in common: the content of a turn, and ChatML around it."""

# In these it is to be replaced by what stands for an image
IMAGE = "IMAGE"

# A string, or parts of text and images. An image stands where it is in the text; those behind the text come before it,
# as all do in the original's data.
CONTENT = """\
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- set text = namespace(end=0) -%}
{%- for part in message['content'] -%}
{%- set text.end = loop.index if part['type'] == 'text' else text.end -%}
{%- endfor -%}
{%- for part in message['content'][text.end:] if part['type'] == 'image' -%}
{{- 'IMAGE' -}}
{%- endfor -%}
{%- for part in message['content'][:text.end] -%}
{{- 'IMAGE' if part['type'] == 'image' else part['text'] -}}
{%- endfor -%}
{%- endif -%}
"""

CHATML = (
    """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
"""
    + CONTENT
    + """\
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
)
