"""Tokenizers like those of well-known text models: who adds the beginning, what ends a turn, what is special."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% elif m.role == 'user' %}[INST] {{ m.content }} [/INST]{% endif %}{% endfor %}"
)
VICUNA = (
    "{% for m in messages %}{{ m.role | upper }}: {{ m.content }} {% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PHI_3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
ALPACA = (
    "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n### End\n{% endfor %}"
    "{% if add_generation_prompt %}### assistant:\n{% endif %}"
)
CHATML_BETWEEN = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if (loop.last and add_generation_prompt) or not loop.last %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1].role != 'assistant' %}<|im_start|>assistant\n{% endif %}"
)
GLM = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
HEADERS = CHATML.replace("<|im_end|>\n", "\n")
# template, special tokens, other added tokens, beginning, end, whether the tokenizer itself adds the beginning
KINDS = {
    "llama 3": (
        LLAMA_3,
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        [],
        "<bos>",
        "<|end_of_text|>",
        True,
    ),
    "gemma": (GEMMA, ["<start_of_turn>", "<end_of_turn>", "<mask>"], ["<b>", "</b>", "\n\n"], "<bos>", "<eos>", True),
    "mistral": (MISTRAL, ["[INST]", "[/INST]"], [], "<s>", "</s>", True),
    "vicuna": (VICUNA, [], [], "<s>", "</s>", True),
    "qwen base": (CHATML, ["<|im_start|>", "<|im_end|>"], ["<tool_call>", "triangle"], None, "<|endoftext|>", False),
    "phi 3": (PHI_3, ["<|user|>", "<|assistant|>", "<|end|>"], [], None, "<|endoftext|>", False),
    "qwen 1.5 base": (CHATML_BETWEEN, ["<|im_start|>", "<|im_end|>"], [], None, "<|endoftext|>", False),
    "glm": (GLM, ["<|system|>", "<|user|>", "<|assistant|>"], [], None, "<|endoftext|>", False),
    "headers": (HEADERS, ["<|im_start|>", "<|im_end|>"], [], None, "<|endoftext|>", False),
    "alpaca": (ALPACA, [], [], None, "</s>", False),
    "chatml without its tokens": (CHATML, [], [], None, "<|endoftext|>", False),
}


def build(kind, normalizer=None, normalized=False):
    """Returns a tokenizer of bytes with the special tokens and the template of a kind."""
    template, special, others, bos, eos, adds_bos = KINDS[kind]
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    named = [token for token in (bos, eos) if token]
    backend.add_special_tokens([AddedToken(token, normalized=normalized) for token in named + special])
    backend.add_tokens([AddedToken(token, normalized=normalized) for token in others])
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=eos, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = template
    return tokenizer


def lowercase():
    """Returns a normaliser that makes letters small."""
    return normalizers.Lowercase()
