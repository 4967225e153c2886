"""`attn_implementation: varlen`: rows apart, with and without a GPU; padded batches; what it refuses."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig, MllamaConfig

from puma_trl.config import PumaKLConfig
from puma_trl.data.collator import DataCollatorForPumaPairs
from puma_trl.errors import ModelError
from puma_trl.models.attention import (
    VARLEN,
    VARLEN_TOWER,
    check_padding_free,
    no_mask,
    prepare_towers,
    varlen_attention,
)
from puma_trl.models.families import get_family
from puma_trl.train.trainer import PumaKLTrainer

from .family_models import MINI, OTHERS, build_family


LENGTHS = [3, 1, 7]
STARTS = torch.tensor([0, 3, 4, 11], dtype=torch.int32)


def states(heads=4, groups=2):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, count, sum(LENGTHS), 8, generator=generator, requires_grad=True)
        for count in (heads, groups, groups)
    ]


def layer(is_causal=True):
    return SimpleNamespace(is_causal=is_causal)


@pytest.mark.parametrize(("is_causal", "window"), [(True, None), (True, 2), (False, None)])
def test_rows_attend_to_themselves_alone(is_causal, window):
    """Against softmax over a mask of all tokens, values and gradients."""
    query, key, value = states()
    row = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    place = torch.arange(len(row))
    mask = row[:, None] == row
    if is_causal:
        mask &= place[:, None] >= place
    if window:
        mask &= place[:, None] - place < window
    options = {"scaling": 0.3, "sliding_window": window, "cu_seq_lens_q": STARTS, "max_length_q": max(LENGTHS)}
    found, _ = varlen_attention(layer(is_causal), query, key, value, None, **options)
    scores = 0.3 * query @ key.repeat_interleave(2, 1).transpose(-1, -2)
    expected = (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ value.repeat_interleave(2, 1)).transpose(1, 2)
    assert_close(found, expected)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    gradients = [torch.autograd.grad((each * weights).sum(), (query, key, value)) for each in (found, expected)]
    for left, right in zip(*gradients, strict=True):
        assert_close(left, right)


class Calls(TorchDispatchMode):
    """Notes the calls of the variable-length kernel."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.torch_attn._varlen_attn.default:
            self.calls.append(args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("is_causal", "window", "sides"), [(True, None, [-1, 0]), (True, 5, [4, 0]), (False, None, [-1, -1])]
)
def test_the_kernel_of_pytorch_on_a_gpu(is_causal, window, sides):
    """Seen without a GPU: what the kernel is called with."""
    with FakeTensorMode(), Calls() as watch:
        query, key, value = (torch.empty(1, count, 11, 8, device="cuda", dtype=torch.bfloat16) for count in (4, 2, 2))
        starts = torch.empty(4, device="cuda", dtype=torch.int32)
        options = {"scaling": 0.3, "sliding_window": window, "cu_seq_lens_q": starts, "max_length_q": 7}
        output, _ = varlen_attention(layer(is_causal), query, key, value, None, **options)
    assert output.shape == (1, 11, 4, 8)
    ((*shapes, _, _, longest, _, causal, scale, window_size, gqa),) = [args[:11] for args in watch.calls]
    assert [each.shape for each in shapes] == [(11, 4, 8), (11, 2, 8), (11, 2, 8)]
    assert (longest, causal, scale, window_size, gqa) == (7, sides == [-1, 0], 0.3, sides, True)


def test_padded_batches_and_generation(pairs):
    """As with sdpa: prompts of several lengths, padded on the left, and a cache."""
    processor, model = build_family("qwen2_vl")
    other = copy.deepcopy(model)
    other.set_attn_implementation(VARLEN)
    prepare_towers(other)
    rows = list(pairs(3, text_rich_images=lambda index: index))
    batch = DataCollatorForPumaPairs(processor, get_family(model.config), use_kl=False)(rows)
    batch = {name: value for name, value in batch.items() if name not in ("row_id", "labels")}
    with torch.no_grad():
        kept = batch["attention_mask"].bool()
        logits = [each.eval()(**batch).logits[kept] for each in (model, other)]
        assert_close(logits[1], logits[0])
        texts = [each.generate(**batch, max_new_tokens=6, do_sample=False) for each in (model, other)]
    assert torch.equal(*texts)


@pytest.mark.parametrize(
    ("implementation", "tower"),
    [(VARLEN, VARLEN_TOWER), ({"text_config": VARLEN, "vision_config": "eager"}, "eager"), ("sdpa", "sdpa")],
)
def test_towers_keep_the_attention_that_they_were_given(implementation, tower):
    model = build_family("qwen2_vl")[1]
    model.set_attn_implementation(implementation)
    prepare_towers(model)
    blocks = [module for module in model.model.visual.modules() if hasattr(module, "proj") and hasattr(module, "qkv")]
    assert blocks and {block.config._attn_implementation for block in blocks} == {tower}


def test_a_model_that_does_not_tell_its_layers_is_refused():
    query, key, value = states()
    with pytest.raises(ModelError, match="not told where rows end"):
        varlen_attention(layer(), query, key, value, no_mask(query.device))
    with pytest.raises(ModelError, match="`softcap`"):
        varlen_attention(layer(), query, key, value, None, cu_seq_lens_q=STARTS, max_length_q=7, softcap=30.0)


@pytest.mark.parametrize(
    ("config", "implementation", "message"),
    [
        (lambda: build_family("gemma3")[1].config, VARLEN, "type 'gemma3'.*others may mix rows up"),
        (MllamaConfig, VARLEN, "type 'mllama'"),
        (lambda: LlavaConfig(text_config=AutoConfig.for_model("qwen3_next")), VARLEN, "layers of linear_attention"),
        (LlavaConfig, "sdpa", "a mask of all tokens.*Set `attn_implementation: varlen`"),
        (LlavaConfig, None, "`attn_implementation: sdpa` would build"),
        (LlavaConfig, {"text_config": "eager"}, "`attn_implementation: eager`"),
        (LlavaConfig, {"": VARLEN}, "`attn_implementation: sdpa`"),  # of the model around, which has no layers
        (LlavaConfig, {"vision_config": VARLEN}, "`attn_implementation: sdpa`"),
    ],
)
def test_refused(config, implementation, message):
    with pytest.raises(ModelError, match=message):
        check_padding_free(config(), implementation)


@pytest.mark.parametrize("implementation", [VARLEN, "flash_attention_2", {"text_config": VARLEN}])
def test_accepted(implementation):
    check_padding_free(LlavaConfig(), implementation)


def test_the_class_refuses_before_data_are_read(tmp_path, pairs):
    processor, model = build_family("llava")
    arguments = {"bf16": False, "use_cpu": True, "padding_free": True, "report_to": "none"}
    args = PumaKLConfig(str(tmp_path), **arguments)
    with pytest.raises(ModelError, match="a mask of all tokens"):
        PumaKLTrainer(model, args, train_dataset=pairs(2), processing_class=processor)
    model.set_attn_implementation(VARLEN)
    padded = DataCollatorForPumaPairs(processor, get_family(model.config))
    with pytest.raises(ValueError, match="`data_collator` makes other batches"):
        PumaKLTrainer(model, args, train_dataset=pairs(2), processing_class=processor, data_collator=padded)


@pytest.mark.parametrize("name", [name for name in (*MINI, *OTHERS) if name not in ("gemma3",)])
def test_saved_models_load_with_varlen(name, tmp_path):
    """By the loader that a recipe uses, each part included."""
    processor, model = build_family(name)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation=VARLEN)
    assert loaded.config.get_text_config()._attn_implementation == VARLEN
