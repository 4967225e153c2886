"""What of a run is compared with the checkpoint that it resumes from, and what comes of it."""

import copy
from dataclasses import fields

import pytest
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from puma_trl.config import PumaKLConfig
from puma_trl.errors import CheckpointError
from puma_trl.record.fingerprint import fingerprint
from puma_trl.train.compare import (
    FIXED,
    HELD,
    LEARNED,
    NOT_OF_ADAPTERS,
    ORDER,
    compare_rows,
    compare_settings,
    compare_weights,
    describe_settings,
    describe_weights,
)


# Fields that change nothing that is learned, and those that are compared otherwise: the batch size as the product of
# its factors, the engine, the model and its data by what is read of them
NOT_COMPARED = """
activation_checkpointing activation_checkpointing_kwargs activation_offloading allow_changed_data allow_text_only
answer_mismatch bad_rows image_root
auto_find_batch_size batch_eval_metrics bf16_full_eval dataloader_in_order dataloader_multiprocessing_context
dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor dataset_kwargs
dataset_num_proc ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters ddp_static_graph
ddp_timeout debug decode_images deepspeed disable_tqdm do_eval do_predict do_train enable_jit_checkpoint
eval_accumulation_steps eval_delay eval_do_concat_batches eval_on_start eval_packing eval_steps eval_strategy
eval_use_gather_object fp16_full_eval fsdp fsdp_config full_determinism gradient_accumulation_steps
gradient_checkpointing gradient_checkpointing_kwargs greater_is_better hub_always_push hub_model_id hub_private_repo
hub_revision hub_strategy hub_token include_for_metrics include_num_input_tokens_seen liger_kernel_config
load_best_model_at_end local_rank log_completions log_level log_level_replica log_on_each_node logging_first_step
logging_nan_inf_filter logging_steps logging_strategy metric_for_best_model model_init_kwargs num_completions_to_print
output_dir pad_token
pad_to_multiple_of parallelism_config per_device_eval_batch_size per_device_train_batch_size prediction_loss_only
project push_to_hub remove_unused_columns report_to restore_callback_states_from_checkpoint resume_from_checkpoint
run_name save_on_each_node save_only_model save_steps save_strategy save_total_limit skip_memory_metrics
stop_on_collapse
teacher_load_in_4bit teacher_model_init_kwargs teacher_model_name_or_path teacher_model_revision
torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps trackio_bucket_id trackio_space_id
trackio_static_space_id trust_remote_code use_cache use_cpu use_liger_kernel
vllm_enable_sleep_mode vllm_gpu_memory_utilization vllm_group_port vllm_max_model_length vllm_mode vllm_model_impl
vllm_server_base_url vllm_server_host vllm_server_port vllm_server_timeout vllm_tensor_parallel_size
""".split()


@pytest.fixture
def make_args(tmp_path):
    return lambda **kwargs: PumaKLConfig(str(tmp_path), bf16=False, use_cpu=True, report_to="none", **kwargs)


def test_every_field_has_one_kind():
    kinds = [*HELD, *FIXED, *ORDER, *LEARNED, *NOT_COMPARED]
    assert sorted(kinds) == sorted({field.name for field in fields(PumaKLConfig)})


def test_the_same_settings(make_args):
    args = make_args(learning_rate=1e-4, trainable_parts="aligner", part_learning_rates={"aligner": 1e-4})
    saved = describe_settings(args)
    assert compare_settings("checkpoint-4", saved, args) == {}
    del saved["use_vllm"]  # as in a checkpoint of an earlier version
    assert compare_settings("checkpoint-4", saved, args) == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.5}, r"`learning_rate: 1e-05 → 0.5`\): its optimizer and scheduler would go on with"),
        ({"weight_decay": 0.1, "adam_beta1": 0.5}, r"`adam_beta1: 0.9 → 0.5`, `weight_decay: 0.0 → 0.1`.*them back"),
        ({"part_learning_rates": {"aligner": 1e-4}}, r'`part_learning_rates: null → {"aligner": 0.0001}`'),
        ({"optim": "sgd"}, "`optim: adamw_torch_fused → sgd`"),
        ({"trainable_parts": "aligner"}, r'`trainable_parts: null → \["aligner"\]`\): its weights and states'),
        ({"teacher": "ema"}, "`teacher: live → ema`"),
        ({"seed": 7}, "`seed: 42 → 7`.*another order.*`allow_changed_data: true`"),
        ({"data_seed": 7}, "`data_seed: null → 7`"),
        ({"train_sampling_strategy": "sequential"}, "`train_sampling_strategy: random → sequential`"),
    ],
)
def test_what_the_checkpoint_decides_is_refused(make_args, change, message):
    args = make_args(learning_rate=1e-5)
    with pytest.raises(CheckpointError, match=message):
        compare_settings("checkpoint-4", describe_settings(args), make_args(**{"learning_rate": 1e-5} | change))


def test_what_takes_effect_is_returned(make_args):
    saved = describe_settings(make_args(lambda_kl=0.1))
    changed = compare_settings("checkpoint-4", saved, make_args(lambda_kl=0.5, max_grad_norm=2, logging_steps=3))
    assert changed == {"lambda_kl": [0.1, 0.5], "max_grad_norm": [1.0, 2]}


@pytest.mark.parametrize(("share", "is_told"), [(0.0, False), (0.5, True), (1.0, False)])
def test_other_micro_batches_are_told_where_some_are_on_policy(make_args, share, is_told):
    """A step of as many rows, in other micro-batches, of which a share is on-policy."""
    saved = describe_settings(make_args(on_policy_share=share, gradient_accumulation_steps=2))
    args = make_args(on_policy_share=share, gradient_accumulation_steps=4, per_device_train_batch_size=4)
    changed = compare_settings("checkpoint-4", saved, args)
    assert changed == ({"gradient_accumulation_steps": [2, 4]} if is_told else {})


def test_another_order_may_be_allowed(make_args):
    saved = describe_settings(make_args())
    args = make_args(seed=7, allow_changed_data=True)
    assert compare_settings("checkpoint-4", saved, args) == {"seed": [42, 7]}


@pytest.fixture
def saved_model(tmp_path, tiny_model):
    """Returns a function that loads a model from a folder."""

    def load(seed=0, name="model"):
        model = tiny_model(seed)
        model.save_pretrained(tmp_path / name)
        model.config._name_or_path = str(tmp_path / name)
        return model

    return load


def describe(model, engine="one process or DDP"):
    return describe_weights(model) | {"engine": engine}


def test_the_same_model_elsewhere(saved_model):
    compare_weights("checkpoint-4", describe(saved_model()), describe(saved_model(name="moved")))


def test_another_model(saved_model):
    with pytest.raises(CheckpointError, match=r"from the model \S+/model \(Qwen2VL.*, and not \S+/other \("):
        compare_weights("checkpoint-4", describe(saved_model()), describe(saved_model(seed=1, name="other")))


def test_another_model_in_the_same_folder(saved_model):
    with pytest.raises(CheckpointError, match="It has changed since"):
        compare_weights("checkpoint-4", describe(saved_model()), describe(saved_model(seed=1)))


def test_another_model_of_the_same_beginning(saved_model, tmp_path):
    model = saved_model()
    saved, path = describe(model), tmp_path / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="It has changed since"):
        compare_weights("checkpoint-4", saved, describe(model))


def test_models_that_have_no_folder(tiny_model):
    saved = describe(tiny_model())
    compare_weights("checkpoint-4", saved, describe(tiny_model()))
    other = copy.deepcopy(saved)
    other["model"]["name"] = "me/other"
    with pytest.raises(CheckpointError, match="me/other"):
        compare_weights("checkpoint-4", saved, other)
    other["model"] = saved["model"] | {"class": "OtherModel"}
    with pytest.raises(CheckpointError, match="OtherModel"):
        compare_weights("checkpoint-4", saved, other)


def test_adapters(tiny_model):
    def adapted(**kwargs):
        return describe(get_peft_model(tiny_model(), LoraConfig(target_modules=["v_proj", "q_proj"], **kwargs)))

    saved = adapted(r=4)
    assert saved["adapters"].keys().isdisjoint(NOT_OF_ADAPTERS)
    assert saved["adapters"]["target_modules"] == ["q_proj", "v_proj"]  # whatever order a set has in a process
    compare_weights("checkpoint-4", saved, adapted(r=4))
    with pytest.raises(CheckpointError, match=r"other adapters \(`lora_alpha: 8 → 16`, `r: 4 → 8`\)"):
        compare_weights("checkpoint-4", saved, adapted(r=8, lora_alpha=16))
    with pytest.raises(CheckpointError, match="with adapters, which this one has not"):
        compare_weights("checkpoint-4", saved, describe(tiny_model()))
    with pytest.raises(CheckpointError, match="with no adapters, which this one has"):
        compare_weights("checkpoint-4", describe(tiny_model()), saved)


def test_dtype_engine_and_trained_parameters(tiny_model):
    model = tiny_model()
    saved = describe(model)
    with pytest.raises(CheckpointError, match="`engine: one process or DDP → FSDP`"):
        compare_weights("checkpoint-4", saved, describe(model, "FSDP"))
    quantised = copy.deepcopy(saved)
    quantised["model"]["quantization"] = {"load_in_4bit": True}
    with pytest.raises(CheckpointError, match=r'`quantization: null → {"load_in_4bit": true}`'):
        compare_weights("checkpoint-4", saved, quantised)
    model.lm_head.requires_grad_(False)
    with pytest.raises(CheckpointError, match="other parameters were trained"):
        compare_weights("checkpoint-4", saved, describe(model))
    with pytest.raises(CheckpointError, match="`dtype: float32 → bfloat16`"):
        compare_weights("checkpoint-4", saved, describe(tiny_model().bfloat16()))


def rows(count, digest="a"):
    return {"rows": count, "fingerprint": digest}


def test_rows():
    saved = {"train": rows(8), "eval": rows(2)}
    assert compare_rows("checkpoint-4", saved, dict(saved), {}, False) == {}
    with pytest.raises(CheckpointError, match=r"train data is not that of checkpoint-4: it had 8 rows and now has 7"):
        compare_rows("checkpoint-4", saved, saved | {"train": rows(7, "b")}, {}, False)
    with pytest.raises(CheckpointError, match=r"eval data .* has as many rows \(2\), but other texts or pictures"):
        compare_rows("checkpoint-4", saved, saved | {"eval": rows(2, "b")}, {}, False)
    with pytest.raises(CheckpointError, match=r"Settings that have changed: `max_pixels: null → 100`.*allow_chang"):
        compare_rows("checkpoint-4", saved, saved | {"train": rows(8, "b")}, {"max_pixels": [None, 100]}, False)
    now = {"train": rows(7, "b"), "eval": rows(2)}
    assert compare_rows("checkpoint-4", saved, now, {}, True) == {"train": [rows(8), rows(7, "b")]}
    # an evaluation more or less changes nothing that is learned
    assert compare_rows("checkpoint-4", saved, {"train": rows(8)}, {}, False) == {"eval": [rows(2), None]}


def test_fingerprint(pairs):
    dataset = pairs(4).add_column("length", [10, 11, 12, 13])
    found = fingerprint(dataset)
    assert found == fingerprint(Dataset.from_list(list(dataset), features=dataset.features))

    def change(**values):
        return dataset.map(lambda row, index: values if index == 2 else {}, with_indices=True)

    picture = dataset[2]["image_url_2"][0]["path"]
    others = [
        dataset.select(range(3)),
        dataset.select([1, 0, 2, 3]),
        change(instruction="Other?"),
        change(output="other"),
        change(image_url_2=[{"bytes": None, "path": picture.replace(".png", "-other.png")}]),
        change(image_url_2=[{"bytes": b"12", "path": None}]),
        change(image_url_2=[{"bytes": b"123", "path": None}]),
        change(image_url_2=[]),
        change(length=99),  # the same name and another size of the picture
    ]
    assert len({found, *map(fingerprint, others)}) == len(others) + 1
    moved = dataset.map(
        lambda row: {"image_url_2": [image | {"path": f"/data{image['path']}"} for image in row["image_url_2"]]}
    )
    assert fingerprint(moved) == found  # the same files elsewhere


def test_fingerprint_of_other_forms():
    """Token ids, and pictures as paths and as decoded ones."""
    ids = Dataset.from_dict({"input_ids": [[1, 2], [3]], "completion_mask": [[0, 1], [1]]})
    cut = Dataset.from_dict({"input_ids": [[1], [2, 3]], "completion_mask": [[0], [1, 1]]})
    assert fingerprint(ids) != fingerprint(cut)
    paths = Dataset.from_dict({"image_url": ["/a/1.png", "/a/2.png"]})
    assert fingerprint(paths) == fingerprint(Dataset.from_dict({"image_url": ["/b/1.png", "/b/2.png"]}))
    assert fingerprint(paths) != fingerprint(Dataset.from_dict({"image_url": ["/a/1.png", "/a/3.png"]}))
    texts = Dataset.from_dict({"instruction": ["/a/1.png"]})
    assert fingerprint(texts) != fingerprint(Dataset.from_dict({"instruction": ["/b/1.png"]}))
