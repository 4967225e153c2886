import dataclasses
import json
import os
import re
from pathlib import Path
from typing import get_type_hints

import jsonschema
import pytest
import yaml

from puma_trl.config import PumaKLConfig
from puma_trl.errors import ConfigError
from puma_trl.fields import NOT_HERE, NOT_IN_RECIPES, OTHER_NAMES, RANGES, list_kinds, make_schema
from puma_trl.recipe import TYPES, parse_recipe


ROOT = Path(__file__).parents[1]
FIELDS = {
    field.name: (field, get_type_hints(each)[field.name])
    for each in TYPES
    for field in dataclasses.fields(each)
    if field.init
}


RECIPE = """
model_name_or_path: some/model
dataset_name: a.jsonl, b.jsonl
output_dir: {output_dir}
learning_rate: 1e-5
trainable_parts: aligner, vision_tower_low, vision_tower_high
bf16: false
use_cpu: true
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(output_dir=tmp_path / "out"))
    return path


@pytest.mark.parametrize("form", ["positional", "flag", "flag="])
def test_recipe_forms(recipe, form):
    argv = {"positional": [str(recipe)], "flag": ["--config", str(recipe)], "flag=": [f"--config={recipe}"]}[form]
    script_args, training_args, model_args, values = parse_recipe(argv)
    assert values["output_dir"] == training_args.output_dir and values["learning_rate"] == 1e-5
    assert model_args.model_name_or_path == "some/model"
    assert script_args.dataset_name == ["a.jsonl", "b.jsonl"]
    assert training_args.learning_rate == 1e-5  # YAML reads 1e-5 as a string
    assert training_args.trainable_parts == ["aligner", "vision_tower_low", "vision_tower_high"]
    assert (training_args.use_kl, training_args.alpha_kl, training_args.lambda_kl, training_args.temp_kl) == (
        True,
        0.5,
        0.1,
        1.0,
    )


def test_command_line_overrides_recipe(recipe):
    argv = [str(recipe), "--alpha_kl", "0.25", "--use_kl", "false", "--trainable_parts", "aligner,language_model"]
    _, training_args, _, _ = parse_recipe(argv)
    assert training_args.alpha_kl == 0.25
    assert training_args.use_kl is False
    assert training_args.trainable_parts == ["aligner", "language_model"]


def test_unknown_key_in_recipe(recipe):
    recipe.write_text(recipe.read_text() + "alpha_lk: 0.3\n")
    with pytest.raises(ValueError, match=r"Unknown key `alpha_lk` in the recipe .*Did you mean `alpha_kl`"):
        parse_recipe([str(recipe)])


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [("--tempkl", "temp_kl"), ("--learning_rat=1", "learning_rate"), ("--lr=1", "learning_rate")],
)
def test_unknown_flag(recipe, flag, nearest):
    with pytest.raises(ValueError, match=rf"on the command line. Did you mean `{nearest}`"):
        parse_recipe([str(recipe), *flag.split("=")])


def test_unknown_key_like_no_other(recipe):
    with pytest.raises(
        ValueError, match=r"Unknown key `zzz` on the command line. `puma-trl train --help all` lists all"
    ):
        parse_recipe([str(recipe), "--zzz", "1"])


def test_part_learning_rates(recipe):
    recipe.write_text(recipe.read_text() + "part_learning_rates: {aligner: 1e-4}\n")  # text in YAML
    assert parse_recipe([str(recipe)])[1].part_learning_rates == {"aligner": 1e-4}
    argv = [str(recipe), "--part_learning_rates", '{"vision_tower": 0.0}']
    assert parse_recipe(argv)[1].part_learning_rates == {"vision_tower": 0.0}


def test_broken_yaml(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1, 2")
    with pytest.raises(ValueError, match="broken.yaml is not valid YAML"):
        parse_recipe([str(path)])


@pytest.mark.parametrize("missing", ["model_name_or_path", "dataset_name"])
def test_missing_key(recipe, missing):
    lines = [line for line in recipe.read_text().splitlines() if not line.startswith(missing)]
    recipe.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=f"`{missing}` is missing"):
        parse_recipe([str(recipe)])


def test_both_kinds_of_eval_data(recipe):
    with pytest.raises(ValueError, match="`eval_split_size` and `eval_dataset_name`"):
        parse_recipe([str(recipe), "--eval_split_size", "0.1", "--eval_dataset_name", "e.jsonl"])


def test_forms_of_flags(recipe):
    """Dashes and underscores, `--no_x` and `--x false`, `--x=y` and repeated flags give one key."""
    forms = (
        ["--use_kl", "false", "--lambda_kl", "0.25", "--hub_model_id", "me/secret", "--hub_private_repo", "true"],
        ["--no-use-kl", "--lambda-kl=0.25", "--hub-model-id", "me/secret", "--hub-private-repo", "true"],
        [
            "--no_use_kl",
            "--lambda_kl",
            "0.5",
            "--lambda-kl",
            "0.25",
            "--hub-model-id=me/secret",
            "--hub_private_repo=yes",
        ],
    )
    results = [parse_recipe([str(recipe), *flags]) for flags in forms]
    assert results[0][3] == results[1][3] == results[2][3]
    assert results[0][3].items() >= {"use_kl": False, "lambda_kl": 0.25, "hub_private_repo": True}.items()
    assert "hub-model-id" not in results[1][3]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("use_kl:\n", "`use_kl` has no value. Give it true or false"),
        ("learning_rate: null\n", "`learning_rate` has no value. Give it a number"),
        ("learning_rate: true\n", "`learning_rate` is True, but it must be a number"),
        ("learning_rate: [1e-3]\n", r"`learning_rate` is \['1e-3'\], but it must be a number"),
        ("learning_rate: .inf\n", "`learning_rate` is inf"),
        ("temp_kl: .nan\n", "`temp_kl` is nan"),
        ("seed: null\n", "`seed` has no value"),
        ("seed: 1.5\n", "`seed` is 1.5, but it must be a whole number"),
        ("run_name: 5\n", "`run_name` is 5, but it must be text"),
        ("gradient_accumulation_steps: two\n", "`gradient_accumulation_steps` is 'two'"),
        ("bf16: 0.5\n", "`bf16` is 0.5, but it must be true or false"),
        ("train_sampling_strategy: nope\n", "`train_sampling_strategy` is 'nope', but it must be one of random"),
        ("save_strategy: nope\n", "`save_strategy` is 'nope', but it must be one of no, "),
        ("teacher: [live]\n", "`teacher` is"),
        ("seed: 1\nseed: 2\n", "the key `seed` stands twice"),
        ("env: HF_TOKEN\n", "`env` in the recipe"),
        ("overwrite_output_dir: true\n", "A run never overwrites another"),
        ("torch_dtype: float32\n", "Did you mean `dtype`"),
        ("group_by_length: true\n", "Did you mean `train_sampling_strategy`"),
        ("1: 2\n", "Unknown key `1`"),
    ],
)
def test_values_of_another_type(recipe, lines, message):
    recipe.write_text(recipe.read_text().replace("learning_rate: 1e-5\n", "").replace("bf16: false\n", "") + lines)
    with pytest.raises(ConfigError, match=message):
        parse_recipe([str(recipe)])


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("max_steps: 1:30\n", "`max_steps` is '1:30'"),
        ('env: {A: "x\\0y"}\n', "`env` in the recipe .* cannot be set"),
        ('run_name: "x\\0y"\n', "`run_name` holds a null character"),
        ("accelerator_config: {split: true}\n", "unexpected keyword argument 'split'"),
        (
            "lr_scheduler_kwargs: {cycles: 2}\n",
            "does not go with `lr_scheduler_type: linear`: .*cycles",
        ),
        ("lr_scheduler_type: cosine_with_min_lr\n", "does not go with .*min_lr"),
        ("part_learning_rates: {aligner: true}\n", "`part_learning_rates` of `aligner` is True, but it must"),
        (
            "part_learning_rates: {aligner: -1e-4}\n",
            "`aligner` is -0.0001, but it must be at least 0",
        ),
        ("part_learning_rates: {aligner: .nan}\n", "`part_learning_rates` of `aligner` is nan, but it must"),
    ],
)
def test_values_that_do_not_look_like_what_they_are(recipe, lines, message):
    kept = recipe.read_text()
    if lines.startswith("trainable_parts"):
        kept = kept.replace("trainable_parts: aligner, vision_tower_low, vision_tower_high\n", "")
    recipe.write_text(kept + lines)
    with pytest.raises(ConfigError, match=message):
        parse_recipe([str(recipe)])


def test_numbers_and_texts_of_yaml(recipe):
    """Numbers are read as they look; anchors and merged mappings are YAML's own."""
    lines = (
        "max_steps: 1_000\nseed: 0x10\ntemp_kl: 2.50\nadam_epsilon: 1.0e-8\nweight_decay: .1\nrun_name: 2024-01-01\n"
    )
    lines += "save_total_limit: 010\nsave_strategy: no\neval_strategy: No\n"
    lines += "part_learning_rates: &rates {aligner: 1e-4}\nlr_scheduler_kwargs: {<<: {num_cycles: 2}}\n"
    recipe.write_text(recipe.read_text() + lines + "lr_scheduler_type: cosine\nlambda_kl: 1\n")
    _, args, _, _ = parse_recipe([str(recipe)])
    assert (args.max_steps, args.seed, args.temp_kl, args.adam_epsilon) == (1000, 16, 2.5, 1e-8)
    assert (args.weight_decay, args.run_name, args.lambda_kl) == (0.1, "2024-01-01", 1)
    assert args.save_total_limit == 10  # and not 8
    assert args.save_strategy == args.eval_strategy == "no"  # which YAML reads as false
    assert (args.part_learning_rates, args.lr_scheduler_kwargs) == ({"aligner": 1e-4}, {"num_cycles": 2})


RANGES_BROKEN = [
    ("gradient_accumulation_steps", -2),
    ("gradient_accumulation_steps", 0),
    ("per_device_train_batch_size", 0),
    ("max_steps", 0),
    ("max_steps", -5),
    ("num_train_epochs", -1),
    ("learning_rate", -1e-5),
    ("weight_decay", -0.1),
    ("warmup_steps", -1),
    ("adam_beta2", 1.0),
    ("max_grad_norm", -1.0),
    ("logging_steps", 0),
    ("save_steps", 0),
    ("save_total_limit", 0),
    ("max_length", 0),
    ("seed", -1),
    ("dataloader_num_workers", -1),
    ("dataset_num_proc", 0),
    ("temp_kl", 0),
    ("alpha_kl", 1.01),
    ("lambda_kl", -0.01),
    ("teacher_sync_steps", 0),
    ("min_pixels", 0),
    ("max_pixels", -3),
    ("lora_r", 0),
    ("lora_dropout", 1.0),
    ("eval_split_size", 0.0),
    ("eval_split_size", 1.5),
    ("warmup_steps", 2.5),
    ("seed", 2**32),
    ("data_seed", -1),
    ("neftune_noise_alpha", -5),
]


@pytest.mark.parametrize(("name", "value"), RANGES_BROKEN)
def test_ranges(recipe, name, value):
    with pytest.raises(ConfigError, match=rf"`{name}` is {value}(\.0)?, but it must be "):
        parse_recipe([str(recipe), f"--{name}={value}"])


@pytest.mark.parametrize(
    ("name", "value"), [pair for pair in RANGES_BROKEN if pair[0] in PumaKLConfig.__annotations__]
)
def test_ranges_in_python(tmp_path, name, value):
    with pytest.raises(ConfigError, match=rf"`{name}` is {value}, but it must be "):
        PumaKLConfig(str(tmp_path), use_cpu=True, bf16=False, **{name: value})


def test_all_problems_at_once(recipe):
    recipe.write_text(recipe.read_text() + "seed: null\ntemp_kl: -1\neval_strategy: steps\nreport_to: nobody\n")
    with pytest.raises(ConfigError, match="^4 problems. ") as error:
        parse_recipe([str(recipe)])
    for part in ("`seed` has no value", "`temp_kl` is -1", "`eval_strategy: steps` needs data", "`report_to: nobody`"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--eval_strategy", "epoch"], "`eval_strategy: epoch` needs data to evaluate on"),
        (["--report_to", "tensorbord"], r"Unknown tracker `report_to: tensorbord`. Did you mean `tensorboard`\?$"),
        (["--report_to", "qqqq"], "Unknown tracker `report_to: qqqq`. Known are none, all, azure_ml, "),
        (["--report_to", "flyte"], "`report_to: flyte`: no such tracker is installed. Run `pip install flytekit`"),
        (["--use_cpu", "false"], "No GPU is seen: .* set `use_cpu: true`."),
        (["--use_cpu=false", "--bf16=true", "--tf32=true"], "`use_cpu: true`, `bf16: false`, `tf32: false`"),
        (["--fp16", "true"], "`use_cpu: true` does not go with `fp16: true`"),
        (["--tf32", "true"], "`use_cpu: true` does not go with `tf32: true`"),
        (["--min_pixels", "9", "--max_pixels", "4"], "`min_pixels: 9` is more than `max_pixels: 4`"),
        (["--columns", "[1]"], "`columns` is "),
        (["--lr_scheduler_type=constant", "--warmup_steps=9"], "Set `lr_scheduler_type: constant_with_warmup`"),
        (["--output_dir", " "], "`output_dir` is empty"),
        (["--chat_template_path", "https://host/t.jinja"], "`chat_template_path: https://host.* is an address, and"),
        (["--output_dir", "s3://bucket/out"], "`output_dir: s3://bucket/out` is an address"),
        (["--activation_offloading=true"], "`activation_offloading: true` needs a GPU"),
        (["--use_liger_kernel=true"], "`use_liger_kernel: true` needs its package"),
    ],
)
def test_contradictions(recipe, flags, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=message):
        parse_recipe([str(recipe), *flags])


@pytest.mark.parametrize(
    ("version", "newest", "build", "message"),
    [
        (
            "535.129.03",
            12020,
            "13.0",
            r"the NVIDIA driver 535\.129\.03 goes up to CUDA 12\.2, and .* for CUDA 13\.0",
        ),
        ("580.65.06", 13000, "13.0", r"the NVIDIA driver 580\.65\.06 shows none"),
        (
            "550.54.14",
            12040,
            "12.8",
            r"the NVIDIA driver 550\.54\.14 shows none",
        ),  # versions of one number go together
        (None, 0, "13.0", "there is no NVIDIA driver"),
        ("535.129.03", 12020, None, "this PyTorch is built without CUDA"),
    ],
)
def test_why_no_gpu_is_seen(recipe, tmp_path, monkeypatch, version, newest, build, message):
    class Library:
        def cuDriverGetVersion(self, number):
            number._obj.value = newest

    def open_library(name):
        if not newest:
            raise OSError(name)
        return Library()

    if version is not None:
        line = f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {version}  Thu\nGCC version: gcc version 11.4.0\n"
        (tmp_path / "version").write_text(line)
    monkeypatch.setattr("puma_trl.recipe.DRIVER", tmp_path / "version")
    monkeypatch.setattr("ctypes.CDLL", open_library)
    monkeypatch.setattr("torch.version.cuda", build)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=f"^No GPU is seen: {message}"):
        parse_recipe([str(recipe), "--use_cpu", "false", "--bf16", "false"])


def test_a_file_of_deepspeed_that_is_not_there(recipe, tmp_path, monkeypatch):
    """As accelerate's launcher hands it on, which starts from the current folder."""
    name = "accelerate_configs/deepspeed/zero2.json"
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", name)
    monkeypatch.chdir(ROOT)
    parse_recipe([str(recipe)])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=f"DeepSpeed's file {name}, which is not there, .* `puma-trl train`"
    ) as error:
        parse_recipe([str(recipe)])
    assert "problems" not in str(error.value)


def test_home_in_all_paths(recipe, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    several, one = "--dataset_name=~/a.jsonl,b/~c.jsonl", "--eval_dataset_name=~/e.jsonl"
    paths = ["--model_name_or_path=~/m", "--output_dir=~/o", "--image_root=~/i", "--chat_template_path=~/t.jinja"]
    script, training, model, _ = parse_recipe([str(recipe), several, one, *paths])
    assert script.dataset_name == ["/home/me/a.jsonl", "b/~c.jsonl"] and script.eval_dataset_name == [
        "/home/me/e.jsonl"
    ]
    assert (model.model_name_or_path, training.output_dir) == ("/home/me/m", "/home/me/o")
    assert (training.image_root, training.chat_template_path) == ("/home/me/i", "/home/me/t.jinja")


def test_names_of_other_trainers(recipe):
    """All unknown keys of a recipe are told at once, each with what it is called here, or why it is not."""
    assert {*OTHER_NAMES.values(), *RANGES, *NOT_IN_RECIPES} <= FIELDS.keys()
    assert not (OTHER_NAMES.keys() | NOT_HERE.keys()) & FIELDS.keys() and not OTHER_NAMES.keys() & NOT_HERE.keys()
    for flag in ("--cutoff_len", "--lr=1"):
        with pytest.raises(ConfigError, match="Unknown key `.*` on the command line. Did you mean `(max_|learning_)"):
            parse_recipe([str(recipe), flag])
    recipe.write_text(recipe.read_text() + "".join(f"{name}: 1\n" for name in (*OTHER_NAMES, *NOT_HERE)))
    with pytest.raises(ConfigError, match=f"^{len(OTHER_NAMES) + len(NOT_HERE)} unknown keys in the recipe") as error:
        parse_recipe([str(recipe)])
    for other, ours in OTHER_NAMES.items():
        assert f"`{other}`: Did you mean `{ours}`?" in str(error.value)
    for other, advice in NOT_HERE.items():
        assert f"`{other}`: {advice}" in str(error.value)


OTHER_VALUES = {"dataset_kwargs": "{}", "dataset_text_field": "story", "eval_do_concat_batches": "false"}
OTHER_VALUES |= {"include_for_metrics": "[loss]", "length_column_name": "size", "local_rank": "0"}
OTHER_VALUES |= {"lora_task_type": "SEQ_CLS", "model_init_kwargs": "{dtype: auto}", "truncation_mode": "keep_end"}


def test_fields_without_effect_in_a_recipe(recipe):
    lines = "".join(f"{name}: {OTHER_VALUES.get(name, 'true')}\n" for name in NOT_IN_RECIPES)
    recipe.write_text(recipe.read_text() + lines)
    with pytest.raises(ConfigError, match=f"^{len(NOT_IN_RECIPES)} problems. ") as error:
        parse_recipe([str(recipe)])
    for name, (_, reason) in NOT_IN_RECIPES.items():
        assert re.search(
            f"`{name}: [^`]*` has no effect in a recipe. {re.escape(reason)}: leave it out.", str(error.value)
        )


def test_python_takes_what_recipes_take(tmp_path):
    args = PumaKLConfig(str(tmp_path), use_cpu=True, bf16=False, learning_rate="1e-5", lr_scheduler_type="cosine")
    assert args.learning_rate == 1e-5
    for values in ({"learning_rate": True}, {"seed": None}, {"use_kl": "maybe"}, {"teacher": 3}):
        with pytest.raises(ConfigError, match=f"`{next(iter(values))}`"):
            PumaKLConfig(str(tmp_path), use_cpu=True, bf16=False, **values)
    assert dataclasses.replace(args, seed=1).seed == 1  # whose values are objects by now


def test_schema_is_that_of_the_fields():
    schema = json.loads((ROOT / "recipes" / "schema.json").read_text())
    assert schema == json.loads(json.dumps(make_schema(TYPES))), "python -m puma_trl.recipe > recipes/schema.json"
    assert schema["properties"].keys() == FIELDS.keys() | {"env"}
    for path in ROOT.glob("recipes/**/stage*.yaml"):
        jsonschema.validate(yaml.safe_load(path.read_text()), schema)
    for wrong in ({"seed": "x"}, {"teacher": "alive"}, {"zzz": 1}, {"use_kl": None}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--learning_rate", "fast"], "learning.rate"),
        (["--seed"], "expected one argument"),
        (["surplus"], "unrecognized arguments: surplus"),
        (["--temp_kl", "inf"], "`temp_kl` is inf"),
        (["--teacher", "alive"], "invalid choice: 'alive'"),
        (["--config", "other.yaml"], "Several recipes"),
    ],
)
def test_flags_that_cannot_be_read(recipe, flags, message):
    with pytest.raises(ConfigError, match=message):
        parse_recipe([str(recipe), *flags])


def test_recipe_is_named_where_it_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match="No such recipe: .*none.yaml"):
        parse_recipe([str(tmp_path / "none.yaml")])
    (tmp_path / "latin.yaml").write_bytes("output_dir: caf\u00e9".encode("latin-1"))
    with pytest.raises(ConfigError, match="latin.yaml is not UTF-8"):
        parse_recipe([str(tmp_path / "latin.yaml")])
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "folder.yaml", tmp_path, tmp_path / "pipe", "/dev/null"):
        with pytest.raises(ConfigError, match=f"The recipe {name} is not a regular file"):
            parse_recipe([str(name)])


def other_values(field, hint):
    """Values of a field's type that are not its default."""
    kinds = [tuple(field.metadata["choices"])] if field.metadata.get("choices") else list_kinds(hint)
    samples = {bool: [True, False], int: [3], float: [0.25, 2], str: ["text"], list: [["a", "b"]]}
    values = [value for kind in kinds for value in (kind if isinstance(kind, tuple) else samples.get(kind, []))]
    return [value for value in values if value != field.default]


def settings(argv):
    """Returns all fields of the arguments, or the error."""
    try:
        *arguments, values = parse_recipe(argv)
    except Exception as error:  # whatever transformers raises for values that do not go together
        return str(error), None
    fields = {field.name: repr(getattr(each, field.name)) for each in arguments for field in dataclasses.fields(each)}
    fields.pop("logging_dir", None)
    return fields, values


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_written_recipe_gives_the_same_arguments(name, recipe, tmp_path, monkeypatch):
    """Whatever key is given on the command line, the values that a run writes down give the same run again."""
    monkeypatch.setattr(os, "environ", os.environ.copy())  # which transformers writes into
    for value in other_values(*FIELDS[name]):
        pieces = value if isinstance(value, list) else [str(value)]
        fields, values = settings([str(recipe), f"--{name.replace('_', '-')}", *pieces])
        if values is None:
            continue  # such as fp16 on a CPU: refused by transformers
        (tmp_path / "again.yaml").write_text(yaml.safe_dump(values))
        again, values_again = settings([str(tmp_path / "again.yaml")])
        assert again == fields and values_again == values
