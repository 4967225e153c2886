"""The distributions of a model on the answer of one row, without batches."""

import torch

from puma_trl.data.render import render_answer, render_prompt


def naive_log_probs(model, processor, instruction, images, output):
    """Log-probabilities (N, V) and answer tokens (N,) of one row, unpadded, straight from the definition."""
    prompt = render_prompt(processor, instruction, len(images))
    answer = processor.tokenizer(render_answer(processor, output), add_special_tokens=False)["input_ids"]
    inputs = processor(
        text=[prompt], images=[images] if images else None, return_tensors="pt", add_special_tokens=False
    )
    length = inputs["input_ids"].shape[1]
    for name in ("input_ids", "attention_mask", "mm_token_type_ids"):
        if name in inputs:
            tail = {"input_ids": answer, "attention_mask": [1] * len(answer)}.get(name, [0] * len(answer))
            inputs[name] = torch.cat((inputs[name], torch.tensor([tail])), dim=1)
    with torch.no_grad():
        logits = model(**inputs).logits[0, length - 1 : -1]
    return logits.double().log_softmax(-1), torch.tensor(answer)
