"""The attention that a recipe asks for is run once before the data is read."""

import os
import re
import subprocess
import sys

import pytest
import torch
from trl import ModelConfig

from puma_trl.config import PumaKLConfig
from puma_trl.errors import ModelError
from puma_trl.models import probe
from puma_trl.models.probe import check_attention

from .family_models import MINI, OTHERS, build_family


@pytest.fixture
def args(tmp_path):
    return PumaKLConfig(str(tmp_path), use_cpu=True, bf16=False, padding_free=True, report_to=[])


@pytest.fixture
def check(args, tiny_model):
    config = tiny_model().config
    return lambda name: check_attention(ModelConfig(attn_implementation=name), args, config)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (None, "sdpa"),
        ("sdpa", "sdpa"),
        ("eager", "eager"),
        ("varlen", "varlen (sdpa, row by row)"),
        ({"text_config": "varlen", "vision_config": "sdpa"}, "sdpa, varlen (sdpa, row by row)"),
    ],
)
def test_what_runs_is_told(check, name, words):
    assert check(name) == words


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("flash_attention_2", "in float32: it needs a GPU. Set `attn_implementation: varlen`"),
        ("kernels-community/flash-attn2", "it needs a GPU"),
    ],
)
def test_what_does_not_run_is_refused(check, name, reason):
    with pytest.raises(ModelError, match=f"`attn_implementation: {name}` does not run on a CPU .*{reason}"):
        check(name)


@pytest.mark.parametrize("name", ["sdpaa", "Varlen", "flash", "varlen_flash", "paged|sdpa", "none"])
def test_unknown_names_are_refused(check, name):
    expected = f"Unknown `attn_implementation: {re.escape(name)}`. Expected one of eager, .*sdpa, varlen, or a kernel"
    with pytest.raises(ModelError, match=expected):
        check(name)


def test_padded_batches_and_float32_have_no_kernels(check, args):
    args.padding_free = False
    assert check("varlen") == "varlen (sdpa on padded batches)"
    card = torch.device("cuda")
    assert probe._describe("varlen", card, torch.bfloat16, True) == "varlen (kernels of PyTorch)"
    assert probe._describe("varlen", card, torch.float32, True) == "varlen (sdpa, row by row)"


def test_errors_of_packages_and_kernels_are_told_in_a_line(check, monkeypatch):
    def fail(*_):
        raise RuntimeError("FlashAttention only supports Ampere GPUs or newer.\nat line 7")

    monkeypatch.setattr(probe, "_try", fail)
    with pytest.raises(ModelError) as error:
        check("varlen")
    assert "Ampere GPUs or newer" in str(error.value) and "line 7" not in str(error.value)
    assert "Set `attn_implementation: sdpa` and `padding_free: false`" in str(error.value)


def test_a_kernel_that_cannot_be_had_is_named(args, monkeypatch):
    """Neither the package nor what would fetch the kernel is a dependency; on a GPU the trial asks for them."""
    if torch.cuda.is_available():
        device = torch.device("cuda")
    else:
        device = torch.device("meta")  # is no CPU, and goes as far as the import
    with pytest.raises(Exception, match="kernels|flash"):
        probe._try("flash_attention_2", (2, 1, 8), True, device, torch.bfloat16)


@pytest.mark.parametrize("name", [*MINI, *OTHERS])
def test_sizes_of_the_heads_of_every_family(name):
    _, model = build_family(name)
    sizes = {
        module.head_dim for module in model.modules() if hasattr(module, "head_dim") and hasattr(module, "q_proj")
    }
    found = {size for _, _, size, _ in probe._heads(model.config)}
    assert sizes <= found, (sizes, found)


def test_processes_forked_after_the_trial_do_not_wait_for_its_threads(tmp_path):
    build_family("qwen2_vl")[1].config.save_pretrained(tmp_path)
    code = f"""
import multiprocess, torch
from transformers import AutoConfig
from trl import ModelConfig
from puma_trl import PumaKLConfig
from puma_trl.models.probe import check_attention

torch.set_num_threads(2)
args = PumaKLConfig({str(tmp_path / "out")!r}, use_cpu=True, bf16=False, report_to="none")
config = AutoConfig.from_pretrained({str(tmp_path)!r})
check_attention(ModelConfig(attn_implementation="varlen", dtype="float32"), args, config)
assert torch.get_num_threads() == 2
fork = multiprocess.get_context("fork").Process(target=lambda: torch.ones(4_000_000).mul(2).sum())
fork.start()
fork.join(30)
print(fork.exitcode)
fork.kill()
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["0"], done.stderr
