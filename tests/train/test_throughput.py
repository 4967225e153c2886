"""What is logged of the speed: counted without waiting for the device, as much as the model really does."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from puma_trl.config import PumaKLConfig
from puma_trl.mini import build_processor
from puma_trl.train import metrics, throughput
from puma_trl.train.metrics import StepMetrics
from puma_trl.train.throughput import COUNTS, Clock, Costs, Work, count_rows, describe_speed, peak_flops
from puma_trl.train.trainer import PumaKLTrainer

from ..models.family_models import MINI, OTHERS, build_family


LENGTHS = (5, 3)


def count(*batches):
    work = Work()
    for batch in batches:
        work.add(batch)
    return dict(zip(COUNTS, work.totals(torch.device("cpu")).tolist(), strict=True))


def padded(prefix="", lengths=LENGTHS):
    mask = torch.tensor([[1] * length + [0] * (max(lengths) - length) for length in lengths])
    return {
        f"{prefix}input_ids": mask,
        f"{prefix}attention_mask": mask,
        f"{prefix}labels": torch.where(mask == 1, 7, -100),
    }


def test_counts_of_padded_batches():
    batch = padded() | padded("teacher_", (4, 1)) | {"pixel_values": torch.zeros(8, 12)}
    counted = count(batch, batch)
    assert counted["tokens"] == 16 and counted["squares"] == 2 * (25 + 9) and counted["slots"] == 2 * (10 + 8)
    assert counted["teacher_tokens"] == 10 and counted["teacher_squares"] == 2 * (16 + 1)
    assert counted["answers"] == 16 and counted["teacher_answers"] == 10
    assert counted["vision_tower_low"] == 2 * 96 and counted["teacher_vision_tower_low"] == 0


@pytest.mark.parametrize("planes", [None, 4])
def test_rows_one_behind_the_other_count_as_padded_ones(planes):
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    if planes is not None:  # the text plane comes first
        positions = torch.cat((positions[None], torch.zeros(planes - 1, *positions.shape, dtype=torch.long)))
    batch = {"input_ids": torch.ones(1, sum(LENGTHS)), "attention_mask": None, "position_ids": positions}
    wanted = count(padded()) | {"slots": sum(LENGTHS)}
    assert count(batch | {"labels": torch.ones(1, sum(LENGTHS))}) == wanted
    if planes is None:
        assert count_rows(batch) == len(LENGTHS)
    assert count_rows(batch | {"row_id": ["a", "b", "c"]}) == 3


def test_counting_does_not_wait_for_the_device():
    """Fake tensors have no values, so whatever reads one fails."""
    with FakeTensorMode():
        work = Work()
        work.add(padded() | padded("teacher_"))
        work.rows += count_rows({"input_ids": torch.ones(1, 4), "position_ids": torch.ones(1, 4)})


@pytest.mark.parametrize(
    ("use_kl", "parts"),
    [(True, ["aligner", "vision_tower"]), (True, ["all"]), (False, ["language_model"]), (False, ["all"])],
)
def test_operations_are_those_of_the_model(tmp_path, tiny_model, pairs, use_kl, parts):
    model = tiny_model(hidden_size=128)
    model.set_attn_implementation("eager")  # its operations are counted
    args = PumaKLConfig(str(tmp_path), use_kl=use_kl, trainable_parts=parts, bf16=False, use_cpu=True)
    args.gradient_checkpointing = False
    trainer = PumaKLTrainer(model, args, train_dataset=pairs(1), processing_class=build_processor())
    batch = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    counted = Costs(model).count(count(batch))
    with FlopCounterMode(display=False) as counter:
        trainer.compute_loss(model.train(), batch).backward()
    assert 0.85 <= counted / counter.get_total_flops() <= 1


@pytest.mark.parametrize("name", [*MINI, *OTHERS])
def test_patches_of_every_family(name):
    """A patch has as many numbers as the first layer of its tower reads at once."""
    _, model = build_family(name)
    sizes = {
        each.weight[0].numel()
        for module, each in model.named_modules()
        if "patch_embed" in module and isinstance(each, torch.nn.Conv2d | torch.nn.Conv3d)
    }
    costs = Costs(model)
    assert costs.is_known and sizes == {size for size in costs.patches.values() if size != 3}  # 3: no such tower


def test_time_of_the_steps_alone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])

    def batches():
        for number in range(2):
            now[0] += 3
            yield number

    clock, source = Clock(), batches()
    clock.start()
    assert list(clock.watch(source)) == [0, 1]
    now[0] += 4
    clock.stop()
    now[0] += 100  # an evaluation
    clock.start()
    clock.start()
    now[0] += 5
    assert clock.waited == 6 and clock.take() == 15
    assert clock.waited == 0 and clock.take() == 0


def test_speed():
    totals = dict.fromkeys(COUNTS, 0.0) | {"tokens": 300.0, "teacher_tokens": 100.0, "rows": 8.0}
    known = describe_speed(totals, 4.0, 1.0, 2**31, flops=4e14, peak=1e15)
    assert known == {
        "perf/tokens_per_second": 100,
        "perf/samples_per_second": 2,
        "perf/data_wait_share": 0.25,
        "perf/peak_memory_gib": 2,
        "perf/mfu": 0.1,
    }
    assert "perf/mfu" not in describe_speed(totals, 4.0, 1.0, 2**31, flops=4e14, peak=None)
    assert describe_speed(totals, 0.0, 0.0, 1, None, None) == {}


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("Some Card", None),
    ],
)
def test_peak_of_a_card(name, tflops):
    assert peak_flops(name) == (tflops and tflops * 1e12)


def test_of_two_processes_counts_add_waiting_is_a_mean_and_memory_the_most(monkeypatch):
    vectors = []

    class Process:
        num_processes = 2

        def __init__(self, index, is_last):
            self.process_index, self.is_last = index, is_last

        def reduce(self, numbers, reduction):
            vectors.append(numbers)
            return sum(vectors) if self.is_last else numbers

    for index, memory in enumerate((5 * 2**30, 3 * 2**30)):
        monkeypatch.setattr(metrics, "peak_memory", lambda device, memory=memory: memory)
        step_metrics = StepMetrics(torch.device("cpu"))
        monkeypatch.setattr(step_metrics.clock, "take", lambda: 4.0)
        step_metrics.clock.waited = 1.0 + 2 * index
        step_metrics.add_positions("train", padded())
        step_metrics.add_rows([{"row_id": ["a", "b"]}])
        means, _ = step_metrics.reduce(Process(index, is_last=index == 1), "train")
    assert means == {
        "padding_share": pytest.approx(0.2),
        "num_tokens": 16,
        "perf/tokens_per_second": 4,
        "perf/samples_per_second": 1,
        "perf/data_wait_share": 0.5,
        "perf/peak_memory_gib": 5,
    }
