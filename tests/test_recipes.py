"""Every recipe and every accelerate configuration that is shipped, through the parsers that will read them."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin, DistributedType
from deepspeed.runtime.config import DeepSpeedConfig, DtypeEnum
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from transformers import SchedulerType
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.training_args import OptimizerNames

from puma_trl.models.attention import VARLEN
from puma_trl.models.parts import PARTS
from puma_trl.recipe import parse_recipe


ROOT = Path(__file__).parents[1]
RECIPES = sorted(path for path in ROOT.glob("recipes/**/stage*.yaml") if not path.is_symlink())
ENGINES = sorted(ROOT.glob("accelerate_configs/*.yaml"))
ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--tf32", "false"]


def name(path):
    return str(path.relative_to(ROOT))


def read_header(path):
    """Returns the comment on top of a recipe, in one line."""
    lines = path.read_text().splitlines()
    return " ".join(line.removeprefix("#").strip() for line in lines[: lines.index("")])


def test_recipes_are_found():
    """The paper's recipes, and for each family a folder for each way to train, all of three stages."""
    kinds = [f"qwen2_vl/{kind}" for kind in ("full", "lora", "qlora")]
    kinds += [f"{family}/full" for family in ("qwen2_5_vl", "math_puma_qwen2", "deepseek_vl_hybrid")]
    for folder in (".", "mini", "smolvlm_256m", "qwen2_5_vl_3b_24gb", *kinds):
        names = [path.name for path in sorted((ROOT / "recipes" / folder).glob("stage*.yaml"))]
        assert names == ["stage1.yaml", "stage2.yaml", "stage3.yaml"], folder


def test_papers_recipes_are_those_of_qwen2_vl():
    """They are links, so that there is one copy."""
    for path in (ROOT / "recipes" / "qwen2_vl" / "full").iterdir():
        assert path.is_symlink() and path.resolve() == ROOT / "recipes" / path.name


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_recipe(path):
    """It parses, and what only a GPU can check are names that the installed libraries know."""
    script_args, args, model_args, _ = parse_recipe([str(path), *ON_CPU])
    values = yaml.safe_load(path.read_text())
    # what the file says is what the run gets
    for key, value in values.items():
        owners = [owner for owner in (script_args, args, model_args) if hasattr(owner, key)]
        assert len(owners) == 1, key
        if type(value) in (int, float) and key != "gradient_checkpointing":
            assert getattr(owners[0], key) == value, key
    assert values["attn_implementation"] == VARLEN and VARLEN in ALL_ATTENTION_FUNCTIONS
    assert args.padding_free or args.packing
    assert "flash" not in values.get("attn_implementation", ""), "needs a package that is no dependency"
    assert values.get("dtype") in ("bfloat16", "float32")
    assert values.get("optim", "adamw_torch") in {item.value for item in OptimizerNames}
    assert values.get("lr_scheduler_type", "linear") in {item.value for item in SchedulerType}
    assert set(args.trainable_parts) <= {*PARTS, "all"}
    assert args.use_kl == (path.name == "stage2.yaml")
    # bf16 is asked of a GPU, fp32 of a CPU, and both places say the same
    assert bool(values.get("bf16")) == (values["dtype"] == "bfloat16") != bool(values.get("use_cpu"))
    if model_args.use_peft:
        assert "lm_head" not in (model_args.lora_target_modules or ())


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_global_batch_size_of_the_header(path):
    _, args, _, _ = parse_recipe([str(path), *ON_CPU])
    header = read_header(path)
    numbers = re.search(r"Global batch size: (\d+) × (\d+) × (\d+) = (\d+)\.", header).groups()
    processes, batch, accumulation, total = map(int, numbers)
    assert (batch, accumulation) == (args.per_device_train_batch_size, args.gradient_accumulation_steps)
    assert batch * accumulation * processes == total
    engine = re.search(r"accelerate_configs/\w+\.yaml", header)[0]
    assert yaml.safe_load((ROOT / engine).read_text())["num_processes"] == processes
    # and the output stands where the recipe stands; only the study has a folder of its own
    place = path.relative_to(ROOT / "recipes").with_suffix("").as_posix().replace("mini/study/", "study/")
    assert args.output_dir == f"outputs/{place}"


@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
def test_stages_follow_each_other(kind):
    """A stage starts from what the one before it leaves, merged where it leaves adapters."""
    folder = ROOT / "recipes" / "qwen2_vl" / kind
    outputs = []
    for number in (1, 2, 3):
        _, args, model_args, _ = parse_recipe([str(folder / f"stage{number}.yaml"), *ON_CPU])
        if outputs:
            assert model_args.model_name_or_path == outputs[-1]
        outputs.append(args.output_dir + ("" if kind == "full" else "-merged"))
        assert model_args.use_peft == (kind != "full") and model_args.load_in_4bit == (kind == "qlora")
        if kind != "full":
            command = f"python -m puma_trl.merge {args.output_dir} {outputs[-1]}"
            assert command in read_header(folder / f"stage{number}.yaml")


@pytest.mark.parametrize("path", ENGINES, ids=name)
def test_accelerate_configuration(path):
    """accelerate's own class takes it: unknown keys are errors there."""
    config = load_config_from_file(str(path))
    values = yaml.safe_load(path.read_text())
    assert config.to_dict().items() >= {
        (key, value) for key, value in values.items() if not isinstance(value, dict | list)
    } - {("distributed_type", values["distributed_type"])}
    assert config.distributed_type == DistributedType(values["distributed_type"])
    assert config.num_processes == values["num_processes"] and config.num_processes % config.num_machines == 0
    # the recipe decides; `bf16: false` under a file that says bf16 is an error, as is the key beside a DeepSpeed file
    assert config.mixed_precision == (None if "zero" in path.name else "no")
    assert path.read_text().startswith("# ")


@pytest.mark.parametrize("path", [path for path in ENGINES if "zero" in path.name], ids=name)
def test_deepspeed_file(path):
    """DeepSpeed takes it and knows every key; the stage is that of the name, and gradients are added in fp32."""
    settings = load_config_from_file(str(path)).deepspeed_config
    values = json.loads((ROOT / settings["deepspeed_config_file"]).read_text())
    stage = int(re.search(r"zero(\d)", path.name)[1])
    plugin = DeepSpeedPlugin(hf_ds_config=str(ROOT / settings["deepspeed_config_file"]), zero3_init_flag=False)
    plugin.set_mixed_precision("bf16")  # of the recipe
    given = plugin.deepspeed_config | {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 8}
    config = DeepSpeedConfig(given | {"gradient_accumulation_steps": 1, "gradient_clipping": 1.0})
    zero = config.zero_config
    assert config.bfloat16_config.enabled and not config.float16_config.enabled
    assert zero.stage == stage and settings["zero3_init_flag"] == (stage == 3)
    assert DtypeEnum(config.grad_accum_dtype).value == config.communication_data_type == torch.float32
    is_offloaded = zero.offload_optimizer is not None and zero.offload_optimizer.device == "cpu"
    assert is_offloaded == ("offload" in path.name)
    # sharded weights are gathered for saving, and several nodes have a whole copy each
    assert zero.gather_16bit_weights_on_model_save == (stage == 3)
    assert zero.zero_hpz_partition_size == (8 if "multinode" in path.name else 1)
    fields = DeepSpeedZeroConfig.model_fields
    assert {*values["zero_optimization"]} <= {*fields, *(field.alias for field in fields.values())}


def test_every_deepspeed_file_is_used():
    used = {load_config_from_file(str(path)).deepspeed_config.get("deepspeed_config_file") for path in ENGINES}
    assert {name(path) for path in ROOT.glob("accelerate_configs/deepspeed/*")} == used - {None}


@pytest.mark.parametrize("path", [path for path in RECIPES if "8xa100" in path.read_text()], ids=name)
def test_engine_of_a_full_recipe(path):
    """A stage that trains a small part has the model whole on each GPU, and all wait for a slow disk."""
    engine = "zero2_8xa100" if path.name == "stage2.yaml" else "zero3_8xa100"
    assert f"accelerate_configs/{engine}.yaml" in read_header(path)
    assert yaml.safe_load(path.read_text())["ddp_timeout"] > 1800
