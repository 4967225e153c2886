"""The tokenizer of whatever reads rows."""

from transformers import PreTrainedTokenizerBase, ProcessorMixin


def get_tokenizer(processor: ProcessorMixin | PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a processor, or the tokenizer itself."""
    return processor.tokenizer if isinstance(processor, ProcessorMixin) else processor
