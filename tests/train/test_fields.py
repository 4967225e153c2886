"""Every field of the config is honoured on both paths, pairs and text, or refused by name; none is without effect."""

import copy
import dataclasses
import json
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers
import trl
from accelerate import ParallelismConfig
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainingArguments
from trl import ModelConfig

from puma_trl.checks import OF_TEACHER_MODEL
from puma_trl.config import PumaKLConfig, PumaScriptArguments
from puma_trl.errors import ConfigError, ModelError, PumaError
from puma_trl.models import load
from puma_trl.models.adapters import build_peft_config
from puma_trl.models.families import get_family
from puma_trl.on_policy_config import OF_ON_POLICY
from puma_trl.train.trainer import PumaKLTrainer
from puma_trl.train.unused import (
    UNUSED,
    UNUSED_BY_TRL,
    UNUSED_BY_US,
    UNUSED_WITH_PAIRS,
    UNUSED_WITH_PICTURES,
    UNUSED_WITH_TEXT,
    UNUSED_WITHOUT_METRICS,
    find_idle,
    refuse_unused,
)
from puma_trl.vllm_config import OF_VLLM

from ..checkpoints.test_assemble import write_language_model
from ..models.family_models import build_family


FIELDS = {field.name for field in dataclasses.fields(PumaKLConfig)}
# TrainingArguments' own, which transformers' Trainer honours whatever the step is
OF_TRAINER = """
accelerator_config activation_checkpointing activation_checkpointing_kwargs adam_beta1 adam_beta2 adam_epsilon
auto_find_batch_size average_tokens_across_devices bf16 bf16_full_eval data_seed dataloader_drop_last
dataloader_in_order dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers
dataloader_pin_memory dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb
ddp_find_unused_parameters ddp_static_graph ddp_timeout debug deepspeed disable_tqdm do_eval enable_jit_checkpoint
eval_accumulation_steps eval_delay eval_on_start eval_steps eval_strategy eval_use_gather_object fp16 fp16_full_eval
fsdp fsdp_config full_determinism gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs
greater_is_better hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy hub_token ignore_data_skip
include_num_input_tokens_seen learning_rate liger_kernel_config load_best_model_at_end log_level log_level_replica
log_on_each_node logging_first_step logging_steps logging_strategy lr_scheduler_kwargs lr_scheduler_type
max_grad_norm max_steps metric_for_best_model neftune_noise_alpha num_train_epochs optim optim_args
optim_target_modules output_dir per_device_eval_batch_size per_device_train_batch_size prediction_loss_only project
push_to_hub remove_unused_columns report_to restore_callback_states_from_checkpoint run_name save_on_each_node
save_only_model save_steps save_strategy save_total_limit seed skip_memory_metrics tf32 torch_compile
torch_compile_backend torch_compile_mode torch_empty_cache_steps trackio_bucket_id trackio_space_id
trackio_static_space_id train_sampling_strategy use_cache use_cpu use_liger_kernel warmup_steps weight_decay
""".split()
# Which Trainer leaves to scripts, by its documentation; and what we replace: a loss that is not finite is an error
OF_SCRIPTS = ["do_train", "do_predict", "local_rank"]
REPLACED = ["logging_nan_inf_filter"]
# With pairs: field → a setting that changes the weights, or the test that shows the effect
WITH_PAIRS = {
    "activation_offloading": "test_activation_offloading",
    "allow_changed_data": "test_data_that_has_changed_is_refused_or_recorded",
    "allow_text_only": "test_rows_that_would_train_on_text_alone",
    "alpha_kl": {"alpha_kl": 0.9},
    "answer_mismatch": "test_answers_that_differ_have_a_policy_of_their_own",
    "bad_rows": "test_max_length_holds",
    "chat_template_path": "test_templates_change_the_rows",
    "columns": "test_other_forms_and_mappings",
    "dataset_num_proc": "test_several_processes_give_the_same_rows",
    "decode_images": "test_whatever_matters_is_checked_again",
    "image_root": "test_several_names_folders_and_an_image_root",
    "lambda_kl": {"lambda_kl": 0.9},
    "max_length": "test_max_length_holds",
    "max_pixels": "test_max_pixels_hold",
    "min_pixels": "test_pixels_reach_the_tokens_and_are_saved",
    "model_init_kwargs": "test_what_loads_a_model",
    "pad_token": {"pad_token": "<|im_start|>"},
    "padding_free": "test_padding_free",
    "part_learning_rates": {"part_learning_rates": {"aligner": 0.0}},
    "resume_from_checkpoint": "test_a_class_resumes_as_its_config_says",
    "special_tokens": "test_escaped_tokens_count_as_text",
    "standardize_logits": {"standardize_logits": True},
    "stop_on_collapse": "test_a_collapse_stops_the_run",
    "teacher": {"teacher": "frozen"},
    "teacher_load_in_4bit": "test_a_teacher_in_4_bits",
    "teacher_model_init_kwargs": "test_arguments_of_the_teacher",
    "teacher_model_name_or_path": "test_a_text_model_teaches_a_vision_language_model",
    "teacher_model_revision": "test_the_revision_of_the_teacher",
    "teacher_sync_steps": {"teacher": "ema", "teacher_sync_steps": 3},
    "teacher_update_rate": {"teacher": "ema", "teacher_update_rate": 0.9},
    "temp_kl": {"temp_kl": 3.0},
    "trainable_parts": {"trainable_parts": ["aligner"]},
    "trust_remote_code": "test_remote_code_is_announced",
    "use_kl": {"use_kl": False},
}
SAMPLING = {
    "temperature": 0.1, "top_p": 0.1, "top_k": 1, "min_p": 1.0, "repetition_penalty": 5.0,
    "generation_kwargs": {"top_h": 0.1}, "mask_truncated_completions": True,
}  # fmt: skip
SHARE = {"on_policy_share": 1.0, "max_completion_length": 4}
WITH_PAIRS |= {name: SHARE | {name: value} for name, value in SAMPLING.items()}
WITH_PAIRS["repetition_penalty"] |= {"temperature": 0.01}  # logits of random weights are small
WITH_PAIRS["on_policy_share"] = "test_what_is_logged"
WITH_PAIRS["max_completion_length"] = "test_answers_that_are_cut_off"
WITH_PAIRS |= dict.fromkeys(("log_completions", "num_completions_to_print"), "test_log_completions")
WITH_PAIRS |= dict.fromkeys(OF_VLLM, "test_settings_of_vllm_reach_it")
REFUSED_BY_CONFIG = ["label_smoothing_factor", "loss_type"]  # with pairs, by `PumaKLConfig` itself
# With text models: field → settings that change the first batch or the weights, or the test that shows the effect
WITH_TEXT = {
    "activation_offloading": "test_activation_offloading",
    "allow_changed_data": "test_data_that_has_changed_is_refused_or_recorded",
    "answer_mismatch": "test_a_text_model_reads_the_text_rich_side_of_pairs",
    "assistant_only_loss": "test_text_that_trl_reads",
    "bad_rows": "test_text_that_is_too_long",
    "chat_template_path": "test_templates_change_the_rows",
    "columns": "test_columns_of_text",
    "completion_only_loss": {"completion_only_loss": False},
    "dataset_kwargs": {"packing": True, "dataset_kwargs": {"skip_prepare_dataset": True}},
    "dataset_num_proc": "test_several_processes_give_the_same_rows",
    "dataset_text_field": "test_text_that_trl_reads",
    "eos_token": "test_end_token_of_text",
    "eval_do_concat_batches": "test_predictions_of_text",
    "eval_packing": "test_packing_of_evaluation",
    "label_smoothing_factor": {"label_smoothing_factor": 0.5},
    "length_column_name": "test_text_that_trl_reads",
    "loss_type": {"loss_type": "dft"},
    "max_length": "test_text_that_is_too_long",
    "model_init_kwargs": "test_what_loads_a_model",
    "packing": {"packing": True},
    "packing_strategy": {"packing": True, "packing_strategy": "wrapped", "max_length": 40},
    "pad_to_multiple_of": {"pad_to_multiple_of": 64},
    "pad_token": {"pad_token": "<|im_start|>"},
    "padding_free": {"padding_free": True, "max_length": None},
    "part_learning_rates": {"part_learning_rates": {"language_model": 0.0}},
    "resume_from_checkpoint": "test_a_class_resumes_as_its_config_says",
    "router_aux_loss_coef": "test_router_of_a_dense_model",
    "shuffle_dataset": {"shuffle_dataset": True, "train_sampling_strategy": "sequential"},
    "special_tokens": "test_rows_of_text_models",
    "trainable_parts": {"trainable_parts": ["model.layers.0."]},
    "truncation_mode": "test_text_that_trl_reads",
    "trust_remote_code": "test_remote_code_is_announced",
    "use_kl": "test_pairs_need_a_vision_language_model",
}
# These have no effect without `use_kl`, and are named then
IDLE_WITHOUT_KL = ["alpha_kl", "lambda_kl", "temp_kl", "standardize_logits", "teacher"]
IDLE_WITHOUT_KL += ["teacher_sync_steps", "teacher_update_rate"]


# And these are refused then, by `PumaKLConfig` itself
REFUSED_WITHOUT_KL = [*OF_TEACHER_MODEL, "on_policy_share", *OF_ON_POLICY, *OF_VLLM]


def of_one_kind(*kinds):
    """Makes sure that every field is of one kind, and no kind has other names."""
    names = [name for kind in kinds for name in kind]
    assert sorted(names) == sorted(FIELDS), set(names) ^ FIELDS or {name for name in names if names.count(name) > 1}


def test_every_field_with_pairs():
    of_one_kind(
        OF_TRAINER, OF_SCRIPTS, REPLACED, WITH_PAIRS, REFUSED_BY_CONFIG,
        UNUSED, UNUSED_WITH_PICTURES, UNUSED_WITH_PAIRS, UNUSED_WITHOUT_METRICS,
    )  # fmt: skip


def test_every_field_with_text():
    of_one_kind(
        [*OF_TRAINER, "parallelism_config"], OF_SCRIPTS, REPLACED, WITH_TEXT, IDLE_WITHOUT_KL, REFUSED_WITHOUT_KL,
        UNUSED, UNUSED_WITH_TEXT, UNUSED_WITHOUT_METRICS,
    )  # fmt: skip
    assert {*UNUSED_BY_TRL, *UNUSED_BY_US} <= WITH_TEXT.keys()


def test_named_tests_are_there():
    sources = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    names = [value for table in (WITH_PAIRS, WITH_TEXT) for value in table.values() if isinstance(value, str)]
    assert [name for name in names if f"def {name}(" not in sources] == []


def test_trainer_reads_its_fields():
    """What transformers no longer reads would be without effect."""
    folder = Path(transformers.__file__).parent
    paths = [*folder.glob("trainer*.py"), folder / "training_args.py", *folder.glob("integrations/*.py")]
    paths += [Path(trl.__file__).parent / "trainer" / "sft_trainer.py"]
    source = "".join(path.read_text() for path in paths)
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert {*OF_TRAINER, *OF_SCRIPTS, *REPLACED} <= inherited
    read = r"(?:args|self)\.{0}\b|args, \"{0}\""
    assert [name for name in OF_TRAINER if re.search(read.format(name), source) is None] == []


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    rows = []
    for index in range(6):
        Image.new("RGB", (56, 28 * (1 + index % 2)), (40 * index, 0, 0)).save(folder / f"{index}.png")
        row = {"instruction": f"Is {index} it?", "output": f"It is {index}.", "image_url_2": f"{folder}/{index}.png"}
        rows.append(row | {"instruction_2": "What is it?", "output_2": row["output"]})
    return rows


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    return write_language_model(tmp_path_factory.mktemp("model") / "text")


@pytest.fixture
def make(tmp_path, tiny_model, processor, text_model):
    """Returns a function that makes a trainer, of pairs or of text."""

    def make(rows, values, model=None, **arguments):
        config = {"bf16": False, "use_cpu": True, "report_to": "none", "max_steps": 2, "save_strategy": "no"}
        config |= {"learning_rate": 0.1, "optim": "sgd", "output_dir": str(tmp_path / "out"), "max_length": 256}
        config |= {"gradient_checkpointing": False}
        if "output_2" in rows[0]:
            arguments = {"model": model or tiny_model(), "processing_class": copy.deepcopy(processor)} | arguments
        else:
            model = model or AutoModelForCausalLM.from_pretrained(text_model, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(text_model)
            arguments = {"model": model, "processing_class": tokenizer} | arguments
            config["use_kl"] = False
        return PumaKLTrainer(args=PumaKLConfig(**config | values), train_dataset=Dataset.from_list(rows), **arguments)

    return make


def observe(trainer):
    """Returns the first batch and the weights after two steps."""
    torch.manual_seed(0)
    first = next(iter(trainer.get_train_dataloader()))
    batch = {name: value.clone() for name, value in first.items() if torch.is_tensor(value)}
    trainer.train()
    return batch | {f"weight {name}": value for name, value in trainer.model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


TEXT = [{"instruction": f"Is {index} it?" + " so" * index, "output": f"It is {index}."} for index in range(6)]


@pytest.mark.parametrize(
    ("table", "name"),
    [
        (table, name)
        for table, fields in (("pairs", WITH_PAIRS), ("text", WITH_TEXT))
        for name, values in fields.items()
        if isinstance(values, dict)
    ],
)
def test_settings_take_effect(make, pairs, table, name):
    rows, values = (pairs, WITH_PAIRS[name]) if table == "pairs" else (TEXT, WITH_TEXT[name])
    others = {key: value for key, value in values.items() if key != name}
    assert not same(observe(make(rows, values)), observe(make(rows, others)))


@pytest.mark.parametrize("table", ["pairs", "text"])
def test_templates_change_the_rows(make, pairs, text_model, table, tmp_path):
    rows = pairs if table == "pairs" else TEXT
    plain = make(rows, {})
    (tmp_path / "template.jinja").write_text("<|im_start|>so\n" + plain.processing_class.chat_template)
    other = make(rows, {"chat_template_path": str(tmp_path / "template.jinja")})
    assert not same(observe(plain), observe(other))


@pytest.mark.parametrize("table", ["pairs", "text"])
def test_activation_offloading(make, pairs, table):
    """TRL's training step does it, on a GPU."""
    rows = pairs if table == "pairs" else TEXT
    with pytest.raises(ConfigError, match="`activation_offloading: true` needs a GPU"):
        make(rows, {"activation_offloading": True})
    entered = []
    trainer = make(rows, {"max_steps": 1})
    trainer.maybe_activation_offload_context = contextmanager(lambda: iter([entered.append(1)]))()
    trainer.train()
    assert entered == [1]


def test_what_loads_a_model(make, text_model):
    init = {"model_init_kwargs": {"attn_implementation": "eager"}}
    assert make(TEXT, init, text_model, processing_class=None).model.config._attn_implementation == "eager"
    with pytest.raises(ConfigError, match="`model_init_kwargs` has no effect on a model that is loaded already"):
        make(TEXT, init)
    with pytest.raises(ConfigError, match="`quantization_config` has no effect on a model that is loaded already"):
        make(TEXT, {}, quantization_config=transformers.BitsAndBytesConfig(load_in_8bit=True))


def test_a_class_resumes_as_its_config_says(make, pairs):
    saving = {"save_strategy": "steps", "save_steps": 1}
    make(pairs, saving | {"max_steps": 1}).train()
    trainer = make(pairs, saving | {"max_steps": 2, "resume_from_checkpoint": True})
    trainer.train()
    assert [each["step"] for each in trainer.resumed] == [1] and trainer.state.global_step == 2


def test_text_that_trl_reads(make):
    """Its own settings hold for such rows, and ours are refused."""
    rows = [{"story": f"It is {index}." + " so" * index} for index in range(6)]

    def lengths(**values):
        return [len(ids) for ids in make(rows, {"dataset_text_field": "story"} | values).train_dataset["input_ids"]]

    assert lengths() != lengths(max_length=4)
    start, end = (
        make(rows, {"dataset_text_field": "story", "max_length": 4, "truncation_mode": mode}).train_dataset[3]
        for mode in ("keep_start", "keep_end")
    )
    assert start["input_ids"] != end["input_ids"]
    for name, value in (("bad_rows", "drop"), ("special_tokens", "escape")):
        with pytest.raises(
            ConfigError, match=f"`{name}: {value}` has no effect on the train dataset, which TRL reads"
        ):
            make(rows, {"dataset_text_field": "story", name: value})
    with pytest.raises(ConfigError, match="`truncation_mode: keep_end` has no effect: rows longer than `max_length`"):
        make(TEXT, {"truncation_mode": "keep_end"})
    turns = [{"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "It."}]}] * 4
    with pytest.raises(ValueError, match="generation"):  # which the template does not mark
        make(turns, {"assistant_only_loss": True})
    sized = [{"input_ids": [5] * (index + 1), "size": index + 1} for index in range(6)]
    values = {"train_sampling_strategy": "group_by_length", "length_column_name": "size"}
    assert max(make(sized, values)._get_train_sampler().lengths) == 6


def test_text_that_is_too_long(make):
    long = [*TEXT, {"instruction": "so " * 300, "output": "It is."}]
    with pytest.raises(ValueError, match="train#7: too long"):
        make(long, {})
    assert len(make(long, {"bad_rows": "drop"}).train_dataset) == 6


def test_columns_of_text(make):
    """A column that is mapped is ours to read, also one with the name that TRL reads."""
    rows = [{"instruction": row["instruction"], "text": row["output"]} for row in TEXT]
    assert same(observe(make(rows, {"columns": {"output": "text"}})), observe(make(TEXT, {})))


def test_end_token_of_text(make):
    assert make(TEXT, {"eos_token": "<|im_start|>"}).processing_class.eos_token == "<|im_start|>"


def test_predictions_of_text(make):
    rows = Dataset.from_list(TEXT)
    values = {"per_device_eval_batch_size": 2}
    whole = make(TEXT, values).predict(rows).label_ids
    parts = make(TEXT, values | {"eval_do_concat_batches": False}).predict(rows).label_ids
    assert len(whole) == 6 and len(parts) == 3


def test_packing_of_evaluation(make):
    others = Dataset.from_list([row | {"output": "It is not."} for row in TEXT])
    counts = [
        len(make(TEXT, {"packing": True, "eval_packing": packs}, eval_dataset=others).eval_dataset)
        for packs in (True, False)
    ]
    assert counts[0] < counts[1] == 6


def test_router_of_a_dense_model(make):
    with pytest.raises(ValueError, match="`router_aux_loss_coef` is set to 0.1"):
        make(TEXT, {"router_aux_loss_coef": 0.1})


@pytest.mark.parametrize(("name", "expected"), [("qwen2_vl", False), ("llava", True)])
def test_ddp_looks_for_unused_parameters_where_there_may_be_some(make, pairs, name, expected):
    """All others get a gradient in every step, whatever the rows; torch warns where it looks for nothing."""
    processor, model = build_family(name)
    found = []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, *args, model, **kwargs):
            found.append(any(each.grad is None for each in model.parameters()))

    arguments = {"model": model, "processing_class": processor, "callbacks": [Look()]}
    rows = [pairs[0], pairs[1]]
    trainer = make(rows, {"max_steps": 1, "max_length": 4000, "trainable_parts": ["all"]}, **arguments)
    trainer.train()
    assert trainer.args.ddp_find_unused_parameters == found[0] == expected


OTHER_VALUES = {
    "completion_only_loss": False, "dataset_kwargs": {"skip_prepare_dataset": False}, "dataset_text_field": "words",
    "eos_token": "!", "image_root": "pictures", "include_for_metrics": ["inputs"], "label_names": ["answer"],
    "length_column_name": "size", "max_pixels": 9, "min_pixels": 9, "pad_to_multiple_of": 8,
    "packing_strategy": "wrapped", "eval_do_concat_batches": False, "router_aux_loss_coef": 0.1,
    "truncation_mode": "keep_end",
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "table"),
    [(name, "pairs") for name in UNUSED_WITH_PAIRS]
    + [(name, "pictures") for name in (*UNUSED, *UNUSED_WITH_PICTURES, *UNUSED_WITHOUT_METRICS)]
    + [(name, "text") for name in (*UNUSED, *UNUSED_WITH_TEXT, *UNUSED_WITHOUT_METRICS)],
)
def test_settings_without_effect_are_refused(make, pairs, name, table):
    values = {name: OTHER_VALUES.get(name, True)}
    if name == "parallelism_config":
        values = {name: ParallelismConfig()}
    with pytest.raises(ConfigError, match=f"(?s)`{name}: .* has no effect"):
        make(TEXT if table == "text" else pairs, values | {"use_kl": table == "pairs"})


@pytest.mark.parametrize(
    ("key", "value"), [("split_batches", True), ("dispatch_batches", True), ("even_batches", False)]
)
def test_batches_that_are_divided_are_refused(make, pairs, key, value):
    with pytest.raises(ConfigError, match=f"`accelerator_config: {{{key}: {str(value).lower()}}}`"):
        make(pairs, {"accelerator_config": {key: value}})


@pytest.mark.parametrize("rows", ["pairs", "text"])
def test_batches_of_other_sizes_are_refused(make, pairs, rows):
    """They have an order without the seed, and what is known of the last batch of an epoch does not hold for them."""
    values = {"train_sampling_strategy": "batch_rebalance", "use_kl": rows == "pairs"}
    with pytest.raises(ConfigError, match="`train_sampling_strategy: batch_rebalance`"):
        make(pairs if rows == "pairs" else TEXT, values)


@pytest.mark.parametrize("optim", ["adafactor", "galore_adamw", "apollo_adamw", "stable_adamw"])
@pytest.mark.parametrize("engine", ["DeepSpeed", "FSDP"])
def test_optimizers_that_would_see_slices_are_refused(tmp_path, monkeypatch, engine, optim):
    """ZeRO flattens the weights, and Adafactor for one takes other steps then; with sharded ones of FSDP2 it fails."""
    args = PumaKLConfig(str(tmp_path), optim=optim, bf16=False, use_cpu=True)
    refuse_unused(args, takes_images=True)
    if engine == "FSDP":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    else:
        args.deepspeed_plugin = object()
    with pytest.raises(ConfigError, match=f"`optim: {optim}` looks at each weight as a whole, but {engine} gives"):
        refuse_unused(args, takes_images=True)


def test_metrics_that_nobody_measures(make, pairs):
    values = {
        "save_strategy": "best",
        "eval_strategy": "steps",
        "eval_steps": 1,
        "metric_for_best_model": "eval_acuracy",
    }
    with pytest.raises(
        ConfigError, match="`metric_for_best_model: eval_acuracy` is not measured. Name one of loss, kl,"
    ):
        make(pairs, values, eval_dataset=Dataset.from_list(pairs))


def test_keys_of_dataset_kwargs(make):
    with pytest.raises(ConfigError, match="`dataset_kwargs` has the keys append_concat_token, but TRL knows"):
        make(TEXT, {"dataset_kwargs": {"append_concat_token": True}})


def test_settings_that_another_one_idles_are_named(make, pairs, caplog, monkeypatch):
    make(pairs, {"use_kl": False, "lambda_kl": 0.3, "teacher": "ema", "num_train_epochs": 2, "save_steps": 7})
    idle = (
        "`lambda_kl: 0.3` (`use_kl: false`), `teacher: ema` (`use_kl: false`), `num_train_epochs: 2` (`max_steps: 2`)"
    )
    assert f"Without effect: {idle}, `save_steps: 7` (`save_strategy: no`)." in caplog.text
    caplog.clear()
    make(pairs, {"lambda_kl": 0.3})
    assert "Without effect" not in caplog.text
    values = {"save_total_limit": 2, "metric_for_best_model": "kl", "load_best_model_at_end": True}
    values |= {"save_strategy": "no", "hub_strategy": "every_save"}
    assert find_idle(PumaKLConfig("out", bf16=False, use_cpu=True, report_to="none", **values)) == [
        "`save_total_limit: 2` (`save_strategy: no`)",
        "`load_best_model_at_end: True` (`save_strategy: no`)",
        "`metric_for_best_model: kl` (`eval_strategy: no`)",
        "`hub_strategy: every_save` (`push_to_hub: false`)",
    ]
    values = {"save_strategy": "no", "eval_strategy": "epoch", "metric_for_best_model": "kl", "use_cpu": True}
    (idle,) = find_idle(PumaKLConfig("out", bf16=False, report_to="none", **values))
    assert idle == "`metric_for_best_model: kl` (`save_strategy: no, without EarlyStoppingCallback`)"
    values["lr_scheduler_type"] = "reduce_lr_on_plateau"
    assert find_idle(PumaKLConfig("out", bf16=False, report_to="none", **values)) == []
    assert find_idle(ModelConfig(lora_r=4, use_dora=True, bnb_4bit_quant_type="fp4")) == [
        "`lora_r: 4` (`use_peft: false`)",
        "`use_dora: True` (`use_peft: false`)",
        "`bnb_4bit_quant_type: fp4` (`load_in_4bit: false`)",
    ]
    assert find_idle(ModelConfig(use_peft=True, lora_r=4)) == []
    on_policy = {"on_policy_share": 1, "lambda_kl": 0.3, "num_completions_to_print": 2, "num_train_epochs": 1}
    assert find_idle(PumaKLConfig("out", bf16=False, use_cpu=True, report_to="none", **on_policy)) == [
        "`lambda_kl: 0.3` (`on_policy_share: 1`)",
        "`num_completions_to_print: 2` (`log_completions: false`)",
    ]
    monkeypatch.setattr("puma_trl.vllm_config.is_vllm_available", lambda: True)
    vllm = {"on_policy_share": 1, "use_vllm": True, "vllm_mode": "server", "vllm_model_impl": "transformers"}
    vllm |= {"vllm_server_base_url": "http://here", "vllm_server_port": 80}
    assert find_idle(PumaKLConfig("out", bf16=False, use_cpu=True, report_to="none", **vllm)) == [
        "`vllm_model_impl: transformers` (`vllm_mode: server`)",
        "`vllm_server_port: 80` (`vllm_server_base_url: http://here`)",
    ]
    data = PumaScriptArguments(dataset_name=[__file__], dataset_train_split="tset", dataset_config="main")
    why = "(`dataset_name: files`)"
    assert find_idle(data) == [f"`dataset_config: main` {why}", f"`dataset_train_split: tset` {why}"]
    assert find_idle(PumaScriptArguments(dataset_name=["some/data"], dataset_train_split="tset")) == []
    data = PumaScriptArguments(dataset_name=["some/data"], dataset_test_split="validation")
    assert find_idle(data) == ["`dataset_test_split: validation` (`no eval_dataset_name or gap_dataset_name`)"]
    data.eval_dataset_name = [__file__]
    assert find_idle(data) == ["`dataset_test_split: validation` (`eval_dataset_name: files`)"]
    data.eval_dataset_name = ["some/data"]
    assert find_idle(data) == []


# What loads the model: field → another value. Adapters, and what is told of elsewhere, follow.
LOADING = {"model_revision": "v2", "attn_implementation": "eager", "dtype": "bfloat16", "load_in_4bit": False}
LOADING |= {"bnb_4bit_quant_type": "fp4", "use_bnb_nested_quant": True, "bnb_4bit_quant_storage": "bfloat16"}
ADAPTERS = {"lora_r": 4, "lora_alpha": 5, "lora_dropout": 0.5, "use_rslora": True, "use_dora": True, "use_peft": False}
ADAPTERS |= {"lora_target_modules": ["q_proj"], "lora_target_parameters": ["mlp"], "lora_modules_to_save": ["merger"]}
ELSEWHERE = {
    "model_name_or_path": "test_load_round_trip",
    "load_in_8bit": "test_only_the_language_model_is_quantised",
    "lora_task_type": "test_fields_without_effect_in_a_recipe",
    "dataset_name": "test_several_names_folders_and_an_image_root",
    "dataset_config": "test_settings_that_another_one_idles_are_named",
    "dataset_train_split": "test_splits_of_the_hub",
    "dataset_test_split": "test_splits_of_the_hub",
    "eval_dataset_name": "test_an_eval_file",
    "eval_split_size": "test_a_share_or_a_number_is_held_out_by_the_seed",
    "gap_dataset_name": "test_gap_is_logged_and_changes_nothing_that_is_learned",
    "gap_eval_steps": "test_gap_is_logged_and_changes_nothing_that_is_learned",
    "dry_run": "test_a_dry_run_trains_nothing",
}


def test_every_field_of_model_and_script():
    names = [*LOADING, *ADAPTERS, *ELSEWHERE]
    assert sorted(names) == sorted(
        field.name for each in (ModelConfig, PumaScriptArguments) for field in dataclasses.fields(each)
    )
    sources = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert [name for name in ELSEWHERE.values() if f"def {name}(" not in sources] == []


@pytest.mark.parametrize("name", LOADING)
def test_settings_of_loading(tiny_model, tmp_path, monkeypatch, name):
    model, calls = tiny_model(), []

    class Loader:
        from_config = type(model)._from_config

        def from_pretrained(*args, **kwargs):
            calls.append(str({key: value for key, value in kwargs.items() if key != "config"}))
            raise OSError("seen")

    monkeypatch.setattr(load, "get_auto_class", lambda config: Loader)
    plain = {"model_name_or_path": "some/model", "use_peft": True, "load_in_4bit": True}
    args = PumaKLConfig(str(tmp_path), use_cpu=True, bf16=False)
    for values in (plain, plain | {name: LOADING[name]}):
        with pytest.raises(PumaError, match="seen"):
            load.load_model(ModelConfig(**values), args, model.config, get_family(model.config))
    assert calls[0] != calls[1]


@pytest.mark.parametrize("name", ADAPTERS)
def test_settings_of_adapters(tiny_model, name):
    model = tiny_model()
    made = []
    for values in ({}, {name: ADAPTERS[name]}):
        args = ModelConfig(**{"model_name_or_path": "some/model", "use_peft": True} | values)
        made.append(build_peft_config(model, args, ["all"], get_family(model.config)))
    assert made[0] != made[1]


@pytest.mark.parametrize("name", ["language_model", "model.visual.blocks."])
def test_a_dry_run_finds_the_learning_rate_of_what_does_not_train(main, monkeypatch, name):
    if not name.endswith("."):  # which the model alone could tell
        monkeypatch.setattr("puma_trl.run.load_data", lambda *args: pytest.fail("it has read the data"))
    rates = json.dumps({name: 1e-4})
    with pytest.raises(ModelError, match=f"names {name}, of which no parameter trains; what trains is of: aligner"):
        main(dry_run=True, trainable_parts="aligner", part_learning_rates=rates)


def test_a_dry_run_trains_nothing(main, monkeypatch):
    monkeypatch.setattr(PumaKLTrainer, "train", lambda *args, **kwargs: pytest.fail("it trained"))
    assert not (main(dry_run=True) / "model.safetensors").exists()
